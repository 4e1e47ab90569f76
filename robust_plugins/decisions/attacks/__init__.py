"""Our own attacks, `rp:*`: pure PyTorch, batched, a file each."""

from robust_plugins.decisions.attacks.apgd import APGD
from robust_plugins.decisions.attacks.margin_pgd import MarginPGD
from robust_plugins.decisions.attacks.pgd import FGSM, PGD
from robust_plugins.decisions.attacks.portfolio import Strongest
from robust_plugins.registry.hookspecs import Register, hookimpl

__all__ = ["APGD", "FGSM", "PGD", "MarginPGD", "Strongest"]


@hookimpl
def register_attacks(register: Register) -> None:
    """Registers the attacks of this package."""
    register("rp:auto", Strongest)
    register("rp:fgsm", FGSM)
    register("rp:pgd", PGD)
    register("rp:margin-pgd", MarginPGD)
    register("rp:apgd", APGD)
