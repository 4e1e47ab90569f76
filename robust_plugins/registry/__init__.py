"""Plugins, their discovery and status, and the registry of components by name."""
