"""Explanations over sets with categories and whole numbers, against every point of them."""

from __future__ import annotations

import pytest
import torch
from support.boxes import MIXED, members, mixed
from torch import nn

import robust_plugins as rp


def _case() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 3)).double()
    with torch.no_grad():
        model[0].weight[:, 4] *= 0.2  # type: ignore[index]
    x = mixed(3, 1)
    return model, x, model(x).argmax(1)


def test_bounds_hold_at_every_point_and_attacks_return_one() -> None:
    model, x, y = _case()
    saliency = rp.explain.Saliency(model, abs=False)
    found = rp.explanation_attack("gradient:corner-pgd")(model, x, y, MIXED, seed=0)
    assert MIXED.contains(found.x_adv, x, tolerance=0).all()
    for name in ("interval:ibp", "interval:relaxed"):
        bounds = rp.explanation_certifier(name).bounds(model, x, y, MIXED, of="logit")
        assert bounds.contains(found.gradient, tolerance=1e-9).all()
        for i in range(len(x)):
            points = members(MIXED, x[i : i + 1], grid=5)
            values = saliency.attribute(points, target=y[i].expand(len(points)))
            assert bounds[i : i + 1].contains(values, tolerance=1e-9).all()


@pytest.mark.parametrize("kind", ["IntegratedGradients", "SmoothGrad", "InputXGradient"])
def test_attributions_hold_at_every_point(kind) -> None:
    model, x, y = _case()
    explanation = getattr(rp.explain, kind)(model)
    bounds = explanation.certify(x, target=y, ball=MIXED)
    for i in range(len(x)):
        points = members(MIXED, x[i : i + 1], grid=3)
        values = explanation.attribute(points, target=y[i].expand(len(points)))
        assert bounds[i : i + 1].contains(values, tolerance=1e-9).all()
