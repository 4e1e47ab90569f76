"""What a certificate states, and how explanation certifiers are asked for."""

from __future__ import annotations

import pytest
import torch
from support.drawn_networks import Drawn
from torch import nn

import robust_plugins as rp
from robust_plugins.explanations.band import Band
from robust_plugins.explanations.bounds.adjoint import Adjoint
from robust_plugins.intervals import Interval, crown, trace
from robust_plugins.testing import fresh_registry  # noqa: F401 (a fixture)
from robust_plugins.testing.networks import mlp_case


def _certificate(value, lower, upper, *, delta: float = 1.0) -> rp.ExplanationCertificate:
    value, lower, upper = (torch.tensor([t], dtype=torch.float64) for t in (value, lower, upper))
    return rp.ExplanationCertificate(
        gradient=Interval(lower, upper),
        value=value,
        delta=torch.full_like(value, delta),
        of="logit",
        verdicts=(rp.Verdict.UNKNOWN,),
        messages=("",),
        seconds=0.0,
        soundness="",
        rounding=torch.zeros(1, dtype=torch.float64),
    )


def test_width_and_deviation() -> None:
    found = _certificate([3.0, 4.0], [2.0, 4.0], [3.5, 4.5], delta=1.0)
    assert found.width.tolist() == [[1.5, 0.5]]
    assert found.robust.tolist() == [[False, True]]
    assert found.deviation.item() == pytest.approx((1 + 0.25) ** 0.5 / 5)
    assert not _certificate([0.0], [-torch.inf], [torch.inf], delta=torch.inf).robust.item()
    assert _certificate([0.0], [0.0], [0.0]).deviation.item() == 0
    assert _certificate([0.0], [0.0], [0.1]).deviation.item() == torch.inf


def test_top_features_are_those_of_largest_magnitude() -> None:
    found = _certificate([-3.0, 1.0, 2.0], [-3.5, 0.0, 1.5], [-2.5, 1.2, 2.4])
    assert found.keeps_top(1).item()  # at least 2.5 against at most 2.4
    assert found.keeps_top(2).item()  # at least 1.5 against at most 1.2
    assert found.keeps_top(3).item()
    assert not _certificate([-3.0, 1.0], [-3.5, 0.0], [-1.0, 1.0]).keeps_top(1).item()
    assert not _certificate([3.0, 1.0], [-3.5, 0.0], [3.0, 0.5]).keeps_top(1).item()
    for k in (0, 4):
        with pytest.raises(rp.ArgumentError, match="from 1 to 3"):
            found.keeps_top(k)


def test_signs_and_targets() -> None:
    assert _certificate([1.0, -1.0, 0.0], [0.1, -2.0, 0.0], [2.0, -0.1, 0.0]).keeps_sign().item()
    assert not _certificate([1.0, 0.0], [0.1, 0.0], [2.0, 0.1]).keeps_sign().item()
    assert not _certificate([1.0], [0.0], [2.0]).keeps_sign().item()
    found = _certificate([1.0, 0.0], [0.0, 0.0], [2.0, 1.0])
    target = torch.tensor([[5.0, 5.0]], dtype=torch.float64)  # 3 and 4 away: distance 5
    assert found.excludes(target, 4.9).item()
    assert not found.excludes(target, 5.1).item()


def test_norms_are_rounded_to_the_safe_side() -> None:
    """In float32 the norm of many components is off by more than the last digit; no claim is made of that."""
    torch.manual_seed(0)
    ends, value = torch.rand(50, 3000), torch.rand(50, 3000)
    certificate = rp.ExplanationCertificate(
        gradient=Interval(value - ends, value + ends), value=value, delta=torch.ones(1, 3000), of="logit",
        verdicts=(rp.Verdict.UNKNOWN,) * 50, messages=("",) * 50, seconds=0.0, soundness="", rounding=torch.zeros(50),
    )  # fmt: skip
    low, up = certificate.gradient.lower.double(), certificate.gradient.upper.double()
    exact = torch.maximum(up - value.double(), value.double() - low).norm(dim=1) / value.double().norm(dim=1)
    assert (certificate.deviation.double() >= exact).all()
    assert (certificate.deviation.double() <= exact * (1 + 1e-6)).all()
    target = value + 2
    distance = torch.maximum(low - target.double(), target.double() - up).norm(dim=1)
    assert not certificate.excludes(target, distance).any()
    assert certificate.excludes(target, distance * (1 - 1e-6)).all()


