"""What is replaced in torch after a model was converted: the conversion is made again, or the model is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.bounds_checker import sound
from support.lirpa_cases import BALL, points
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import robust_plugins as rp
from robust_plugins.adapters.lirpa import CROWN, IBP, bounded

REPLACED: dict[str, tuple[Any, str, Any]] = {
    "function": (F, "relu", lambda x, inplace=False: x * 3),
    "function behind it": (torch, "relu", lambda x: x * 3),
    "a layer's call": (nn.ReLU, "__call__", lambda self, x: x * 3),
    "inside of a layer's call": (nn.ReLU, "_call_impl", lambda self, x: x * 3),
    "call of all modules": (nn.Module, "__call__", lambda self, x: self.forward(x) * 1.5),
    "a base's forward": (_BatchNorm, "forward", lambda self, x: x * 3),
    "a weight": (nn.Linear, "weight", property(lambda self: self._parameters["weight"] * 3)),
    "order of layers": (nn.Sequential, "__iter__", lambda self: iter([*self._modules.values()][:2] * 2)),
    "arithmetic": (Tensor, "relu", lambda x: x * 3),
}


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = _plain()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.net(x)).relu()


def _plain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 12)).eval()


@pytest.mark.parametrize("name", REPLACED)
@pytest.mark.parametrize("certifier", [IBP(), CROWN()], ids=["IBP", "CROWN"])
def test_what_is_replaced_afterwards_is_seen(
    name: str, certifier: rp.Certifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    for model in (_plain(), Own().eval()):
        certifier.bounds(model, points(), BALL)
        before = {id(entry) for entry in bounded._cache[model].values()}
        where, attribute, value = REPLACED[name]
        with monkeypatch.context() as patch:
            patch.setattr(where, attribute, value, raising=False)
            try:
                assert sound(model, points(), BALL, certifier.bounds(model, points(), BALL))
            except rp.UnsupportedModelError:
                continue
            assert {id(entry) for entry in bounded._cache[model].values()} != before, "the old conversion was used"
