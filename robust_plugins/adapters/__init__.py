"""Adapters to other libraries: the only places that import a backend, and each only its own."""
