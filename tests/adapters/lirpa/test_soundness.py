"""No point of the ball lies outside the bounds; what auto_LiRPA bounds wrongly is repaired or refused."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support.bounds_checker import sound, violation
from support.length import length
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.adapters.lirpa import CROWN, CROWNIBP, IBP, AlphaCROWN, compat
from robust_plugins.adapters.lirpa.bounded import Recipe, bounded
from robust_plugins.adapters.lirpa.unsound import refuse_unsound

CERTIFIERS = [IBP(), CROWNIBP(), CROWN(), AlphaCROWN(steps=2)]
LINEAR = CERTIFIERS[1:]
LEGACY = compat.load().legacy
legacy = pytest.mark.skipif(not LEGACY, reason="about the releases before 0.4")


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.conv(x))


class Call(nn.Module):
    """A function as a layer."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)  # type: ignore[operator]


def some_model(seed: int) -> nn.Module:
    """A small random network, dense or convolutional, with two or three hidden layers."""
    chosen = random.Random(seed)
    torch.manual_seed(seed)
    activation = chosen.choice([nn.ReLU, nn.Tanh, nn.Sigmoid])
    norm = chosen.randint(0, 1)
    layers: list[nn.Module] = []
    if chosen.random() < 0.5:
        width = chosen.randint(2, 8)
        layers += [nn.Flatten(), nn.Linear(32, width), *[nn.BatchNorm1d(width)] * norm, activation()]
        layers += [nn.Linear(width, 5), activation(), nn.Dropout(0.3), nn.Linear(5, 3)]
    else:
        stride, padding = chosen.randint(1, 2), chosen.randint(0, 2)
        layers += [nn.Conv2d(2, 3, 3, stride, padding), *[nn.BatchNorm2d(3)] * norm, activation()]
        layers += chosen.choice([[], [Residual(3)], [nn.Conv2d(3, 2, 2, padding=1), nn.ReLU()]])
        layers += chosen.choice([[], [nn.AvgPool2d(2, 1, 1)], [nn.AdaptiveAvgPool2d(1)]])
        layers += [nn.Flatten(), nn.LazyLinear(5), nn.ReLU(), nn.Linear(5, 3)]
    model = nn.Sequential(*layers)
    model(torch.randn(16, 2, 4, 4) + 0.5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 1.5
    return model.eval()


seeds = st.integers(0, 2**32 - 1)
# Built in the tests: the run-time type checks draw random numbers, which strategies must not.
balls = st.tuples(
    st.sampled_from([rp.Linf, rp.Linf, rp.L2, rp.L1]),
    st.sampled_from([1e-4, 0.03, 0.2, 0.6]),
    st.sampled_from([(0.0, 1.0), None]),
)
Drawn = tuple[type[rp.Ball], float, tuple[float, float] | None]


def inputs(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(2, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=dtype)


def supporting(model: nn.Module) -> list[rp.Certifier]:
    """The certifiers that can bound it: 0.3 cannot optimise smooth activations between convolutions."""
    kinds = {type(module) for module in model.modules()}
    return CERTIFIERS[:3] if LEGACY and nn.Conv2d in kinds and kinds & {nn.Tanh, nn.Sigmoid} else CERTIFIERS


@settings(max_examples=12)
@given(seeds, balls, st.sampled_from([torch.float32, torch.float64]))
def test_no_point_of_the_ball_is_outside_the_bounds(seed: int, drawn: Drawn, dtype: torch.dtype) -> None:
    ball = drawn[0](eps=drawn[1], clip=drawn[2])
    model, x = some_model(seed).to(dtype), inputs(dtype)
    spec = rp.margin_spec(torch.tensor([0, 2]), 3, dtype=dtype)
    for certifier in supporting(model):
        logits, margins = certifier.bounds(model, x, ball), certifier.bounds(model, x, ball, spec)
        assert sound(model, x, ball, logits, samples=20), certifier
        assert sound(model, x, ball, margins, spec, samples=20), certifier
        if isinstance(certifier, IBP):
            slack = 1e-5 * (1 + float(logits.upper.detach().abs().max()))
            assert (margins.lower >= rp.apply_spec(logits, spec).lower - slack).all()


@pytest.mark.slow
@settings(max_examples=length(24, 300))
@given(seeds, balls)
def test_no_point_of_the_ball_is_outside_the_bounds_of_many_models(seed: int, drawn: Drawn) -> None:
    ball = drawn[0](eps=drawn[1], clip=drawn[2])
    model = some_model(seed)
    for certifier in supporting(model):
        assert sound(model, inputs(), ball, certifier.bounds(model, inputs(), ball)), certifier


@dataclass(frozen=True, kw_only=True)
class Tightened(IBP):
    """Bounds that are 1 % too tight."""

    def propagate(self, model: nn.Module, x: Tensor, ball: rp.Ball, spec: Tensor | None) -> rp.Interval:
        found = super().propagate(model, x, ball, spec)
        return rp.Interval(found.lower + 0.005 * found.width, found.upper - 0.005 * found.width)


def test_bounds_one_percent_too_tight_are_caught() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(32, 3))
    for ball in (rp.Linf(eps=0.1, clip=(0.0, 1.0)), rp.L2(eps=0.1, clip=None)):
        assert sound(model, inputs(), ball, IBP().bounds(model, inputs(), ball))
        assert not sound(model, inputs(), ball, Tightened().bounds(model, inputs(), ball))


LAYERS: dict[str, object] = {
    "LeakyReLU": nn.LeakyReLU(0.1),
    "abs": torch.abs,
    "exp": torch.exp,
    "x * x": lambda x: x * x,
    "x * tanh x": lambda x: x * x.tanh(),
    "x * sum x": lambda x: x * x.sum(1, keepdim=True),
    "constant - x": lambda x: 2 - x,
    "x * negative constant": lambda x: x * -3,
    "softplus": lambda x: (x.exp() + 1).log(),
    "reciprocal": lambda x: 1 / (x.exp() + 1),
    "quotient": lambda x: x / (x.exp() + 1),
    "SiLU": nn.SiLU(),
    "GELU": nn.GELU(approximate="tanh"),
    "sine": torch.sin,
    "concatenation": lambda x: torch.cat([x[:, 3:].tanh(), x[:, :3]], 1),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.slow
def test_further_layers_are_sound_or_refused(name: str) -> None:
    torch.manual_seed(0)
    layer = LAYERS[name] if isinstance(LAYERS[name], nn.Module) else Call(LAYERS[name])
    model = nn.Sequential(nn.Flatten(), nn.Linear(32, 6), layer, nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
    bounded_by = 0
    for ball in (rp.Linf(eps=0.02, clip=None), rp.Linf(eps=0.3, clip=(0.0, 1.0)), rp.L2(eps=0.4, clip=None)):
        for certifier in CERTIFIERS:
            try:
                bounds = certifier.bounds(model, inputs(), ball)
            except rp.UnsupportedModelError:
                continue
            bounded_by += 1
            assert sound(model, inputs(), ball, bounds), (certifier, ball)
    assert bounded_by


def image_model(middle: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    layers = nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), middle, nn.Conv2d(3, 3, 3, padding=1), nn.Tanh()
    model = nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, 3))
    model(torch.rand(2, 2, 6, 6))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 1.7
    return model.eval()


def directly(
    model: nn.Module, x: Tensor, ball: rp.Ball, method: str = "CROWN", *, mode: str = "matrix", norm: float = math.inf
) -> rp.Interval:
    """auto_LiRPA's own bounds, without the adapter."""
    lirpa = compat.load()
    with lirpa.tracing([]):
        module = lirpa.module_class(model, x, bound_opts={"conv_mode": mode})
    box = ball.box(x)
    ptb = lirpa.perturbation_class(eps=ball.eps, norm=norm, x_L=box.lower, x_U=box.upper)
    with torch.no_grad():
        return rp.Interval(*module.compute_bounds(x=(lirpa.tensor_class(x, ptb),), method=method))


IMAGES = torch.rand(4, 2, 6, 6, generator=torch.Generator().manual_seed(2))
BALL = rp.Linf(eps=0.1, clip=(0.0, 1.0))


@legacy
@pytest.mark.parametrize("pool", [(3, 2, 1), (3, 2, 0), (2, 1, 0)], ids=["padded", "overlapping", "stride 1"])
def test_average_pooling_is_repaired(pool: tuple[int, int, int]) -> None:
    model = image_model(nn.AvgPool2d(*pool))
    assert violation(model, IMAGES, BALL, directly(model, IMAGES, BALL)) > 1e-3  # the backend's fault
    for certifier in LINEAR:
        assert sound(model, IMAGES, BALL, certifier.bounds(model, IMAGES, BALL))
    called = image_model(Call(lambda x: F.avg_pool2d(x, *pool)))
    y = called(IMAGES).argmax(1)
    for certifier in LINEAR:
        certificate = certifier(called, IMAGES, y, BALL)
        assert set(certificate.verdicts) == {rp.Verdict.UNSUPPORTED}
        assert "average pooling" in certificate.messages[0]
    assert sound(called, IMAGES, BALL, IBP().bounds(called, IMAGES, BALL))


@legacy
def test_average_pooling_that_does_not_count_its_padding_is_refused() -> None:
    model = image_model(nn.AvgPool2d(3, 2, 1, count_include_pad=False))
    for certifier in CERTIFIERS:
        with pytest.raises(rp.UnsupportedModelError, match="computes something else"):
            certifier.bounds(model, IMAGES, BALL)


@legacy
def test_square_roots_are_refused() -> None:
    torch.manual_seed(1)
    root = Call(lambda x: (x.exp() + 4).sqrt())
    model = nn.Sequential(nn.Flatten(), nn.Linear(72, 10), root, nn.Linear(10, 3))
    with torch.no_grad():
        model[1].weight *= 3
    ball = rp.Linf(eps=0.05, clip=None)
    assert violation(model, IMAGES, ball, directly(model, IMAGES, ball)) > 1e-4  # the backend's fault
    for certifier in LINEAR:
        with pytest.raises(rp.UnsupportedModelError, match="square root"):
            certifier.bounds(model, IMAGES, ball)
    assert sound(model, IMAGES, ball, IBP().bounds(model, IMAGES, ball))


@legacy
def test_products_of_two_weights_are_repaired() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.scale = nn.Parameter(torch.randn(3, 72)), nn.Parameter(torch.tensor([2.0]))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x.flatten(1), self.weight * self.scale)

    torch.manual_seed(0)
    model = nn.Sequential(Scaled(), nn.Linear(3, 3))
    assert violation(model, IMAGES, BALL, directly(model, IMAGES, BALL, "IBP")) > 0.1  # the backend's fault
    for certifier in CERTIFIERS:
        assert sound(model, IMAGES, BALL, certifier.bounds(model, IMAGES, BALL))


