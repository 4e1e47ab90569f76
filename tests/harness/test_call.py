"""What every public call does around a component: neutral modes, a model left as found, one thread at a time."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from support.toys import Boxes, SignStep
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.harness.call import calling
from robust_plugins.testing.networks import cnn_case, mlp_case
from robust_plugins.testing.traces import leaves_no_trace

BALL = rp.Linf(eps=0.1, clip=(0.0, 1.0))


def _zero_in_place(model: nn.Module) -> None:
    with torch.no_grad():
        next(model.parameters()).zero_()


def _zero_the_data(model: nn.Module) -> None:
    next(model.parameters()).data.zero_()  # moves no version counter


def _swap_the_data(model: nn.Module) -> None:
    parameter = next(model.parameters())
    parameter.data = torch.zeros_like(parameter)


def _replace_the_parameter(model: nn.Module) -> None:
    model[0].weight = nn.Parameter(torch.zeros_like(model[0].weight))


def _patch_forward(model: nn.Module) -> None:
    model[0].forward = lambda x: torch.zeros(len(x), 4)


def _patch_the_class(model: nn.Module) -> None:
    type(model[1]).forward = lambda self, x: -x


def _flag(model: nn.Module) -> None:
    next(model.parameters()).requires_grad_(False)


MEDDLING: dict[str, Callable[[nn.Module], Any]] = {
    "weights": _zero_in_place,
    "weights by .data": _zero_the_data,
    "weights by other .data": _swap_the_data,
    "weights by replacement": _replace_the_parameter,
    "buffers": lambda m: m[1].running_mean.fill_(9),
    "hooks": lambda m: m.register_forward_hook(lambda module, args, out: -out),
    "modules": lambda m: m.append(nn.ReLU()),
    "forward": _patch_forward,
    "forward of the class": _patch_the_class,
    "attributes": lambda m: setattr(m[1], "eps", 9.0),
    "requires_grad": _flag,
    "default dtype": lambda m: torch.set_default_dtype(torch.float64),
}


class Norm(nn.BatchNorm2d):
    """A class of its own, to be patched."""


@dataclass(frozen=True, kw_only=True)
class Meddling(Boxes):
    """Bounds that are right, by a certifier that changes what does not belong to it."""

    tidy: ClassVar[bool] = True  # a plugin cannot ask for trust
    what: str

    def propagate(self, model: nn.Module, x: Tensor, ball: rp.Ball, spec: Tensor | None) -> rp.Interval:
        box = ball.box(x)
        logits = model(x) + 0 * box.lower.sum()
        MEDDLING[self.what](model)
        x.zero_()
        return rp.apply_spec(rp.Interval(logits - 9, logits + 9), spec)


def _meddled() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3), Norm(3), nn.Flatten(), nn.Linear(48, 4)).eval()


@pytest.mark.parametrize("call", ["certificate", "bounds", "lower bounds"])
@pytest.mark.parametrize("what", MEDDLING)
def test_a_certifier_that_changes_the_model_is_named_and_the_model_put_back(what: str, call: str) -> None:
    model, x, y = _meddled(), torch.rand(2, 2, 6, 6), torch.tensor([0, 1])
    before, state, given = model(x), {k: v.clone() for k, v in model.state_dict().items()}, x.clone()
    forward, storage, parameters = Norm.forward, model[0].weight.data_ptr(), list(model.parameters())
    certifier, spec = Meddling(what=what), rp.margin_spec(y, 4)
    object.__setattr__(certifier, "tidy", True)
    with pytest.raises(rp.ComponentError, match=rf"changed the model \({what.split(' by ')[0].split(' of ')[0]}"):
        {
            "certificate": lambda: certifier(model, x, y, BALL),
            "bounds": lambda: certifier.bounds(model, x, BALL),
            "lower bounds": lambda: certifier.lower_bounds(model, x, BALL, spec),
        }[call]()
    assert Norm.forward is forward
    assert torch.equal(model(x), before)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert all(p.requires_grad for p in model.parameters())
    assert model[0].weight.data_ptr() == storage
    assert torch.get_default_dtype() == torch.float32
    assert torch.equal(x, given)


def test_a_certifier_derived_from_the_engines_own_is_checked() -> None:
    class Derived(type(rp.certifier("interval:ibp"))):  # type: ignore[misc]
        def propagate(self, model, x, ball, spec):
            found = super().propagate(model, x, ball, spec)
            _zero_the_data(model)
            return found

    model, x = _meddled(), torch.rand(2, 2, 6, 6)
    before = model(x)
    for ask in (Derived().bounds, lambda *a: Derived()(*a[:2], torch.tensor([0, 1]), a[2])):
        with pytest.raises(rp.ComponentError, match="weights"):
            ask(model, x, BALL)
    assert torch.equal(model(x), before)


def test_what_the_models_own_forward_changes_is_not_the_components_doing() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.calls = nn.Linear(5, 4), 0
            self.register_buffer("seen", torch.zeros(5))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.seen = 0.9 * self.seen + 0.1 * x.detach().mean(0)
            return self.layer(x)

    @dataclass(frozen=True, kw_only=True)
    class Loose(rp.Certifier):
        def propagate(self, model, x, ball, spec):
            logits = model(x)
            return rp.apply_spec(rp.Interval(logits - 9, logits + 9), spec)

    model, x = Counting(), torch.rand(3, 5)
    seen = model.seen
    assert set(Loose()(model, x, torch.tensor([0, 1, 2]), BALL).messages) == {""}
    assert Loose().bounds(model, x, BALL).shape == (3, 4)
    assert SignStep()(model, x, torch.tensor([0, 1, 2]), BALL).x_adv.shape == (3, 5)
    assert model.calls == 0
    assert model.seen is seen
    assert not seen.any()


@pytest.mark.parametrize("name", ["__call__", "bounds", "lower_bounds", "_judge"])
def test_the_public_calls_cannot_be_replaced(name: str) -> None:
    with pytest.raises(rp.ComponentError, match=rf"replaces Certifier.{name}, which is final; override propagate"):
        type("Mine", (Boxes,), {name: lambda *a: None})
    mixin = type("Mixin", (), {name: lambda *a: None})
    with pytest.raises(rp.ComponentError, match="is final"):
        type("Mine", (mixin, Boxes), {})
    if name == "__call__":
        with pytest.raises(rp.ComponentError, match="override perturb instead"):
            type("Mine", (SignStep,), {name: lambda *a: None})
    with pytest.raises(rp.ComponentError, match=r"Attack\.search"):
        type("Mine", (SignStep,), {"search": lambda *a: None})


@pytest.mark.parametrize("rounding", [-1.0, float("nan"), 1.0, None])
def test_a_rounding_that_would_prove_anything_is_refused(rounding, unchecked) -> None:
    case = mlp_case()
    with pytest.raises(rp.ComponentError, match="rounding"):
        type("Mine", (Boxes,), {"rounding": rounding})()(case.model, case.x, case.y, BALL)


def test_the_clock_modes_and_random_states() -> None:
    case = cnn_case()
    with leaves_no_trace(case), torch.inference_mode():
        x = case.x.clone()
        with calling(case.model, x, seed=3, freeze=True) as call:
            assert not call.x.is_inference()
            assert not torch.is_inference_mode_enabled()
            assert not any(module.training for module in call.model.modules())
            assert not any(p.requires_grad for p in call.model.parameters())
            torch.rand(3)
        assert call.seconds > 0
        assert torch.is_inference_mode_enabled()


@pytest.mark.parametrize("gradients", [True, False])
def test_the_gradient_mode_is_the_callers(gradients: bool) -> None:
    case = mlp_case()
    with torch.set_grad_enabled(gradients), calling(case.model, case.x):
        assert torch.is_grad_enabled() == gradients


def test_a_device_of_the_user_is_set_aside() -> None:
    case = mlp_case()
    torch.set_default_device("meta")
    try:
        found = SignStep()(case.model, case.x, case.y, BALL, seed=0)
        proved = Boxes()(case.model, case.x, case.y, BALL)
    finally:
        torch.set_default_device(None)
    assert torch.equal(found.x_adv, SignStep()(case.model, case.x, case.y, BALL, seed=0).x_adv)
    assert torch.equal(proved.margin, Boxes()(case.model, case.x, case.y, BALL).margin)


def test_four_threads_on_one_model() -> None:
    case = mlp_case(normalised=False, batch=32)
    case.model.train()
    alone = [SignStep()(case.model, case.x, case.y, BALL, seed=s) for s in range(8)]
    proved = Boxes()(case.model, case.x, case.y, BALL)

    def work(s: int) -> tuple[rp.AttackResult, rp.Certificate, rp.Interval]:
        return (
            SignStep()(case.model, case.x, case.y, BALL, seed=s),
            Boxes()(case.model, case.x, case.y, BALL),
            rp.certifier("interval:ibp").bounds(case.model, case.x, BALL),
        )

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(work, range(8)))
    for one, (attacked, certified, _) in zip(alone, found, strict=True):
        assert torch.equal(one.x_adv, attacked.x_adv)
        assert torch.equal(proved.margin, certified.margin)
    assert all(module.training for module in case.model.modules())
    assert all(p.requires_grad for p in case.model.parameters())


@pytest.mark.parametrize("call", ["certificate", "bounds"])
def test_large_weights_zeroed_by_data_are_seen(call: str) -> None:
    """In bounds, large weights are compared in places alone; a certificate compares all of them."""
    model, x = nn.Sequential(nn.Linear(100, 100), nn.Linear(100, 4)), torch.rand(2, 100)
    before = model[0].weight.detach().clone()

    @dataclass(frozen=True, kw_only=True)
    class Once(rp.Certifier):
        def propagate(self, model, x, ball, spec):
            logits = model(x)
            (model[0].weight.data.flatten()[1:2] if call == "certificate" else model[0].weight.data).zero_()
            return rp.apply_spec(rp.Interval(logits - 9, logits + 9), spec)

    with pytest.raises(rp.ComponentError, match=r"weights of 0\.weight"):
        Once()(model, x, torch.tensor([0, 1]), BALL) if call == "certificate" else Once().bounds(model, x, BALL)
    assert torch.equal(model[0].weight, before)


class _Remembers(nn.Module):
    """Writes two buffers when it is run, one in place, and computes nothing from them."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(3, 2)
        self.register_buffer("seen", torch.zeros(3))
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen = 0.9 * self.seen + 0.1 * x.mean(0)
        self.mean.copy_(x.detach().mean())
        return self.last(x)


