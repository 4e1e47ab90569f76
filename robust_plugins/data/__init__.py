"""Small named data sets that work offline, and loaders for the real ones."""

from robust_plugins.hookspecs import Register, hookimpl


@hookimpl
def register_datasets(register: Register) -> None:
    """Registers the data sets of the package."""
