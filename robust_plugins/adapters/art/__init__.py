"""Adapters to ART's evasion attacks. Importing this package imports no backend."""

from robust_plugins.adapters.art import model as _model  # noqa: F401 (it registers how estimators become models)
from robust_plugins.adapters.art.projected_gradient import BIM, FGSM, PGD
from robust_plugins.registry.hookspecs import Backend, Register, hookimpl

__all__ = ["BIM", "FGSM", "PGD"]

ART = Backend("art", install="pip install 'robust_plugins[art]'")


@hookimpl
def register_attacks(register: Register) -> None:
    """Registers the attacks of ART."""
    register("art:fgsm", FGSM, requires=(ART,))
    register("art:bim", BIM, requires=(ART,))
    register("art:pgd", PGD, requires=(ART,))
