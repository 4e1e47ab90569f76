"""Adapters to the attacks of torchattacks. Importing this package imports no backend."""

from robust_plugins.adapters.torchattacks.attacks import (
    APGD,
    APGDT,
    CW,
    EAD,
    FAB,
    FGSM,
    MIFGSM,
    PGD,
    AutoAttack,
    DeepFool,
    Square,
    Torchattack,
)  # fmt: skip
from robust_plugins.registry.hookspecs import Backend, Register, hookimpl

# Its requirements name an old release of requests, and torchvision, neither of which it imports.
TORCHATTACKS = Backend(
    "torchattacks", install="pip install --no-deps torchattacks && pip install 'robust_plugins[torchattacks]'"
)

ATTACKS: tuple[type[Torchattack], ...] = (
    FGSM, PGD, MIFGSM, APGD, APGDT, FAB, Square, AutoAttack, CW, DeepFool, EAD,
)  # fmt: skip


@hookimpl
def register_attacks(register: Register) -> None:
    """Registers the attacks of torchattacks."""
    for attack in ATTACKS:
        register(attack.name, attack, requires=(TORCHATTACKS,))
