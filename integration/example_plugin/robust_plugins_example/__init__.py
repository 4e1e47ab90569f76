"""A plugin of robust_plugins as a stranger would write it, with something of most kinds."""

import robust_plugins as rp
from robust_plugins.intervals.rules.registry import RegisterRules
from robust_plugins.registry.hookspecs import Register
from robust_plugins_example import sinh
from robust_plugins_example.branching import Chord, chords
from robust_plugins_example.corners import Corners
from robust_plugins_example.lipschitz import Lipschitz
from robust_plugins_example.rings import command, halves, rings
from robust_plugins_example.sinh import Sinh

__all__ = ["Chord", "Corners", "Lipschitz", "Sinh", "chords", "halves", "rings"]


@rp.hookimpl
def register_attacks(register: Register) -> None:
    """Registers the attack."""
    register("example:corners", Corners)


@rp.hookimpl
def register_certifiers(register: Register) -> None:
    """Registers the certifier, and branch and bound with a strategy of our own."""
    register("example:lipschitz", Lipschitz)
    register("example:chords", chords)


@rp.hookimpl
def register_interval_rules(register: RegisterRules) -> None:
    """Teaches the interval engine the layer."""
    register(Sinh, forward=sinh.forward, backward=sinh.backward)


@rp.hookimpl
def register_datasets(register: Register) -> None:
    """Registers the data set."""
    register("rings", rings)


@rp.hookimpl
def register_losses(register: Register) -> None:
    """Registers the recipe."""
    register("halves", halves)


@rp.hookimpl
def register_commands(register: Register) -> None:
    """Registers the command `robust-plugins rings`."""
    register("rings", lambda: command)
