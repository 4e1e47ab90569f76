"""Adapters to ART's attacks, on inputs and on training data. Importing this package imports no backend."""

from robust_plugins.adapters.art import model as _model  # noqa: F401 (it registers how estimators become models)
from robust_plugins.adapters.art.ensemble import Auto
from robust_plugins.adapters.art.iterated import APGDCE, APGDDLR, MIM
from robust_plugins.adapters.art.nearest import CWL2, DeepFool
from robust_plugins.adapters.art.poisoning import FeatureCollision, GradientMatching
from robust_plugins.adapters.art.projected_gradient import BIM, FGSM, PGD
from robust_plugins.adapters.art.queried import ZOO, Boundary, HopSkipJump, Square
from robust_plugins.adapters.art.triggers import CleanLabelBackdoor, SleeperAgent
from robust_plugins.registry.hookspecs import Backend, Register, hookimpl

__all__ = [
    "APGDCE", "APGDDLR", "BIM", "CWL2", "FGSM", "MIM", "PGD", "ZOO", "Auto", "Boundary", "CleanLabelBackdoor",
    "DeepFool", "FeatureCollision", "GradientMatching", "HopSkipJump", "SleeperAgent", "Square",
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

POISONING_ATTACKS = {
    "art:clean-label-backdoor": CleanLabelBackdoor,
    "art:feature-collision": FeatureCollision,
    "art:gradient-matching": GradientMatching,
    "art:sleeper-agent": SleeperAgent,
}


@hookimpl
def register_attacks(register: Register) -> None:
    """Registers the attacks of ART."""
    for name, attack in ATTACKS.items():
        register(name, attack, requires=(ART,))


@hookimpl
def register_poisoning_attacks(register: Register) -> None:
    """Registers ART's attacks on training data."""
    for name, attack in POISONING_ATTACKS.items():
        register(name, attack, requires=(ART,))
