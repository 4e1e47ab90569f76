"""Claims about explanations are never made of rounding noise, and bounds hold the gradient however small the ball."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.explanations import certifiers
from robust_plugins.explanations.band import Band
from robust_plugins.testing import adversarial_gradients

NAMES = ("interval:ibp", "interval:crown", "interval:relaxed", "interval:relaxed(effort=1)")
ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Softplus, nn.ELU)


class Cancelling(nn.Module):
    """The same network twice, its units in another order, subtracted: its true gradient is zero everywhere."""

    def __init__(self, width: int, activation: type[nn.Module], seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.activation, self.last = nn.Linear(8, width), activation(), nn.Linear(width, 3)
        order = torch.randperm(width)
        self.again, self.minus = nn.Linear(8, width), nn.Linear(width, 3)
        with torch.no_grad():
            self.again.weight.copy_(self.first.weight[order])
            self.again.bias.copy_(self.first.bias[order])
            self.minus.weight.copy_(self.last.weight[:, order])

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.activation(self.first(x))) - self.minus(self.activation(self.again(x)))


def deep(depth: int, width: int, activation: type[nn.Module], seed: int, *, dead: bool = False) -> nn.Module:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for _ in range(depth):
        linear = nn.Linear(width, width)
        nn.init.kaiming_normal_(linear.weight)
        layers += [linear, activation()]
    if dead:  # no unit of the middle layer is ever open
        nn.init.constant_(layers[2 * (depth // 2)].bias, -50.0)
    return nn.Sequential(*layers, nn.Linear(width, 3))


def in_double(model: nn.Module, x: Tensor, y: Tensor, ball: rp.Ball, of: Any = "logit") -> Iterator[Tensor]:
    """Gradients in float64 at points that float32 can write, among them the ends of ascent on single components."""
    exact = deepcopy(model).double().eval()
    explained = rp.Explained.at(exact, x.double(), y, of)
    box = ball.box(x)
    around = rp.Linf(eps=ball.eps, clip=ball.clip)
    for _, found in adversarial_gradients(exact, x.double(), around, explained, samples=8, steps=4, components=3):
        yield found
    for z in ball.sample(x, 8, torch.Generator().manual_seed(0), draw="corner"):
        assert ((z >= box.lower) & (z <= box.upper)).all()
        yield explained.gradient(exact, z.double()).unsqueeze(0)


def violations(certificate: rp.ExplanationCertificate, found: Tensor) -> list[str]:
    """The statements that the true gradients `found`, (points, batch, features), contradict."""
    value, wrong = found[0], []  # the first is the true gradient at x
    low, up = certificate.gradient.lower.double(), certificate.gradient.upper.double()
    if ((found < low) | (found > up)).any():
        wrong.append("the bounds")
    if (certificate.robust & (found.amax(0) - found.amin(0) > certificate.delta.double())).any():
        wrong.append("a width")
    if (certificate.keeps_sign() & (found.sign() != certificate.value.sign()).any(2).any(0)).any():
        wrong.append("a sign")
    for k in (1, 2):
        top = torch.zeros_like(value, dtype=torch.bool).scatter(1, certificate.value.abs().topk(k).indices, True)
        size = found.abs()
        lost = size.masked_fill(~top, torch.inf).amin(2) <= size.masked_fill(top, 0).amax(2)
        if (certificate.keeps_top(k) & lost.any(0)).any():
            wrong.append(f"the top {k}")
    if any(certificate.excludes(target.to(certificate.value), 0.0).any() for target in (found[0], found[-1])):
        wrong.append("a target")
    length, moved = value.norm(dim=1), (found - value).norm(dim=2).amax(0)
    if (moved > certificate.deviation.double().nan_to_num(posinf=1e300) * length + 1e-300).any():
        wrong.append("a deviation")
    return wrong


@settings(max_examples=15)
@given(
    depth=st.sampled_from([1, 2, 4, 8, 20]),
    activation=st.sampled_from(ACTIVATIONS),
    eps=st.sampled_from([0.0, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4]),
    of=st.sampled_from(["logit", "margin", "loss"]),
    dead=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_deep_networks_on_tiny_balls(
    depth: int, activation: type[nn.Module], eps: float, of: Any, dead: bool, seed: int
) -> None:
    model = deep(depth, 12, activation, seed, dead=dead)
    x, y, ball = torch.rand(3, 12), torch.tensor([0, 1, 2]), rp.Linf(eps=eps, clip=(0.0, 1.0))
    found = torch.cat(list(in_double(model, x, y, ball, of)))
    delta = (found.amax(0) - found.amin(0)).amax().item() * 0.9
    for name in NAMES[:3]:
        certificate = rp.explanation_certifier(name)(model, x, y, ball, of=of, delta=delta)
        assert rp.Verdict.ERROR not in certificate.verdicts, certificate.messages
        assert not violations(certificate, found), name


@settings(max_examples=20)
@given(
    width=st.integers(2, 64),
    activation=st.sampled_from(ACTIVATIONS),
    eps=st.sampled_from([0.0, 1e-8, 1e-6, 1e-4]),
    double=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_a_gradient_of_zero_keeps_nothing_but_zero(
    width: int, activation: type[nn.Module], eps: float, double: bool, seed: int
) -> None:
    model, x, y = Cancelling(width, activation, seed), torch.rand(6, 8), torch.tensor([0, 1, 2, 0, 1, 2])
    if double:
        model, x = model.double(), x.double()
    for name in NAMES:
        found = rp.explanation_certifier(name)(model, x, y, rp.Linf(eps=eps, clip=None), delta=0.0)
        noise = found.value.abs().amax(1) > 0
        assert (found.gradient.contains(torch.zeros_like(x))).all(), name
        assert not (found.keeps_sign() & noise).any(), name
        assert not any(found.keeps_top(k).any() for k in (1, 3)), name
        assert not (found.robust.all(1) & noise).any(), name
        assert (found.deviation[noise] == torch.inf).all(), name
        assert not found.excludes(torch.zeros_like(x), 0.0).any(), name


def test_what_is_exactly_zero_stays_zero() -> None:
    """Closed gates, and inputs that no weight reads, have gradients of zero; that is no rounding and is kept."""
    model = deep(4, 12, nn.ReLU, 0, dead=True)
    x, y = torch.rand(3, 12), torch.tensor([0, 1, 2])
    for name in NAMES[:3]:
        found = rp.explanation_certifier(name)(model, x, y, rp.Linf(eps=1e-3, clip=None), delta=0.0)
        assert found.keeps_sign().all()
        assert (found.width == 0).all()
        assert (found.deviation == 0).all()
        assert found.verdicts == (rp.Verdict.CERTIFIED,) * 3
    unread = deep(1, 12, nn.ReLU, 1)
    with torch.no_grad():
        unread[0].weight[:, 3] = 0
    found = rp.explanation_certifier("interval:relaxed")(unread, x, y, rp.Linf(eps=1e-5, clip=None), delta=1.0)
    assert (found.gradient.lower[:, 3] == 0).all()
    assert (found.gradient.upper[:, 3] == 0).all()


def test_signs_and_tops_are_still_proved() -> None:
    """The room for rounding does not swallow what is far above it."""
    model, x, y = deep(3, 12, nn.Tanh, 0), torch.rand(20, 12), torch.zeros(20, dtype=torch.long)
    found = rp.explanation_certifier("interval:relaxed")(model, x, y, rp.Linf(eps=1e-5, clip=None), delta=1e-2)
    assert found.keeps_sign().double().mean() > 0.9
    assert found.keeps_top(1).double().mean() > 0.9
    assert all(v is rp.Verdict.CERTIFIED for v in found.verdicts)
    assert (found.rounding < 1e-4 * found.value.abs().amax(1)).all()


def _hidden_kinks() -> Iterator[tuple[nn.Module, Tensor]]:
    """One gate each, whose input is what is left of a sum that cancels, and a small feature.

    Only that feature can move in the ball of 1e-9, and half that far from x the gate switches. The sum's rounding
    in float32 is a hundred times larger.
    """
    torch.manual_seed(0)
    for trial in range(40):
        first = nn.Linear(31, 1)
        model, x = nn.Sequential(first, nn.ReLU(), nn.Linear(1, 2)), 0.5 + torch.rand(1, 31) / 2
        with torch.no_grad():
            first.weight[0, 30], x[0, 30] = 1, 0
            first.bias.copy_(-first(x)[0] + first.bias)
            left = deepcopy(first).double()(x.double()).item()
        x[0, 30] = -left + (0.5e-9 if trial % 2 else -0.5e-9)
        yield model, x


@pytest.mark.parametrize("name", NAMES[:3])
def test_a_kink_that_rounding_hides_is_in_the_bounds(name: str) -> None:
    ball, y = rp.Linf(eps=1e-9, clip=None), torch.tensor([0])
    for model, x in _hidden_kinks():
        exact, found = deepcopy(model).double(), ball.box(x)
        explained = rp.Explained.at(exact, x.double(), y, "logit")
        gradients = torch.stack([explained.gradient(exact, z.double()) for z in (found.lower, found.upper)])
        assert not torch.equal(gradients[0], gradients[1])  # the gate is open at one end alone
        certificate = rp.explanation_certifier(name)(model, x, y, ball, delta=1.0)
        assert certificate.gradient.to(torch.float64).contains(gradients).all()


def test_without_the_room_all_of_it_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: no room around bounds, then none around the inputs of nonlinear layers."""
    cancelling = test_a_gradient_of_zero_keeps_nothing_but_zero.hypothesis.inner_test  # type: ignore[attr-defined]
    tiny = test_deep_networks_on_tiny_balls.hypothesis.inner_test  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        patch.setattr(Band, "around", lambda self, bounds, allowance: bounds)
        patch.setattr(Band, "allowance", lambda self, bounds: torch.zeros_like(self.error))
        for double in (False, True):
            with pytest.raises(AssertionError):
                cancelling(width=32, activation=nn.ReLU, eps=1e-6, double=double, seed=0)
        with pytest.raises(AssertionError):
            tiny(depth=20, activation=nn.ReLU, eps=1e-6, of="logit", dead=False, seed=0)
    with monkeypatch.context() as patch:
        patch.setattr(certifiers, "widened", lambda network, values, inside=None: list(values))
        with pytest.raises(AssertionError):
            test_a_kink_that_rounding_hides_is_in_the_bounds("interval:relaxed")