@legacy
def test_a_norm_behind_a_normalisation_is_repaired() -> None:
    class Normalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.rand(2, 1, 1))
            self.net = image_model(nn.Identity())

        def forward(self, x: Tensor) -> Tensor:
            return self.net((x - self.mean) / 0.5)

    model, ball = Normalised().eval(), rp.L2(eps=0.5, clip=None)
    raw = directly(model, IMAGES, ball, "IBP", norm=2.0)
    assert violation(model, IMAGES, ball, raw) > 1e-2  # the backend's fault
    for certifier in CERTIFIERS:
        assert sound(model, IMAGES, ball, certifier.bounds(model, IMAGES, ball))


def node(name: str, **attributes: object) -> object:
    made = type(name, (nn.Module,), {})()
    made.__dict__.update({"inputs": [0, 1], "attr": {}, **attributes})
    return made


def exponent(value: float) -> object:
    return node("BoundConstant", forward=lambda: torch.tensor(value))


def tile(before: tuple[int, ...], after: tuple[int, ...]) -> object:
    return node("BoundTile", inputs=[node("BoundRelu", output_shape=before)], output_shape=after)


AVERAGE = {"padding": [1, 1], "kernel_size": [3, 3], "stride": [2, 2], "input_shape": (1, 3, 6, 6)}


