"""Adapters to ART's evasion attacks. Importing this package imports no backend."""

from robust_plugins.adapters.art import model as _model  # noqa: F401 (it registers how estimators become models)
from robust_plugins.adapters.art.ensemble import Auto
from robust_plugins.adapters.art.iterated import APGDCE, APGDDLR, MIM
from robust_plugins.adapters.art.nearest import CWL2, DeepFool
from robust_plugins.adapters.art.projected_gradient import BIM, FGSM, PGD
from robust_plugins.adapters.art.queried import ZOO, Boundary, HopSkipJump, Square
from robust_plugins.registry.hookspecs import Backend, Register, hookimpl

__all__ = [
    "APGDCE", "APGDDLR", "BIM", "CWL2", "FGSM", "MIM", "PGD", "ZOO", "Auto", "Boundary", "DeepFool", "HopSkipJump",
    "Square",
]  # fmt: skip

ART = Backend("art", install="pip install 'robust_plugins[art]'")

ATTACKS = {
    "art:fgsm": FGSM,
    "art:bim": BIM,
    "art:pgd": PGD,
    "art:mim": MIM,
    "art:apgd-ce": APGDCE,
    "art:apgd-dlr": APGDDLR,
    "art:deepfool": DeepFool,
    "art:cw-l2": CWL2,
    "art:square": Square,
    "art:hopskipjump": HopSkipJump,
    "art:boundary": Boundary,
    "art:zoo": ZOO,
    "art:auto": Auto,
}


@hookimpl
def register_attacks(register: Register) -> None:
    """Registers the attacks of ART."""
    for name, attack in ATTACKS.items():
        register(name, attack, requires=(ART,))
