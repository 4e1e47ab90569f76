"""A plugin teaches the engine a layer, and takes its rules away with it."""

from __future__ import annotations

import math

import pytest
import torch
from support.interval_checker import bounds_of, make_case, observed, violations
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.intervals import Interval, trace
from robust_plugins.intervals.rules.registry import BUILTIN, RegisterRules, RuleTable


class Exponential(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.exp2()


class Plugin:
    @rp.hookimpl
    def register_interval_rules(self, register: RegisterRules) -> None:
        def forward(layer: nn.Module, x: Interval) -> Interval:
            return x.map(torch.exp2)

        def backward(layer: nn.Module, x: Interval, grad: Interval) -> Interval:
            return grad * x.map(torch.exp2) * math.log(2)

        register(Exponential, forward=forward, backward=backward)


def test_a_custom_layer_by_the_hook() -> None:
    model = nn.Sequential(nn.Linear(3, 3), Exponential(), nn.Linear(3, 2))
    x = torch.zeros(1, 3)
    with pytest.raises(rp.UnsupportedModelError, match=r"exp2 in 1 \(Exponential\)"):
        trace(model, x)
    rp.register(Plugin(), "exponential")
    try:
        case = make_case(model, (3,), eps=0.3, gamma=0.1, seed=0)
        hull = observed(case)
        assert violations(bounds_of(case), hull) == []
        assert violations(bounds_of(case, relax=True), hull) == []
    finally:
        rp.unregister("exponential")
    with pytest.raises(rp.UnsupportedModelError, match="Exponential"):
        trace(nn.Sequential(nn.Linear(3, 3), Exponential()), x)


def test_a_layer_has_one_owner(unchecked: None) -> None:
    register = RegisterRules("somebody", RuleTable(BUILTIN))
    with pytest.raises(rp.ArgumentError, match="ReLU"):
        register(nn.ReLU, forward=lambda layer, x: x)
    with pytest.raises(rp.ArgumentError, match=r"subclass of torch\.nn\.Module"):
        register(torch.relu, forward=lambda layer, x: x)  # type: ignore[arg-type]
