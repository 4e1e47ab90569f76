"""Adapters to the attacks of foolbox. Importing this package imports no backend."""

from robust_plugins.adapters.foolbox.attacks import (
    CW,
    DDN,
    EAD,
    FGSM,
    FMN,
    PGD,
    Boundary,
    DeepFool,
    FoolboxAttack,
    HopSkipJump,
)  # fmt: skip
from robust_plugins.registry.hookspecs import Backend, Register, hookimpl

FOOLBOX = Backend("foolbox", install="pip install 'robust_plugins[foolbox]'")

ATTACKS: tuple[type[FoolboxAttack], ...] = (FGSM, PGD, FMN, DDN, DeepFool, CW, EAD, HopSkipJump, Boundary)


@hookimpl
def register_attacks(register: Register) -> None:
    """Registers the attacks of foolbox."""
    for attack in ATTACKS:
        register(attack.name, attack, requires=(FOOLBOX,))
