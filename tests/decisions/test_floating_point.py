"""Bounds with outward rounding hold for every order of summation, and for the exact network."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import pytest
import torch
from support.length import length
from support.summation import KINDS, ORDERS, RATIONAL, cancelling, evaluated, exactly
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.intervals import rounding

NAMES = [
    "interval:ibp",
    "interval:crown-ibp",
    "interval:crown",
    "interval:alpha-crown(steps=2)",
    "interval:alpha-crown(steps=2, memory=3000)",  # through the graph
]


def points(x: Tensor, ball: rp.Ball, draw: torch.Generator) -> list[Tensor]:
    """The center, corners, and points between."""
    return [x, *ball.sample(x, 2, draw, draw="corner"), *ball.sample(x, 1, draw)]


def computed(model: nn.Sequential, x: Tensor, ball: rp.Ball, draw: torch.Generator) -> Iterator[Tensor]:
    """What the network computes at points of the ball: by torch, and in other orders."""
    with torch.no_grad():
        for z in points(x, ball, draw):
            yield model(z)
            yield torch.cat([model(one) for one in z.split(1)])  # other kernels
            for order in ORDERS:
                yield evaluated(model, z, order, draw)


def violations(name: str, kind: str, dtype: torch.dtype, *, outward: bool, seeds: int, radii: tuple[float, ...]) -> int:
    """How many logits and margins lie outside, and how many decisions are not the certified ones."""
    found, certifier = 0, rp.certifier(name, outward=outward)
    for seed in range(seeds):
        draw = torch.Generator().manual_seed(seed)
        model, x = cancelling(kind, dtype, draw)
        for eps in radii:
            ball = rp.Linf(eps=eps, clip=None)
            y = model(x).argmax(1)
            spec = rp.margin_spec(y, 3, dtype=dtype)
            with torch.no_grad():
                logits, margins = certifier.bounds(model, x, ball), certifier.bounds(model, x, ball, spec)
            certified = certifier(model, x, y, ball).certified
            for out in computed(model, x, ball, draw):
                rows = (spec @ out.unsqueeze(2)).squeeze(2)
                found += int((~logits.contains(out)).sum()) + int((~margins.contains(rows)).sum())
                found += int((certified & (out.argmax(1) != y)).sum())
            if kind in RATIONAL:
                for z in (x, *ball.sample(x, 1, draw, draw="corner")):
                    for i in range(len(x)):
                        exact = exactly(model, [Fraction(v) for v in z[i].tolist()])
                        ends = zip(logits.lower[i].tolist(), exact, logits.upper[i].tolist(), strict=True)
                        found += sum(not Fraction(low) <= v <= Fraction(up) for low, v, up in ends)
    return found


def test_all_that_round_outward_take_part() -> None:
    assert {name.split("(")[0] for name in NAMES} == {c.name for c in rp.certifiers() if "outward" in c.parameters}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("interval:crown-ibp", kind) for kind in KINDS),
        *((name, kind) for name in NAMES for kind in ("stable", "residual", "smooth")),
    ],
)
def test_nothing_leaves_the_bounds_in_any_order_of_summation(name: str, kind: str) -> None:
    dtype = torch.float64 if kind in ("hidden", "image") else torch.float32
    assert violations(name, kind, dtype, outward=True, seeds=1, radii=(0.0, 1e-2)) == 0


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_nothing_leaves_the_bounds_of_more_networks(name: str, kind: str, dtype: torch.dtype) -> None:
    assert violations(name, kind, dtype, outward=True, seeds=length(2, 20), radii=(0.0, 1e-6, 1e-4, 1e-2)) == 0


def test_without_outward_rounding_it_does() -> None:
    assert violations("interval:crown", "stable", torch.float32, outward=False, seeds=1, radii=(0.0,)) > 0


@pytest.mark.parametrize("name", NAMES)
def test_errors_that_are_not_counted_are_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for gamma in ("once", "kappa"):
        monkeypatch.setattr(rounding, gamma, lambda *_: 0.0)
    monkeypatch.setattr(rounding, "lessened", lambda number, by: number - by)
    assert violations(name, "stable", torch.float32, outward=True, seeds=1, radii=(0.0,)) > 0


@pytest.mark.parametrize("name", NAMES)
def test_a_model_of_one_number_a_sample(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1), nn.Flatten(0))
    x = torch.rand(3, 2)
    found = rp.certifier(name, outward=True)(model, x, (model(x) > 0).long(), rp.Linf(eps=1e-3, clip=None))
    assert found.certified.all()
