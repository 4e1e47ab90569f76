"""With outward rounding effort 1 keeps the slopes' dependence on the input, and holds in floating point."""

from __future__ import annotations

import pytest
import torch
from support.length import length
from support.summation import permuted
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.explanations.bounds import smooth_gates
from robust_plugins.explanations.bounds.curvature import smooth_of
from robust_plugins.intervals import Interval, rounding
from robust_plugins.testing import adversarial_gradients

KINDS: dict[str, nn.Module] = {
    "tanh": nn.Tanh(), "sigmoid": nn.Sigmoid(), "gelu": nn.GELU(), "silu": nn.SiLU(), "softplus": nn.Softplus(),
    "steep": nn.Softplus(4.0, 2.0),
}  # fmt: skip
kinds = pytest.mark.parametrize("kind", KINDS)


def network(kind: str, dtype: torch.dtype, seed: int, size: float = 1.0) -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(seed)
    layers = (nn.Linear(6, 9), KINDS[kind], nn.Linear(9, 9), KINDS[kind], nn.Linear(9, 3))
    model = nn.Sequential(*layers).to(dtype).eval()
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.mul_(size)
    return model, torch.randn(3, 6, dtype=dtype)


def bounds(model: nn.Module, x: Tensor, eps: float, effort: int, of: rp.Of = "logit") -> Interval:
    certifier = rp.explanation_certifier("interval:relaxed", outward=True, effort=effort)
    with torch.no_grad():
        return certifier.bounds(model, x, torch.arange(len(x)), rp.Linf(eps=eps, clip=None), of=of)


def outside(kind: str, dtype: torch.dtype, eps: float, seed: int, size: float, of: rp.Of = "logit") -> int:
    """How many computed gradients leave the bounds: in batches, in float64, with reordered sums, and at ascents."""
    model, x = network(kind, dtype, seed, size)
    ball, draw = rp.Linf(eps=eps, clip=None), torch.Generator().manual_seed(seed)
    low_up = bounds(model, x, eps, 1, of)
    low, up = low_up.lower.double(), low_up.upper.double()
    count = 0
    for net in (model, permuted(model, draw), permuted(model, draw).double()):
        z = x.to(next(net.parameters()))
        explained = rp.Explained.at(net, z, torch.arange(len(x)), of)
        for _, found in adversarial_gradients(net, z, ball, explained, samples=4, steps=4, components=2):
            if found.dtype == dtype:  # points of the ball are those of its dtype
                count += int(((found < low) | (found > up)).sum())
        at_x = explained.gradient(net, z)
        count += int(((at_x < low) | (at_x > up)).sum())
    return count


@kinds
def test_no_gradient_that_is_computed_leaves_the_bounds(kind: str) -> None:
    index = list(KINDS).index(kind)
    dtype, eps, size = ((torch.float32, 0.0, 1.0), (torch.float32, 1e-4, 4.0), (torch.float64, 0.1, 2.0))[index % 3]
    assert outside(kind, dtype, eps, 0, size, ("logit", "loss")[index % 2]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("of", ["logit", "margin", "loss"])
@kinds
def test_none_leaves_those_of_more_networks(kind: str, of: rp.Of) -> None:
    for seed in range(length(4, 40)):
        for dtype in (torch.float32, torch.float64):
            for eps in (0.0, 1e-6, 1e-4, 1e-2, 0.3):
                assert outside(kind, dtype, eps, seed, 3.0 ** (seed % 4), of) == 0


@kinds
def test_it_is_tighter_than_effort_zero_and_wider_for_wider_sets(kind: str) -> None:
    model, x = network(kind, torch.float64, 0)
    plain, found, wide = bounds(model, x, 0.01, 0), bounds(model, x, 0.01, 1), bounds(model, x, 0.02, 1)
    assert float(found.width.sum()) < 0.8 * float(plain.width.sum())
    assert bool((wide.lower <= found.lower).all())
    assert bool((wide.upper >= found.upper).all())


def missed(kind: str) -> int:
    """Products with slopes, as computed in single precision or exactly, that leave a gate's lines."""
    smooth = smooth_of(KINDS[kind])
    assert smooth is not None
    torch.manual_seed(0)
    count, rules = 0, smooth_gates.smooth_gate(smooth)
    edge = torch.tensor([0.5, 20.0]).repeat(500)  # where the softplus's slope jumps
    spread = 3 * torch.randn(1000)
    for z in (spread, edge + torch.randn(1000) * 1e-7):
        g = torch.randn(1000) * 10 ** torch.randn(1000)
        for radius in (0.0, 1e-6, 1e-3, 1.0):
            box, grad = (Interval(t - radius, t + radius).map(lambda v: v.unsqueeze(0)) for t in (z, g))
            with rounding.outward():
                assert rules.relaxation is not None
                lines = rules.relaxation(smooth_gates.SmoothGate(), box, grad)
            for share in (0.0, 0.3, 1.0):
                at = torch.minimum(torch.maximum(box.lower + share * box.width, box.lower), box.upper)
                above = torch.minimum(torch.maximum(grad.upper - share * grad.width, grad.lower), grad.upper)
                point = at.clone().requires_grad_()
                (here,) = torch.autograd.grad(KINDS[kind](point), point, above)
                point = at.double().requires_grad_()
                (exact,) = torch.autograd.grad(KINDS[kind](point), point, above.double())
                ends = []
                for line in lines:
                    of_z, of_g = line.transpose(torch.ones_like(at).unsqueeze(1))
                    ends.append((of_z.double() * at + of_g.double() * above.double()).squeeze(1) + line.offset.double())
                for value in (here.double(), exact):
                    count += int(((value < ends[0]) | (value > ends[1])).sum())
    return count


@kinds
def test_the_lines_of_a_gate_hold_in_floating_point(kind: str) -> None:
    assert missed(kind) == 0


def test_lines_without_room_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smooth_gates.rounding, "widened", lambda low, up, **_: (low, up))
    assert missed("tanh") > 0


def test_planes_are_refused() -> None:
    with pytest.raises(rp.ArgumentError, match="0 or 1 with outward rounding"):
        rp.explanation_certifier("interval:relaxed", outward=True, effort=2)
