"""Calls that make one value of several along axes: in every spelling, bounded soundly; places are refused by name."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from support.interval_checker import Case, bounds_of, make_case, observed, violations
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.intervals import Interval, trace
from robust_plugins.intervals.layers import Length
from robust_plugins.intervals.rules.registry import BUILTIN


class Of(nn.Module):
    """A function of a matrix for each sample, behind a linear layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function, self.first = function, nn.Linear(3, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.first(x).view(-1, 2, 3))


PROTOTYPES = torch.tensor([[1.0, 2.0, 3.0], [4.0, -3.0, 2.0]])

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "lengths": lambda h: h.norm(dim=1) + torch.norm(h, 2, -1, keepdim=True)[:, 0] - h.norm("fro", (1, 2), True)[:, 0],
    "other norms": lambda h: (
        torch.linalg.vector_norm(h, 1, dim=(1, 2)) + h.norm(float("inf"), 1)[:, 0] - torch.norm(h + 3, 3, 1)[:, 1]
    ),
    "library's norm": lambda h: torch.linalg.norm(h, dim=2) + torch.linalg.norm(h, 1, dim=1)[:, 1:],
    "largest": lambda h: h.amax((1, 2), True)[:, 0] - h.amin(1) + torch.amax(h, -1).sum(1, keepdim=True),
    "values": lambda h: (
        torch.max(h, 1)[0] + h.max(dim=1).values - torch.min(h, 2, keepdim=True)[0][:, 0] + (lambda v, _: v)(*h.min(1))
    ),
    "normalised": lambda h: F.normalize(h, dim=2) + F.normalize(h, p=1, dim=1),
    "angles": lambda h: (
        F.cosine_similarity(h[:, 0], h[:, 1]).unsqueeze(1)
        + F.cosine_similarity(h[:, :1], PROTOTYPES.to(h), dim=-1)
        + nn.CosineSimilarity(2)(h, h.roll(1, 2))
    ),
    "distances": lambda h: torch.stack(
        (F.pairwise_distance(h[:, 0], h[:, 1]), nn.PairwiseDistance(1)(h[:, 1], h[:, 0])), 1
    ),
    "spreads": lambda h: (
        (h - h.mean(-1, keepdim=True)) / (h.std(-1, keepdim=True) + 0.5) + torch.std(h, 1, False, True)
    ),
    "variances": lambda h: (
        h.var(2, unbiased=False) + torch.var(h, dim=(2,), keepdim=True)[..., 0] + h.var(2, correction=0)
    ),
    "smooth largest": lambda h: (
        h.logsumexp(1) - torch.logsumexp(2 * h, (1, 2), keepdim=True)[:, 0] + h.logsumexp(-1, True)[:, 0]
    ),
    "running sums": lambda h: (
        h.relu().cumsum(1) - torch.cumsum(h, dim=-1) + torch.diff(h, dim=1) - h.diff()[..., :1] * h.diff(2)
    ),
    "softmin": lambda h: F.softmin(h, 2) + nn.Softmin(1)(h) + nn.Softmax2d()(h.unsqueeze(3)).squeeze(3),
}


def _case(name: str, eps: float) -> Case:
    return make_case(Of(FUNCTIONS[name]), (3,), eps=eps, gamma=0, seed=1)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_bounded_and_wider_for_wider_sets(name: str) -> None:
    found = []
    for eps in (1e-4, 0.4):
        case = _case(name, eps)
        hull = observed(case, samples=10, ascents=10)
        for relax in (False, True):
            bounds = bounds_of(case, relax=relax)
            assert violations(bounds, hull) == [], (eps, relax)
            found.append(bounds["output"].width)
    assert bool((found[2] >= found[0]).all() and (found[3] >= found[1]).all())


def test_linear_relaxation_is_nearly_exact_on_small_boxes() -> None:
    for name in FUNCTIONS:
        case = _case(name, 1e-4)
        sampled = observed(case, samples=40, ascents=24, gradients=False)["output"]
        found = bounds_of(case, relax=True, gradients=False)["output"]
        assert float((found.width / sampled.width).mean()) < 1.15, name


def test_a_planted_fault_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    case = _case("normalised", 0.4)
    hull = observed(case, samples=40, ascents=20)
    rule = BUILTIN.entry(Length).forward
    assert rule is not None
    monkeypatch.setattr(
        BUILTIN.entry(Length), "forward", lambda layer, x: Interval.point(layer.forward(x.center)) if x else rule
    )
    assert violations(bounds_of(case, gradients=False), hull)


def test_gradients_at_ties_and_at_zero_are_those_of_torch() -> None:
    h = torch.tensor([[[0.0, 0.0, 0.0], [2.0, 2.0, 1.0]]], dtype=torch.float64)
    calls: list[Callable[[Tensor], Tensor]] = [
        lambda h: h.amax(2), lambda h: h.max(2).values, lambda h: h.amin((1, 2)), lambda h: h.norm(dim=2),
        lambda h: torch.clamp(h, min=torch.zeros(3).double(), max=torch.full((3,), 2.0).double()),
        lambda h: h.norm(float("inf"), 2), lambda h: h.norm(1, 2),
    ]  # fmt: skip
    for call in calls:

        class Alone(nn.Module):
            def forward(self, x: Tensor, call: Callable[[Tensor], Tensor] = call) -> Tensor:
                return call(x)

        network = trace(Alone(), h)
        z = h.clone().requires_grad_()
        out = call(z)
        (slopes,) = torch.autograd.grad(out.sum(), z)
        around = Interval(h - 1e-3, h + 1e-3)
        for box in (Interval.point(h), around):
            found = network.backward(network.forward(box), Interval.point(torch.ones_like(out))).input
            assert bool(found.contains(slopes, tolerance=1e-12).all())
            if box.is_point:
                torch.testing.assert_close(found.lower, slopes)


REFUSED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "places": (lambda h: h.max(2)[1].float(), r"max.*places of values.*h.amax\(dim\)"),
    "indices": (lambda h: h.min(1).indices.float(), r"min.*places of values.*h.amax\(dim\)"),
    "argmax": (lambda h: F.one_hot(h.argmax(2), 3).float(), r"argmax.*places of values.*h.amax\(dim\)"),
    "over all": (lambda h: h / h.norm(), "norm.*along the axes of each sample"),
    "over the batch": (lambda h: h - h.amax(0), "amax.*along the axes of each sample"),
    "matrices": (lambda h: torch.linalg.norm(h, 2, dim=(1, 2)), "norm.*torch.linalg.vector_norm"),
    "nuclear": (lambda h: h.norm("nuc", (1, 2)), "norm.*p must be a number"),
    "order": (lambda h: h.norm(0.5, 1), "norm.*from 1 on"),
    "uneven": (lambda h: F.adaptive_max_pool1d(h, 2), "adaptive_max_pool1d.*must divide"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_supported_is_refused_by_name(name: str) -> None:
    function, message = REFUSED[name]
    with pytest.raises(rp.UnsupportedModelError, match=message):
        trace(Of(function), torch.rand(2, 3))
