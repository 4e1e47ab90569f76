"""Attacks and certifiers by the names under which plugins registered them."""

from __future__ import annotations

from typing import Any

from robust_plugins.decisions.attack import Attack
from robust_plugins.decisions.certifier import Certifier
from robust_plugins.registry.information import ComponentInfo, Kind, Status
from robust_plugins.registry.naming import parse_component
from robust_plugins.registry.registry import build, registry


def attack(name: str, /, **parameters: Any) -> Attack:
    """The attack registered as `name`, for example `rp.attack("art:pgd", steps=40)`.

    Raises UnknownNameError for an unknown name or parameter, PluginError where the plugin failed or its backend is
    missing, ArgumentError for a parameter's value.

    >>> model, x, y = torch.nn.Identity(), torch.tensor([[1.0, 0.0], [0.6, 0.4]]), torch.tensor([0, 0])
    >>> result = rp.attack("rp:pgd", steps=5)(model, x, y, rp.Linf(eps=0.2, clip=(0, 1)), seed=0)
    >>> result.success
    tensor([False,  True])
    """
    return build(Kind.ATTACK, Attack, name, **parameters)


def attacks() -> list[ComponentInfo]:
    """Every registered attack, with plugin, version and status.

    >>> "rp:margin-pgd" in [info.name for info in rp.attacks()]
    True
    """
    return registry().components(Kind.ATTACK)


def first_available(*names: str) -> str:
    """The first of these attacks whose plugin and backend are there, or the last: for defaults that need no backend.

    Names may carry parameters: `"art:pgd(steps=10)"`.
    """
    there = {info.name for info in attacks() if info.status is Status.LOADED}
    return next((name for name in names if parse_component(name)[0] in there), names[-1])


def certifier(name: str, /, **parameters: Any) -> Certifier:
    """The certifier registered as `name`, for example `rp.certifier("lirpa:crown")`. Raises as `attack` does.

    >>> model, x, y = torch.nn.Identity(), torch.tensor([[1.0, 0.0], [0.6, 0.4]]), torch.tensor([0, 0])
    >>> certificate = rp.certifier("interval:ibp")(model, x, y, rp.Linf(eps=0.2, clip=(0, 1)))
    >>> certificate.margin
    tensor([ 0.6000, -0.2000])
    >>> [verdict.value for verdict in certificate.verdicts]
    ['certified', 'unknown']
    """
    return build(Kind.CERTIFIER, Certifier, name, **parameters)


def certifiers() -> list[ComponentInfo]:
    """Every registered certifier, with plugin, version and status."""
    return registry().components(Kind.CERTIFIER)
