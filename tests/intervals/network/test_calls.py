"""Functional calls and tensor methods: each traced to a layer that computes the same, and bounded soundly."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from support.interval_checker import bounds_of, make_case, observed, violations
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.intervals import trace


class Form(nn.Module):
    """A model whose forward is one expression."""

    def __init__(self, expression: Callable[[Form, Tensor], Tensor]) -> None:
        super().__init__()
        self.expression = expression
        self.weight, self.bias = nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.ones(3))
        self.kernel = nn.Parameter(torch.ones(2, 1, 2, 2))
        self.register_buffer("mean", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.expression(self, x)


VECTORS: list[Callable[[Form, Tensor], Tensor]] = [
    lambda m, x: F.linear(x, m.weight, m.bias),
    lambda m, x: F.linear(x, m.weight * m.weight),
    lambda m, x: F.relu(x) + torch.tanh(x).relu() - x.sigmoid(),
    lambda m, x: (x - m.mean) / (m.mean * 2 + 1).abs(),
    lambda m, x: 1 - x * 3 + 2 / torch.tensor(4.0) - (-x) / 7,
    lambda m, x: 2 * x - torch.tensor([1.0, 2, 3, 4], dtype=torch.float64),
    lambda m, x: F.gelu(x, approximate="tanh") * F.silu(x),
    lambda m, x: torch.cat([x, x.clamp(0, 1)], dim=-1)[:, 1:6:2],
    lambda m, x: x.view(x.size(0), 2, 2).permute(0, 2, 1).reshape(x.shape[0], -1),
    lambda m, x: x.unsqueeze(1).transpose(1, 2).flatten(1).unflatten(1, (2, 2)).sum(-1),
    lambda m, x: x.view(-1, 2, 2).mean(dim=(1, 2), keepdim=True).squeeze(-1),
    lambda m, x: F.dropout(F.softmax(x, dim=1), training=m.training),
    lambda m, x: (x > 0.1).float() + F.leaky_relu(x, 0.2) + F.elu(x, alpha=0.5) + F.hardtanh(x) + F.relu6(x),
    lambda m, x: F.softplus(x, beta=2).add(x).mul(0.5).sub(1).div(2).neg(),
    lambda m, x: (x >= 0).double() * x,
]
IMAGES: list[Callable[[Form, Tensor], Tensor]] = [
    lambda m, x: F.conv2d(x, m.kernel, stride=2, padding=1),
    lambda m, x: F.max_pool2d(x, 2) + F.avg_pool2d(x, 2),
    lambda m, x: F.adaptive_avg_pool2d(x, 1).flatten(1),
    lambda m, x: F.max_pool1d(F.avg_pool1d(x.squeeze(1), 2), 2),
]


@pytest.mark.parametrize("index", range(len(VECTORS) + len(IMAGES)))
def test_expressions_are_understood(index: int) -> None:
    model = Form([*VECTORS, *IMAGES][index])
    shape = (4,) if index < len(VECTORS) else (1, 4, 4)
    case = make_case(model, shape, eps=0.5, gamma=0, seed=index)
    before = set(vars(model))
    hull = observed(case, seed=index, samples=16, ascents=8)
    assert violations(bounds_of(case), hull) == []
    assert violations(bounds_of(case, relax=True), hull) == []
    assert set(vars(model)) == before, "tracing must leave no attribute on the model"


UNSUPPORTED: list[tuple[Callable[[Form, Tensor], Tensor], str]] = [
    (lambda m, x: x.lgamma(), "lgamma in the model"),
    (lambda m, x: (-2.0) ** x, "pow.*the base of a power of h must be above 0"),
    (lambda m, x: F.dropout(x), "dropout.*training=self.training"),
    (lambda m, x: x / x.size(0), "depends on the other samples"),
    (lambda m, x: torch.cat([x, x], 0), "does not keep the batch"),
    (lambda m, x: x.softmax(0), "dim=0|depends on the other samples"),
    (lambda m, x: x.detach(), "detach"),
    (lambda m, x: m.weight @ m.mean, "does not return one tensor"),
]


@pytest.mark.parametrize(("expression", "message"), UNSUPPORTED)
def test_what_is_not_understood_is_named(expression: Callable[[Form, Tensor], Tensor], message: str) -> None:
    with pytest.raises(rp.UnsupportedModelError, match=message):
        trace(Form(expression).eval(), torch.rand(2, 4))
