"""Intervals of loss gradients: sound, and exact where they claim to be."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from robust_plugins.intervals import Interval, rounding
from robust_plugins.intervals.methods import loss_gradients


def _box(g: torch.Generator, *shape: int, width: float = 1.0) -> Interval:
    z = torch.randn(shape, generator=g, dtype=torch.float64) * 2
    return Interval(z - width * torch.rand(shape, generator=g), z + width * torch.rand(shape, generator=g))


def _points(box: Interval, g: torch.Generator, n: int) -> Tensor:
    t = torch.rand((n, *box.shape), generator=g, dtype=torch.float64)
    t[: n // 2] = t[: n // 2].round()
    return box.lower + t * box.width


def _gradient(loss: Tensor, z: Tensor) -> Tensor:
    return torch.autograd.grad(loss.sum(), z)[0]


def test_cross_entropy_is_sound_and_each_component_is_attained() -> None:
    g = torch.Generator().manual_seed(0)
    z, y = _box(g, 5, 4), torch.tensor([0, 3, 1, 2, 2])
    bound = loss_gradients.cross_entropy(z, y)
    points = _points(z, g, 2000).requires_grad_()
    found = _gradient(F.cross_entropy(points.flatten(0, 1), y.repeat(2000), reduction="none"), points)
    assert bool(bound.contains(found, tolerance=1e-12).all())
    for entry in range(4):  # its own logit at one end and the others at the other: attained, so exact
        for own, others, end in ((z.upper, z.lower, bound.upper), (z.lower, z.upper, bound.lower)):
            at = others.clone()
            at[:, entry] = own[:, entry]
            torch.testing.assert_close((at.softmax(1) - F.one_hot(y, 4))[:, entry], end[:, entry])
    free = loss_gradients.cross_entropy(z, None)
    assert bool((free.lower <= bound.lower + 1e-15).all() and (free.upper >= bound.upper - 1e-15).all())


def test_bounds_on_differences_sharpen_the_softmax() -> None:
    g = torch.Generator().manual_seed(1)
    shift, z = torch.randn(3, 1, generator=g, dtype=torch.float64), _box(g, 3, 4, width=0.1)
    # All logits move together by up to 5: their box is wide, their differences are not.
    wide = Interval(z.lower - 5, z.upper + 5)
    differences = Interval(z.lower.unsqueeze(1) - z.upper.unsqueeze(2), z.upper.unsqueeze(1) - z.lower.unsqueeze(2))
    y = torch.tensor([0, 1, 2])
    loose, tight = loss_gradients.cross_entropy(wide, y), loss_gradients.cross_entropy(wide, y, differences=differences)
    assert bool((tight.width < loose.width / 3).all())
    for t in _points(z, g, 500):
        assert bool(tight.contains((t + shift).softmax(1) - F.one_hot(y, 4), tolerance=1e-12).all())


@pytest.mark.parametrize("name", ["bce", "mse", "hinge"])
def test_other_losses_hold_for_every_label_of_an_interval(name: str) -> None:
    g = torch.Generator().manual_seed(2)
    z = _box(g, 6, 3)
    y = Interval.point(torch.where(torch.rand(6, 3, generator=g) < 0.5, -1.0, 1.0).double())
    if name == "bce":
        y = Interval((y.lower + 1) / 2 * 0.8, (y.lower + 1) / 2 * 0.8 + 0.2)
    if name == "mse":
        y = _box(g, 6, 3)
    rule = {
        "bce": loss_gradients.binary_cross_entropy_with_logits,
        "mse": loss_gradients.mse,
        "hinge": loss_gradients.hinge,
    }[name]
    bound = rule(z, y)
    points, labels = _points(z, g, 1000).requires_grad_(), _points(y, g, 1000)
    loss = {
        "bce": lambda: F.binary_cross_entropy_with_logits(points, labels, reduction="none"),
        "mse": lambda: (points - labels) ** 2,
        "hinge": lambda: (1 - labels * points).clamp(min=0),
    }[name]()
    found = _gradient(loss, points)
    assert bool(bound.contains(found, tolerance=1e-12).all())
    reached = (found.amax(0) - found.amin(0)) / bound.width.clamp(min=1e-12)
    assert float(reached[bound.width > 1e-9].mean()) > 0.9
    point = rule(Interval.point(points[0].detach()), labels[0])
    torch.testing.assert_close(point.lower, found[0])


def test_outward_rounding_encloses_float32() -> None:
    g = torch.Generator().manual_seed(3)
    z = (torch.randn(4000, 10, generator=g) * 10).float()
    y = torch.randint(10, (4000,), generator=g)
    with rounding.outward():
        bound = loss_gradients.cross_entropy(Interval.point(z), y)
    for t in (z, z.double()):
        value = (t.softmax(1) - F.one_hot(y, 10)).double()
        assert bool(((value >= bound.lower.double()) & (value <= bound.upper.double())).all())


def test_hinge_of_what_overflowed_is_not_a_closed_margin() -> None:
    """Bounds that are inf - inf = NaN do not mean that there is no gradient."""
    z = torch.tensor([[torch.nan], [3.0]])
    found = loss_gradients.hinge(Interval(z, z.clone()), torch.ones(2, 1))
    assert found.lower.isnan().flatten().tolist() == found.upper.isnan().flatten().tolist() == [True, False]