def test_the_error_is_measured_with_constants_of_a_fixed_dtype() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.matrix = Cancelling(32, nn.ReLU, 0), torch.eye(8)

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x @ self.matrix)

    model, x, y = Constant(), torch.rand(4, 8), torch.tensor([0, 1, 2, 0])
    measured = Band.at(model, x, rp.Explained.at(model, x, y, "logit"))
    plain = Band.at(model.model, x, rp.Explained.at(model.model, x, y, "logit"))
    torch.testing.assert_close(measured.error, plain.error, rtol=1.0, atol=0.0)
    assert (measured.error > 0).all()


def test_measuring_leaves_no_weights_of_another_precision() -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 4)), nn.ReLU(), nn.Linear(4, 2))
    x, y = torch.rand(2, 4), torch.tensor([0, 1])
    Band.at(model, x, rp.Explained.at(model, x, y, "logit"))
    assert model[0].weight.dtype == torch.float32


def test_widths_of_training_have_no_room() -> None:
    model, x, y = deep(3, 12, nn.Tanh, 0), torch.rand(4, 12), torch.tensor([0, 1, 2, 0])
    certifier = rp.explanation_certifier("interval:ibp")
    assert (certifier.widths(model, x, y, rp.Linf(eps=0.0, clip=None), of="logit") == 0).all()
    ball = rp.Linf(eps=0.01, clip=None)
    widths = certifier.widths(model, x, y, ball, of="logit")
    torch.testing.assert_close(widths, certifier.bounds(model, x, y, ball, of="logit").width, rtol=1e-3, atol=1e-4)
    assert widths.requires_grad