def test_every_claim_is_made_of_the_widened_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room as large as the bounds' distance from what would break a claim withdraws each of the five claims."""
    case = mlp_case(normalised=False)
    ball, certifier = rp.Linf(eps=1e-5, clip=None), rp.explanation_certifier("interval:relaxed")

    def claims() -> list[torch.Tensor]:
        found = certifier(case.model, case.x, case.y, ball, delta=0.5)
        far = found.value + 1
        flags = (found.robust.flatten(1).all(1), found.keeps_top(1), found.keeps_sign(), found.excludes(far, 0.1))
        return [*flags, found.deviation < 0.5]

    before = claims()
    assert all(flags.any() for flags in before), before
    monkeypatch.setattr(Band, "allowance", lambda self, bounds: torch.full_like(self.error, 2.0))
    assert not any(flags.any() for flags in claims())


def test_interval_propagation_says_that_it_is_too_wide_for_loss_gradients() -> None:
    case = mlp_case(normalised=False)
    for name, of, delta, said in (
        ("interval:ibp", "loss", 1e-9, True),
        ("interval:ibp", "loss", torch.inf, True),
        ("interval:ibp", "loss", 1e9, False),
        ("interval:ibp", "logit", 1e-9, False),
        ("interval:relaxed", "loss", 1e-9, False),
    ):
        found = rp.explanation_certifier(name)(case.model, case.x, case.y, case.ball, of=of, delta=delta)
        assert ("use interval:relaxed" in found.advice) is said, (name, of, delta)
    printed = str(rp.compare_explanations(case.model, case.x, case.y, case.ball, ["interval:ibp"], of="loss", seed=0))
    assert printed.count("use interval:relaxed") == 1


def test_a_width_for_each_feature() -> None:
    case = mlp_case(normalised=False)
    certifier = rp.explanation_certifier("interval:relaxed")
    width = certifier(case.model, case.x, case.y, case.ball, delta=0.0).width
    delta = width.amax(0) * torch.tensor([1.0, 1.0, 0.5, 1.0, 1.0])
    found = certifier(case.model, case.x, case.y, case.ball, delta=delta)
    assert torch.equal(found.robust, width <= delta)
    assert found.robust[:, [0, 1, 3, 4]].all()
    assert [v is rp.Verdict.CERTIFIED for v in found.verdicts] == found.robust.all(1).tolist()


def test_chunks_of_rows_do_not_matter() -> None:
    model = Drawn([1, 2], image=False, smooth=True, seed=0)
    x = torch.rand((2, *model.features), dtype=torch.float64)
    y, ball = torch.tensor([0, 1]), rp.Linf(eps=0.05, clip=None)
    for effort in (0, 2):
        whole, chunked = (
            rp.explanation_certifier("interval:relaxed", effort=effort, memory=memory).bounds(
                model, x, y, ball, of="loss"
            )
            for memory in (2**30, 2**10)
        )
        torch.testing.assert_close(whole.lower, chunked.lower)
        torch.testing.assert_close(whole.upper, chunked.upper)


class _Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2)
        self.last = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.norm(self.conv(x))
        z = nn.functional.max_pool2d(x * torch.sigmoid(z) + torch.relu(x - z), 2)
        return torch.softmax(self.last(torch.cat((z, -z), 1)[:, :2].flatten(1)), 1)


def test_the_adjoint_of_a_point_is_automatic_differentiation() -> None:
    model = _Residual().double().eval()
    x = torch.rand(3, 2, 4, 4, dtype=torch.float64)
    coefficients = torch.randn(3, 3, dtype=torch.float64)
    network = trace(model, x)
    adjoint = Adjoint.of(network, network.forward(Interval.point(x)))
    found = adjoint.forward(Interval.point(coefficients))[-1]
    z = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad((model(z) * coefficients).sum(), z)
    torch.testing.assert_close(found.lower, expected)
    torch.testing.assert_close(found.upper, expected)
    relaxed = crown(adjoint, Interval.point(coefficients))[-1]
    torch.testing.assert_close(relaxed.lower, expected)


def test_names_and_parameters() -> None:
    names = [info.name for info in rp.explanation_certifiers()]
    assert {"interval:ibp", "interval:crown", "interval:relaxed", "lirpa:jacobian"} <= set(names)
    with pytest.raises(rp.UnknownNameError, match="interval:relaxed"):
        rp.explanation_certifier("interval:relax")
    with pytest.raises(rp.ArgumentError, match="effort"):
        rp.explanation_certifier("interval:relaxed(effort=4)")
    with pytest.raises(rp.ArgumentError, match="memory"):
        rp.explanation_certifier("interval:crown", memory=0)


class _Plugin:
    @rp.hookimpl
    def register_explanation_certifiers(self, register) -> None:
        register("mylab:nothing", lambda: object())


def test_a_factory_must_return_a_certifier(fresh_registry) -> None:  # noqa: F811
    rp.register(_Plugin(), "mylab")
    with pytest.raises(rp.PluginError, match=r"no rp\.ExplanationCertifier"):
        rp.explanation_certifier("mylab:nothing")