@pytest.mark.parametrize("name", ["interval:ibp", "interval:crown", "lirpa:ibp"])
def test_buffers_that_a_model_writes_are_put_back_by_every_call(name: str) -> None:
    model, x, y = _Remembers(), torch.rand(4, 3), torch.tensor([0, 1, 0, 1])
    certifier, seen, mean = rp.certifier(name), model.seen, model.mean
    for _ in range(2):
        certifier.bounds(model, x, BALL)
        certifier.lower_bounds(model, x, BALL, rp.margin_spec(y, 2))
        certifier(model, x, y, BALL)
        assert model.seen is seen
        assert model.mean is mean
        assert not seen.any()
        assert not mean.any()
        mean.copy_(x[:1].mean())  # the value that running the first sample writes
        certifier(model, x, y, BALL)
        mean.zero_()


def test_a_backend_that_lacks_what_it_imports_itself_is_one_error() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Lame(SignStep):
        def perturb(self, model: nn.Module, x: Tensor, y: Tensor, ball: rp.Ball, *, targeted: bool) -> Tensor:
            import not_a_module_of_anyone  # noqa: F401

            return x

    case = mlp_case()
    with pytest.raises(rp.PluginError, match=r"No module named 'not_a_module_of_anyone'.*install it"):
        Lame()(case.model, case.x, case.y, BALL)
