"""Checks beyond conformance of the attacks of libraries that are wrapped."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import robust_plugins as rp
from robust_plugins.registry import backends
from robust_plugins.registry.information import Status
from support.attacked import decisions, mlp


def each_finds_something(name: str, settings: dict[str, Any]) -> None:
    """On images in [0, 255] and on flat inputs in [0, 1], in every norm that it takes."""
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    model = mlp().eval()
    flat = nn.Sequential(nn.Unflatten(1, (1, 8, 8)), model)

    class Bytes(nn.Module):
        def forward(self, z: torch.Tensor) -> torch.Tensor:
            return z / 255

    y = decisions(model, x)
    attack = rp.attack(name, **settings)
    for kind, eps in ((rp.Linf, 0.25), (rp.L2, 3.0), (rp.L1, 30.0)):
        cases = ((flat, x.flatten(1), 1.0), (nn.Sequential(Bytes(), model), 255 * x, 255.0))
        if kind.norm not in attack.norms:  # type: ignore[attr-defined]
            continue
        for network, inputs, top in cases:
            ball = kind(eps=eps * top, clip=(0, top))
            result = attack(network, inputs, y, ball, seed=0)
            assert ball.contains(result.x_adv, inputs).all()
            assert result.success.sum() >= (1 if name == "torchattacks:cw" else 3)  # its one constant suits few


def each_refuses_in_one_sentence(name: str, settings: dict[str, Any]) -> None:
    """A ball without a clip range, and a Box."""
    x = torch.rand(2, 4, generator=torch.Generator().manual_seed(2))
    model, attack = nn.Linear(4, 3), rp.attack(name, **settings)
    y = decisions(model, x)
    for norm in attack.norms:  # type: ignore[attr-defined]
        kind = {2.0: rp.L2, 1.0: rp.L1}.get(norm, rp.Linf)
        with pytest.raises(rp.ArgumentError, match=rf"without a clip range, for {name}"):
            attack(model, x, y, kind(eps=0.1, clip=None))
    with pytest.raises(rp.ArgumentError, match=rf"Box|an Linf ball, for {name}"):
        attack(model, x, y, rp.Box(eps=0.1, radius=0.5, clip=(0, 1)))
    if not attack.targets:  # type: ignore[attr-defined]
        with pytest.raises(rp.ArgumentError, match=rf"None for {name}: it has no targeted form"):
            attack(model, x, y, kind(eps=0.1, clip=(0, 1)), target="random")


def listed_as_missing(provider: str, install: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the library its attacks are listed, with the command that installs it."""
    monkeypatch.setattr(backends, "importable", lambda module: module != provider)
    infos = [info for info in rp.attacks() if info.name.startswith(f"{provider}:")]
    assert {info.status for info in infos} == {Status.BACKEND_MISSING}
    with pytest.raises(rp.PluginError, match=install):
        rp.attack(infos[0].name)
