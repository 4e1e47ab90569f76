"""Our own attacks, `rp:*`: pure PyTorch, batched, a file each."""

from robust_plugins.decisions.attacks.margin_pgd import MarginPGD
from robust_plugins.decisions.attacks.portfolio import Strongest
from robust_plugins.registry.hookspecs import Register, hookimpl

__all__ = ["MarginPGD", "Strongest"]


@hookimpl
def register_attacks(register: Register) -> None:
    """Registers the attacks of this package."""
    register("rp:auto", Strongest)
    register("rp:margin-pgd", MarginPGD)
