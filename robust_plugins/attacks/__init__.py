"""Adapters to ART's evasion attacks. Importing this package imports no backend."""

from robust_plugins.hookspecs import Register, hookimpl


@hookimpl
def register_attacks(register: Register) -> None:
    """Registers the attacks of ART."""
