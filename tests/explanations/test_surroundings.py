"""Explanations are the same whatever modes surround the call and whatever shape the model has; changes are seen."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.explanations.task import Task
from robust_plugins.harness import call
from robust_plugins.testing.networks import Case
from robust_plugins.testing.traces import leaves_no_trace

explain = rp.explain
BALL = rp.Linf(eps=0.02, clip=(0.0, 1.0))


@contextmanager
def double_by_default() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "inference": torch.inference_mode,
    "no_grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "double": double_by_default,
}


class Network(nn.Module):
    """Convolution, batch normalisation, dropout, in-place ReLU, a constant made in forward."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.relu = nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(inplace=True)
        self.drop, self.last = nn.Dropout(0.5), nn.Linear(48, 3)
        nn.init.uniform_(self.norm.running_mean, -0.5, 0.5)
        nn.init.uniform_(self.norm.running_var, 0.5, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        h = self.relu(self.norm(self.conv(x)))
        return self.last(self.drop(h.flatten(1))) + torch.ones(3)


def _inputs() -> tuple[Tensor, Tensor]:
    return torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 0])


def _answers(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """What every public entry of the room says."""
    makers = {
        "saliency": explain.Saliency,
        "product": explain.InputXGradient,
        "integrated": lambda m: explain.IntegratedGradients(m, n_steps=3),
        "smooth": lambda m: explain.SmoothGrad(m, stdevs=0.1),
    }
    found: dict[str, Tensor] = {}
    for name, make in makers.items():
        found[name] = make(model).attribute(x, y)
        bounds = make(model).certify(x, y, ball=BALL, certifier="interval:ibp")
        found |= {f"{name} lower": bounds.lower, f"{name} upper": bounds.upper}
    for name in ("interval:ibp", "interval:crown", "interval:relaxed"):
        certifier = rp.explanation_certifier(name)
        certificate = certifier(model, x, y, BALL, of="loss", delta=0.1)
        found |= {f"{name} lower": certificate.gradient.lower, f"{name} value": certificate.value}
        found[f"{name} bounds"] = certifier.bounds(model, x, y, BALL, of="margin").upper
        found[f"{name} widths"] = certifier.widths(model, x, y, BALL, of="logit")
    attack = rp.explanation_attack("gradient:corner-pgd", corners=3, steps=2, restarts=1, rung=1)(
        model, x, y, BALL, seed=0
    )
    found |= {"attack": attack.x_adv, "deviation": attack.deviation}
    return {name: t.detach() for name, t in found.items()}


@pytest.mark.parametrize("mode", MODES)
def test_modes_around_a_call_change_no_answer(mode: str) -> None:
    model, (x, y) = Network().train(), _inputs()
    expected = _answers(model, x, y)
    with MODES[mode]():
        found = _answers(model, x, y)
        inside = x.clone()  # in inference mode a tensor that cannot be differentiated
        again = _answers(model, inside, y)
    for name, value in expected.items():
        assert value.abs().sum() > 0, name
        for other in (found[name], again[name]):
            assert other.dtype == value.dtype
            torch.testing.assert_close(other.clone(), value, rtol=1e-5, atol=1e-6, msg=name)
    assert model.training
    assert model.drop.training


def test_without_the_shared_call_inference_mode_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: the harness leaves the surrounding modes alone."""

    @contextmanager
    def as_they_are(dtype: torch.dtype) -> Iterator[None]:
        yield

    monkeypatch.setattr(call, "neutral", as_they_are)
    with pytest.raises((AssertionError, RuntimeError)):
        test_modes_around_a_call_change_no_answer("inference")


class Changing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 3)
        self.slope, self.scales = 0.1, [1.0]

    def forward(self, x: Tensor) -> Tensor:
        return self.last(nn.functional.leaky_relu(self.first(x) * self.scales[0], self.slope))


def _doubled(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
    return 2 * output


CHANGES: dict[str, Callable[[Changing], object]] = {
    "attribute": lambda m: setattr(m, "slope", 3.0),
    "list entry": lambda m: m.scales.__setitem__(0, -2.0),
    "hook": lambda m: m.first.register_forward_hook(_doubled),
    "parameter": lambda m: setattr(m.last, "weight", nn.Parameter(m.last.weight.detach() * -3)),
    "in place": lambda m: m.first.weight.data.mul_(-2),
    "forward": lambda m: setattr(m, "forward", lambda x: m.last(torch.tanh(m.first(x)))),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_of_the_model_are_seen(change: str) -> None:
    x, y = torch.rand(3, 5, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2])
    model, fresh = Changing(), Changing()
    before = _answers(model, x, y)
    CHANGES[change](model)
    CHANGES[change](fresh)
    after, expected = _answers(model, x, y), _answers(fresh, x, y)
    for name, value in expected.items():
        torch.testing.assert_close(after[name], value, msg=name)
    assert not torch.equal(after["interval:relaxed lower"], before["interval:relaxed lower"])


@pytest.mark.parametrize("flat", [True, False])
def test_one_output_is_two_logits(flat: bool) -> None:
    """The explanations of z are those of the logits (-z/2, z/2); weights are found by the user's names."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))
    single = nn.Sequential(body, nn.Flatten(0)) if flat else body
    two = nn.Sequential(copy.deepcopy(body), nn.Linear(1, 2))
    with torch.no_grad():
        two[1].weight.copy_(torch.tensor([[-0.5], [0.5]]))
        two[1].bias.zero_()
    x, y = torch.rand(3, 4), torch.tensor([0, 1, 1])
    assert single(x).shape == ((3,) if flat else (3, 1))
    one, both = _answers(single, x, y), _answers(two, x, y)
    for name, value in both.items():
        torch.testing.assert_close(one[name], value, rtol=1e-4, atol=1e-5, msg=name)
    attacked = rp.explanation_attack("gradient:corner-pgd", corners=2, steps=1, restarts=1, rung=1)(
        single, x, y, BALL, of="margin", radius=0.05, seed=0
    )
    assert attacked.weights_adv is not None
    assert set(attacked.weights_adv) == set(dict(single.named_parameters()))
    margin = rp.explanation_certifier("interval:relaxed")(single, x, y, BALL, of="margin", delta=1.0)
    z = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad((single(z).flatten() * (2 * y - 1)).sum(), z)
    torch.testing.assert_close(margin.value, expected)


class Overwriting(nn.Module):
    """A forward that changes its input in place."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.relu, self.last = nn.LeakyReLU(0.2, inplace=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.relu(x))


def test_a_forward_that_overwrites_its_input() -> None:
    x, y = torch.rand(3, 4) - 0.5, torch.tensor([0, 1, 2])
    before, ball = x.clone(), rp.Linf(eps=0.1, clip=None)
    plain = nn.Sequential(nn.LeakyReLU(0.2), Overwriting().last)
    for of in ("logit", "loss"):
        certificates = [
            rp.explanation_certifier("interval:relaxed")(m, x, y, ball, of=of, delta=1.0)
            for m in (Overwriting(), plain)
        ]
        torch.testing.assert_close(certificates[0].gradient.lower, certificates[1].gradient.lower)
    saliency = explain.Saliency(Overwriting(), abs=False).attribute(x, y)
    torch.testing.assert_close(saliency, explain.Saliency(plain, abs=False).attribute(x, y))
    assert torch.equal(x, before)


@pytest.mark.usefixtures("unchecked")  # checks of types draw from the random states
def test_frozen_parameters_and_traces() -> None:
    model, (x, y) = Network().eval().requires_grad_(False), _inputs()
    integrated = explain.IntegratedGradients(model, n_steps=2)
    with leaves_no_trace(Case(model, x, y, BALL)):
        rp.explanation_certifier("interval:relaxed")(model, x, y, BALL, delta=0.1)
        integrated.attribute(x, y)
        explain.Saliency(model).certify(x, y, ball=BALL)
    frozen = _answers(model.requires_grad_(False), x, y)
    free = _answers(model.requires_grad_(True), x, y)
    for name, value in free.items():
        torch.testing.assert_close(frozen[name], value, msg=name)


def test_a_sample_alone_and_one_radius_each() -> None:
    model, (x, y) = Network(), _inputs()
    radii = [0.0, 1e-8, 1e-3, 0.3]
    for name in ("interval:ibp", "interval:crown", "interval:relaxed"):
        certifier = rp.explanation_certifier(name)
        for of in ("logit", "margin", "loss"):
            together = certifier(model, x, y, rp.Linf(eps=radii, clip=(0.0, 1.0)), of=of, delta=0.1)
            for i, eps in enumerate(radii):
                alone = certifier(
                    model, x[i : i + 1], y[i : i + 1], rp.Linf(eps=eps, clip=(0.0, 1.0)), of=of, delta=0.1
                )
                scale = together.gradient.magnitude[i].max().item()
                torch.testing.assert_close(
                    alone.gradient.lower[0], together.gradient.lower[i], rtol=0, atol=1e-4 * scale
                )
                assert alone.verdicts[0] is together.verdicts[i]


def test_the_final_calls_cannot_be_replaced() -> None:
    for base, name in (
        (rp.ExplanationCertifier, "__call__"),
        (rp.ExplanationCertifier, "bounds"),
        (rp.ExplanationCertifier, "widths"),
        (rp.ExplanationCertifier, "_examined"),
        (rp.ExplanationAttack, "__call__"),
    ):
        with pytest.raises(rp.ComponentError, match=name):
            type("Mine", (base,), {name: lambda self, *args, **kwargs: None})
    with pytest.raises(rp.ComponentError, match="attribute"):
        type("Mine", (explain.Saliency,), {"attribute": lambda self, inputs, target: inputs})
    with pytest.raises(rp.ComponentError, match="certify"):
        type("Mine", (explain.Saliency,), {"certify": lambda self, inputs, target: inputs})


@dataclass(frozen=True, kw_only=True)
class Cheating(rp.ExplanationAttack):
    """Claims what it has not found."""

    def search(self, task: Task) -> None:
        task.best_gradient = task.best_gradient + 1e3
        task.best = task.x + 5
        task.best_score = task.best_score + 1e9
        task.model.register_forward_hook(lambda module, inputs, output: 100 * output)


def test_what_an_attack_claims_is_recomputed() -> None:
    model, (x, y) = Network(), _inputs()
    found = Cheating()(model, x, y, BALL, seed=0)
    assert BALL.contains(found.x_adv, x, tolerance=0).all()
    torch.testing.assert_close(found.gradient, explain.Saliency(model, abs=False).attribute(found.x_adv, y))
    assert found.deviation.max() < 10
    assert not model._forward_hooks


@pytest.mark.parametrize("last", [nn.Softmax(1), nn.LogSoftmax(1)])
@pytest.mark.parametrize("of", ["logit", "loss"])
def test_a_final_softmax_is_part_of_what_is_explained(last: nn.Module, of: str) -> None:
    """Leaving it out is right for margins, and the gradient of an output behind it is another one."""
    torch.manual_seed(0)
    model, x, y = (
        nn.Sequential(nn.Linear(4, 3), last).double(),
        torch.rand(5, 4).double(),
        torch.tensor([0, 1, 2, 0, 1]),
    )
    z = x.clone().requires_grad_()
    out = model(z)
    number = out.gather(1, y.unsqueeze(1)) if of == "logit" else nn.functional.cross_entropy(out, y, reduction="sum")
    (gradient,) = torch.autograd.grad(number.sum(), z)
    for name in ("interval:ibp", "interval:crown", "interval:relaxed"):
        try:
            found = rp.explanation_certifier(name).bounds(model, x, y, rp.Linf(eps=0.0, clip=None), of=of)
        except rp.UnsupportedModelError:
            assert isinstance(last, nn.LogSoftmax)
            assert of == "logit"
            continue
        torch.testing.assert_close(found.center, gradient, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("layer", [nn.ReLU(inplace=True), nn.LeakyReLU(-2.0, inplace=True), nn.ELU(-1.0, inplace=True)])
def test_a_model_whose_own_backward_pass_fails_is_refused(layer: nn.Module) -> None:
    _refused_in_place(nn.Sequential(nn.Linear(3, 3), nn.Sigmoid(), copy.deepcopy(layer), nn.Linear(3, 2)))


class Half(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.chunk(2, 1)[0]  # a view of several, which torch lets nobody change in place


def test_a_model_that_fails_where_gradients_are_recorded_is_refused() -> None:
    _refused_in_place(nn.Sequential(nn.Linear(3, 6), Half(), nn.ReLU(inplace=True), nn.Linear(3, 2)))


def _refused_in_place(model: nn.Sequential) -> None:
    x, y = torch.rand(2, 3), torch.tensor([0, 1])
    with pytest.raises(rp.UnsupportedModelError, match="inplace=False"):
        rp.explanation_certifier("interval:ibp").bounds(model, x, y, BALL, of="logit")
    with pytest.raises(rp.UnsupportedModelError, match="inplace=False"):
        rp.explanation_attack("gradient:corner-pgd", corners=1, steps=1, restarts=1)(
            model, x, y, BALL, radius=0.1, seed=0
        )
    model[2].inplace = False  # as the message says
    rp.explanation_certifier("interval:ibp").bounds(model, x, y, BALL, of="logit")
