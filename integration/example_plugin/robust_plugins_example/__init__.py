"""A plugin of robust_plugins as a stranger would write it: `example:corners` and `example:lipschitz`."""

import robust_plugins as rp
from robust_plugins.registry.hookspecs import Register
from robust_plugins_example.corners import Corners
from robust_plugins_example.lipschitz import Lipschitz

__all__ = ["Corners", "Lipschitz", "register_attacks", "register_certifiers"]


@rp.hookimpl
def register_attacks(register: Register) -> None:
    """Registers the attack."""
    register("example:corners", Corners)


@rp.hookimpl
def register_certifiers(register: Register) -> None:
    """Registers the certifier."""
    register("example:lipschitz", Lipschitz)
