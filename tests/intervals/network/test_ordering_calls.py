"""Calls that order values, multiply them, take distances or look at neighbours: bounded, or refused by name."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from support.interval_checker import Case, bounds_of, make_case, observed, violations
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.intervals import Interval, rounding, trace
from robust_plugins.intervals.layers import Multiply, Ranked
from robust_plugins.intervals.rules.registry import BUILTIN


class Of(nn.Module):
    """A function of a matrix for each sample, behind a linear layer."""

    def __init__(self, function: Callable[..., Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.function, self.first, self.layers = function, nn.Linear(3, 12), nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.first(x).view(-1, 3, 4), *self.layers).flatten(1)


WEIGHT = torch.tensor([[[1.0, -2.0], [0.5, 3.0]], [[-1.0, 0.2], [0.4, 0.9]]])
POINTS = torch.tensor([[1.0, 2.0, 0.0, -1.0], [0.3, -2.0, 1.0, 2.0]])

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sorted": lambda h: h.sort(1, descending=True).values + torch.sort(h, 2)[0].flip(2) - h.sort().values[:, :1],
    "largest ones": lambda h: h.topk(2).values + torch.topk(h, 1, 2, largest=False)[0] - h.topk(2, 1)[0][:, 1:, 1:3],
    "median": lambda h: h.median(1).values + torch.median(h, 2, True)[0][:, 0] - h.kthvalue(2, 1, True)[0][:, 0],
    "both extremes": lambda h: torch.aminmax(h, dim=1)[0] + h.aminmax(dim=2, keepdim=True).max[:, 0],
    "products": lambda h: h.prod(1) - torch.prod(h, 2, keepdim=True)[:, 0] + h[:, :2].prod(-1)[:, :1],
    "bilinear": lambda h: F.bilinear(h[..., :2], h[..., 2:], WEIGHT.to(h)),
    "distances of rows": lambda h: torch.cdist(h[:, :1], h[:, 1:]) - torch.cdist(h[:, 1:], h[:, :1], p=1.0).mT,
    "distances to points": lambda h: (
        torch.cdist(h[:, 0], POINTS.to(h))
        - torch.cdist(POINTS.to(h), h[:, 1:], 3.0, "donot_use_mm_for_euclid_dist")[:, :, 0]
    ),
    "windows": lambda h: h.unfold(2, 2, 1).sum(3) + h.unfold(1, 3, 1).mean(3)[..., :3] + h.unfold(-1, 2, 2)[..., 0, :1],
    "folded": lambda h: F.fold(F.unfold(h.unsqueeze(1), 2), (3, 4), 2)[:, 0] - torch.rot90(h, 2, (1, 2)),
    "diagonal": lambda h: h.diagonal(1, 1, 2),
    "response norm": lambda h: F.local_response_norm(h, 2, 0.5, 1.25, 0.7) + F.local_response_norm(h, 3),
    "norm pool": lambda h: F.lp_pool1d(1 + h.abs(), 2.0, 2) + F.lp_pool2d(h.exp().unsqueeze(1), 4, (1, 2))[:, 0],
    "logarithms": lambda h: torch.log2(1 + h**2) - h.abs().add(1).log10() - torch.erfc(h),
    "multiples": lambda h: torch.add(h, h.relu(), alpha=2) - h.sub(h.sin(), alpha=0.5).add(1, alpha=3),
}  # fmt: skip
LAYERS: dict[str, tuple[Callable[..., Tensor], tuple[nn.Module, ...]]] = {
    "Bilinear": (lambda h, f: f(h[:, 0], h[:, 1, :2]), (nn.Bilinear(4, 2, 2),)),
    "LocalResponseNorm": (lambda h, f: f(h), (nn.LocalResponseNorm(2, 0.8, 0.75, 0.5),)),
    "Fold": (lambda h, f, g: f(g(h.unsqueeze(1))), (nn.Fold((4, 3), 2), nn.Unfold(2))),
    "LPPool1d": (lambda h, f: f(h.exp()), (nn.LPPool1d(2.0, 2),)),
}
CASES = [*FUNCTIONS, *LAYERS]


def _case(name: str, eps: float, seed: int = 1) -> Case:
    model = Of(FUNCTIONS[name]) if name in FUNCTIONS else Of(LAYERS[name][0], *LAYERS[name][1])
    return make_case(model, (3,), eps=eps, gamma=0, seed=seed)


@pytest.mark.parametrize("name", CASES)
def test_bounds_hold_and_are_wider_for_wider_sets(name: str) -> None:
    found = []
    for eps in (1e-4, 0.4):
        case = _case(name, eps)
        smooth = name != "norm pool"  # its second derivative takes torch a second to find
        hull = observed(case, samples=6, ascents=6, gradients=smooth)
        for relax in (False, True):
            bounds = bounds_of(case, relax=relax, gradients=smooth)
            assert violations(bounds, hull) == [], (eps, relax)
            found.append(bounds["output"].width)
    assert bool((found[2] >= found[0]).all() and (found[3] >= found[1]).all())


def test_linear_relaxation_is_nearly_exact_on_small_boxes() -> None:
    for name in CASES:
        case = _case(name, 1e-5)
        sampled = observed(case, samples=16, ascents=8, gradients=False)["output"]
        found = bounds_of(case, relax=True, gradients=False)["output"]
        assert float((found.width / sampled.width).mean()) < 1.15, name


def test_rounded_outward_they_hold_for_what_is_computed() -> None:
    x = torch.linspace(-1, 1, 6).view(2, 3)
    for name in CASES:
        double, model = _case(name, 0.0).model, copy.deepcopy(_case(name, 0.0).model).float()
        for eps, certifier in ((0.0, "interval:ibp"), (1e-5, "interval:crown")):
            found = (
                rp.certifier(certifier, outward=True).bounds(model, x, rp.Linf(eps=eps, clip=None)).to(torch.float64)
            )
            with torch.no_grad():
                for out in (model(x), torch.cat([model(one) for one in x.split(1)]), double(x.double())):
                    assert bool(found.contains(out.double()).all()), (name, certifier)


def test_ties_have_every_gradient_that_is_possible() -> None:
    x = torch.tensor([[1.0, 2.0, 2.0, 0.0]], requires_grad=True)
    network = trace(nn.Sequential(Ranked(1, (2, 3))), x.detach())
    grad = Interval.point(torch.tensor([[5.0, 7.0]]))
    back = network.backward(network.forward(Interval.point(x.detach())), grad).input
    torch.testing.assert_close(back.lower, torch.tensor([[0.0, 5.0, 5.0, 0.0]]))
    torch.testing.assert_close(back.upper, torch.tensor([[0.0, 7.0, 7.0, 0.0]]))
    (exact,) = torch.autograd.grad((x.sort(1).values[:, 2:] * grad.lower).sum(), x)
    assert bool(back.contains(exact).all())


def test_long_products_are_rounded_for_every_factor() -> None:
    x = 1 + 0.3 * torch.rand(1, 40, generator=torch.Generator().manual_seed(0))

    class Product(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.prod(1, keepdim=True)

    network = trace(Product(), x)
    last = network.layers[-1]
    assert isinstance(last, Multiply)
    assert last.factors == 40
    with rounding.outward():
        (found,) = network.forward(Interval.point(x))[-1:]
    one_by_one = x[:, 0].clone()
    for k in range(1, 40):
        one_by_one = one_by_one * x[:, k]
    exact = x.double().prod(1)
    assert bool((found.lower[:, 0] <= one_by_one).all() and (found.upper[:, 0] >= one_by_one).all())
    assert bool((found.lower[:, 0].double() <= exact).all() and (found.upper[:, 0].double() >= exact).all())
    assert float(found.width) > 40 * 2.0**-24 * float(exact)


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (lambda h: h.sort(1).indices.float(), "places of values"),
        (lambda h: h.topk(2, 1, sorted=False).values, "sorted=True"),
        (lambda h: torch.cdist(h, h.repeat(1, 9, 1)), "donot_use_mm"),
        (lambda h: torch.cdist(h, h, 0.0), "its order must be a number from 1 on"),
        (lambda h: torch.fft.rfft(h).abs(), "matrices of cosines and of sines"),
        (lambda h: torch.linalg.inv(h[:, :, :3]), "invert constant ones"),
        (lambda h: F.lp_pool2d(h, 2, 2), "its input must be images"),
        (
            lambda h: F.bilinear(h[:, 0], torch.ones(1, 4).expand((h.shape[0], 4)), torch.ones(1, 4, 4)),
            "both inputs must depend",
        ),
    ],
)
def test_what_has_no_bounds_is_refused_with_what_to_do(function: Callable[[Tensor], Tensor], why: str) -> None:
    with pytest.raises(rp.UnsupportedModelError, match=why):
        trace(Of(function), torch.rand(2, 3))


def test_a_transform_by_matrices_is_bounded_as_the_message_says() -> None:
    unit = torch.fft.fft(torch.eye(4))
    case = make_case(
        Of(lambda h: (h @ unit.real.to(h)) ** 2 + (h @ unit.imag.to(h)) ** 2), (3,), eps=0.1, gamma=0, seed=1
    )
    assert violations(bounds_of(case, relax=True), observed(case)) == []
    h = case.model.first(case.x.lower).view(-1, 3, 4)
    torch.testing.assert_close(case.model(case.x.lower), torch.fft.fft(h).abs().flatten(1) ** 2)


def test_a_planted_fault_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    case = _case("sorted", 0.4)
    hull = observed(case, samples=20, ascents=20)
    monkeypatch.setattr(BUILTIN.entry(Ranked), "forward", lambda layer, x: Interval.point(layer.forward(x.center)))
    assert violations(bounds_of(case, gradients=False), hull)
