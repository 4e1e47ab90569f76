"""Attacks on training data, inside a budget."""
