"""Small named networks."""

from robust_plugins.hookspecs import Register, hookimpl


@hookimpl
def register_models(register: Register) -> None:
    """Registers the networks of the package."""
