"""Adapters to auto_LiRPA's certifiers. Importing this package imports no backend."""

from robust_plugins.hookspecs import Register, hookimpl


@hookimpl
def register_certifiers(register: Register) -> None:
    """Registers the certifiers of auto_LiRPA."""
