"""Our own attacks, `rp:*`: pure PyTorch, batched, a file each."""

from robust_plugins.decisions.attacks.apgd import APGD
from robust_plugins.decisions.attacks.boundary import HopSkipJump
from robust_plugins.decisions.attacks.cw_l2 import CWL2
from robust_plugins.decisions.attacks.cw_linf import CWLinf
from robust_plugins.decisions.attacks.ddn import DDN
from robust_plugins.decisions.attacks.fmn import FMN
from robust_plugins.decisions.attacks.margin_pgd import MarginPGD
from robust_plugins.decisions.attacks.minimal import Minimal
from robust_plugins.decisions.attacks.pdpgd import PDPGD
from robust_plugins.decisions.attacks.pgd import FGSM, PGD
from robust_plugins.decisions.attacks.portfolio import Strongest
from robust_plugins.decisions.attacks.square import Square
from robust_plugins.registry.hookspecs import Register, hookimpl

__all__ = [
    "APGD",
    "CWL2",
    "DDN",
    "FGSM",
    "FMN",
    "PDPGD",
    "PGD",
    "CWLinf",
    "HopSkipJump",
    "MarginPGD",
    "Minimal",
    "Square",
    "Strongest",
]


@hookimpl
def register_attacks(register: Register) -> None:
    """Registers the attacks of this package."""
    register("rp:auto", Strongest)
    register("rp:fgsm", FGSM)
    register("rp:pgd", PGD)
    register("rp:margin-pgd", MarginPGD)
    register("rp:apgd", APGD)
    register("rp:square", Square)
    register("rp:minimal", Minimal)
    register("rp:fmn", FMN)
    register("rp:ddn", DDN)
    register("rp:pdpgd", PDPGD)
    register("rp:cw-linf", CWLinf)
    register("rp:cw-l2", CWL2)
    register("rp:hopskipjump", HopSkipJump)
