"""The package's own certifiers: registered, sound, ordered in tightness, differentiable."""

from __future__ import annotations

import pytest
import torch
from support.toys import Unbounded
from torch import nn

import robust_plugins as rp
from robust_plugins.errors import ArgumentError

NAMES = [
    "interval:ibp",
    "interval:ibp(outward=True)",
    "interval:crown-ibp",
    "interval:crown-ibp(outward=True)",
    "interval:crown",
    "interval:crown(memory=2000, outward=True)",
    "interval:alpha-crown(steps=3)",
    "interval:alpha-crown(steps=3, memory=5000)",
    "interval:alpha-crown(steps=3, outward=True)",
]


def _model(image: bool = False) -> nn.Module:
    torch.manual_seed(0)
    if image:
        return nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 4))
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 4))


@pytest.mark.parametrize("image", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_bounds_hold_on_samples(name: str, image: bool) -> None:
    model, certifier = _model(image), rp.certifier(name)
    x = torch.rand(5, *((1, 4, 4) if image else (6,)))
    y = model(x).argmax(1)
    ball = rp.Linf(eps=0.05, clip=(0, 1))
    spec = rp.margin_spec(y, 4, dtype=x.dtype)
    logits, margins = certifier.bounds(model, x, ball), certifier.bounds(model, x, ball, spec)
    for z in ball.sample(x, 200, torch.Generator().manual_seed(0), draw="corner"):
        out = model(z)
        assert bool(logits.contains(out, tolerance=1e-5).all())
        assert bool(margins.contains((spec @ out.unsqueeze(2)).squeeze(2), tolerance=1e-5).all())


def test_merging_the_margins_and_relaxing_are_tighter() -> None:
    model = _model()
    x = torch.rand(8, 6)
    y, ball = model(x).argmax(1), rp.Linf(eps=0.1, clip=(0, 1))
    spec = rp.margin_spec(y, 4, dtype=x.dtype)
    ibp, crown = (rp.certifier(n) for n in ("interval:ibp", "interval:crown"))
    apart = rp.apply_spec(ibp.bounds(model, x, ball), spec)
    merged = ibp.bounds(model, x, ball, spec)
    relaxed = crown.bounds(model, x, ball, spec)
    assert bool((apart.width >= merged.width - 1e-6).all() and (apart.width > merged.width).any())
    assert bool((merged.width >= relaxed.width - 1e-6).all() and (merged.width > relaxed.width).any())


@pytest.mark.parametrize("name", NAMES)
def test_certificates(name: str) -> None:
    model, certifier = _model(), rp.certifier(name)
    x = torch.rand(6, 6)
    y = model(x).argmax(1)
    certificate = certifier(model, x, y, rp.Linf(eps=1e-4, clip=(0, 1)))
    assert certificate.certified.all()
    assert ("floating-point" in certificate.soundness) == ("outward" in name)
    unsupported = nn.Sequential(nn.Linear(6, 4), Unbounded())
    certificate = certifier(unsupported, x, unsupported(x).argmax(1), rp.Linf(eps=0.1, clip=(0, 1)))
    assert set(certificate.verdicts) == {rp.Verdict.UNSUPPORTED}
    assert "Unbounded" in certificate.messages[0]


@pytest.mark.parametrize("name", NAMES)
def test_differentiable_in_the_weights(name: str) -> None:
    model, certifier = _model().double(), rp.certifier(name)
    x = torch.rand(3, 6, dtype=torch.float64)
    ball = rp.Linf(eps=0.02, clip=None)
    spec = rp.margin_spec(torch.tensor([0, 1, 2]), 4, dtype=x.dtype)

    def loss() -> torch.Tensor:
        return certifier.bounds(model, x, ball, spec).lower.sum()

    (slope,) = torch.autograd.grad(loss(), model[0].weight)
    with torch.no_grad():
        direction = torch.randn_like(slope) * 1e-6
        model[0].weight += direction
        up = loss()
        model[0].weight -= 2 * direction
        down = loss()
    torch.testing.assert_close((up - down) / 2, (slope * direction).sum(), rtol=1e-3, atol=1e-12)


def test_memory_must_be_positive() -> None:
    with pytest.raises(ArgumentError, match="memory"):
        rp.certifier("interval:crown", memory=0)


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("steps", 0),
        ("steps", True),
        ("learning_rate", 0.0),
        ("learning_rate", float("inf")),
        ("decay", 1.5),
        ("memory", 0),
    ],
)
def test_parameters_of_the_search_are_checked(parameter: str, value: float) -> None:
    with pytest.raises(ArgumentError, match=parameter):
        rp.certifier("interval:alpha-crown", **{parameter: value})


def test_the_last_step_is_a_seventh_of_the_first_unless_a_decay_is_given() -> None:
    model, x, ball = _relus(), torch.rand(2, 6), rp.Linf(eps=0.5, clip=(0, 1))
    found = [
        rp.certifier("interval:alpha-crown", steps=7, decay=decay).bounds(model, x, ball).lower
        for decay in (None, (1 / 7) ** (1 / 7), 0.5)
    ]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_a_certificate_stops_where_bounds_go_on() -> None:
    model, alpha, crown = _relus(), rp.certifier("interval:alpha-crown"), rp.certifier("interval:crown")
    x = torch.rand(8, 6, generator=torch.Generator().manual_seed(1))
    y, ball = model(x).argmax(1), rp.Linf(eps=0.5, clip=(0, 1))
    spec = rp.margin_spec(y, 4, dtype=x.dtype)
    with torch.no_grad():
        loose, tight = crown.bounds(model, x, ball, spec), alpha.bounds(model, x, ball, spec)
    assert bool(((tight.lower >= loose.lower) & (tight.upper <= loose.upper)).all())
    certificate, usual = alpha(model, x, y, ball), crown(model, x, y, ball)
    assert int(certificate.certified.sum()) > int(usual.certified.sum()) > 0
    torch.testing.assert_close(certificate.margin[usual.certified], usual.margin[usual.certified])
    assert bool((certificate.margin <= tight.lower.amin(1) + 1e-5).all())
    assert bool((tight.lower.amin(1) > 1.01 * usual.margin)[usual.certified].any())


def _relus() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 4)
    )


LINEAR = ["interval:crown", "interval:crown-ibp", "interval:alpha-crown"]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("memory", [1e9, float("nan"), True, 0])
def test_memory_is_a_whole_number(name: str, memory: float) -> None:
    with pytest.raises(rp.ArgumentError, match=r"`memory` is .*(whole number of bytes|an integer)"):
        rp.certifier(name, memory=memory)


@pytest.mark.parametrize("name", LINEAR)
def test_a_specification_has_rows(name: str) -> None:
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))
    with pytest.raises(rp.ArgumentError, match="rows > 0"):
        rp.certifier(name).bounds(model, torch.rand(2, 2), rp.Linf(eps=0.1, clip=None), torch.zeros(2, 0, 3))


def test_extreme_parameters_and_radii_stay_as_tight_as_crown() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    x = torch.rand(2, 3)
    for eps, more in ((1e33, {}), (0.1, {"learning_rate": 1e300}), (0.1, {"memory": 10**30})):
        ball = rp.Linf(eps=eps, clip=None)
        plain = rp.certifier("interval:crown").bounds(model, x, ball)
        found = rp.certifier("interval:alpha-crown", **more).bounds(model, x, ball)
        assert bool((found.lower >= plain.lower).all())
        assert bool((found.upper <= plain.upper).all())