@pytest.mark.parametrize(
    ("bad", "methods"),
    [
        (node("BoundMaxPool"), {"alpha-CROWN"}),  # refused in 0.3 as well
        (node("BoundAveragePool", **AVERAGE), {"IBP", "CROWN-IBP", "CROWN", "alpha-CROWN"}),
        (node("BoundPow", inputs=[0, exponent(2.0)]), {"CROWN-IBP", "CROWN", "alpha-CROWN"}),
        (node("BoundPow", inputs=[0, exponent(1.5)]), {"CROWN-IBP", "CROWN", "alpha-CROWN"}),
        (node("BoundPow", inputs=[0, exponent(-1.0)]), {"IBP", "CROWN-IBP", "CROWN", "alpha-CROWN"}),
        (node("BoundPow", inputs=[0, exponent(3.0)]), set()),
        (node("BoundSqr"), set()),
        (tile((2, 3), (2, 6)), {"CROWN-IBP", "CROWN", "alpha-CROWN"}),
        (tile((2, 3), (2, 3, 3)), {"CROWN-IBP", "CROWN", "alpha-CROWN"}),
        (tile((2, 1), (2, 6)), set()),
        (node("BoundMul", inputs=["x", "x"]), {"CROWN-IBP", "CROWN", "alpha-CROWN"}),
        (node("BoundAveragePool", **{**AVERAGE, "attr": {"count_include_pad": 1}}), set()),
        (node("BoundMul", inputs=["x", "y"]), set()),
    ],
)
def test_what_0_7_bounds_wrongly_is_refused_there(bad: nn.Module, methods: set[str]) -> None:
    """Against a graph made by hand: that version is not installed."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(32, 3))
    real = bounded(model, inputs(), Recipe())
    newer = replace(real, backend=replace(real.backend, version=(0, 7, 1)))
    newer.module = SimpleNamespace(children=lambda: [bad])
    for method in ("IBP", "CROWN-IBP", "CROWN", "alpha-CROWN"):
        if method in methods:
            with pytest.raises(rp.UnsupportedModelError, match=r"0\.7\.1 is unsound"):
                refuse_unsound(newer, model, method, patches=True)
        else:
            refuse_unsound(newer, model, method, patches=True)
