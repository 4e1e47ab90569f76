"""The four certifiers of auto_LiRPA behind the common interface."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from itertools import pairwise
from types import MethodType

import numpy as np
import pytest
import torch
from support.bounds_checker import sound, violation
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.adapters.lirpa import CROWN, CROWNIBP, IBP, AlphaCROWN, bounded

CERTIFIERS = [IBP(), CROWNIBP(), CROWN(), AlphaCROWN(steps=3)]
each = pytest.mark.parametrize("certifier", CERTIFIERS, ids=lambda c: type(c).__name__)


def mlp(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 4)
    return nn.Sequential(nn.Flatten(), *layers).eval()


def cnn(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout2d(0.5), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(12, 6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3),
    )  # fmt: skip
    model(torch.randn(16, 1, 4, 4))  # statistics
    return model.eval()


def images(n: int = 4, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=dtype)


def points(n: int = 4) -> Tensor:
    return torch.rand(n, 3, 4, generator=torch.Generator().manual_seed(1))


BALL = rp.Linf(eps=0.05, clip=(0.0, 1.0))


def close(a: rp.Interval, b: rp.Interval, tolerance: float = 1e-5) -> bool:
    return torch.allclose(a.lower, b.lower, atol=tolerance) and torch.allclose(a.upper, b.upper, atol=tolerance)


def test_registered_names_build_the_classes() -> None:
    names = {c.name for c in rp.certifiers()}
    assert {"lirpa:ibp", "lirpa:crown-ibp", "lirpa:crown", "lirpa:alpha-crown"} <= names
    assert rp.certifier("lirpa:alpha-crown", steps=7) == AlphaCROWN(steps=7)


@pytest.mark.parametrize("parameters", [{"steps": 0}, {"learning_rate": 0.0}, {"learning_rate": float("nan")}])
def test_alpha_crown_refuses_useless_parameters(parameters: dict[str, float]) -> None:
    with pytest.raises(rp.ArgumentError):
        rp.certifier("lirpa:alpha-crown", **parameters)


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_certificates_hold_margins_merged_into_the_last_layer(certifier: rp.Certifier, dtype: torch.dtype) -> None:
    model, x = cnn().to(dtype), images(dtype=dtype)
    y = model(x).argmax(1)
    certificate = certifier(model, x, y, BALL)
    assert not any(certificate.messages)
    assert certificate.margin.dtype == dtype
    spec = rp.margin_spec(y, 3, dtype=dtype)
    unmerged = rp.apply_spec(certifier.bounds(model, x, BALL), spec).lower.amin(1)
    assert (certificate.margin >= unmerged - 1e-5).all()
    tiny = certifier(model, x, y, rp.Linf(eps=1e-5, clip=(0.0, 1.0)))
    assert tiny.certified.all()


def test_alpha_crown_is_tighter_than_crown() -> None:
    model, x = cnn(3), images()
    y = model(x).argmax(1)
    ball = rp.Linf(eps=0.2, clip=(0.0, 1.0))
    crown, alpha = (c(model, x, y, ball).margin for c in (CROWN(), AlphaCROWN(steps=10)))
    assert (alpha >= crown - 1e-6).all()
    assert (alpha > crown + 1e-4).any()


@each
def test_both_ends_of_the_logits_are_optimised_without_a_specification(certifier: rp.Certifier) -> None:
    model, x = cnn(), images()
    ours = certifier.bounds(model, x, BALL)
    rows = torch.eye(3).expand(4, 3, 3)
    upper_as_lower = -certifier.bounds(model, x, BALL, -rows).lower
    assert torch.allclose(ours.upper, upper_as_lower, atol=1e-4)


@each
def test_zero_radius_gives_the_logits(certifier: rp.Certifier) -> None:
    for ball in (rp.Linf(eps=0.0, clip=(0.0, 1.0)), rp.L2(eps=0.0, clip=None), rp.L1(eps=0.0, clip=(0.0, 1.0))):
        bounds = certifier.bounds(cnn(), images(), ball)
        assert close(bounds, rp.Interval.point(cnn()(images())))


@each
@pytest.mark.parametrize("norm", [rp.Linf, rp.L2, rp.L1])
def test_a_radius_per_sample_equals_calls_per_sample(certifier: rp.Certifier, norm: type[rp.Ball]) -> None:
    model, x, eps = cnn(), images(), (0.1, 0.0, 0.3, 0.1)
    together = certifier.bounds(model, x, norm(eps=eps, clip=(0.0, 1.0)))
    for i, radius in enumerate(eps):
        alone = certifier.bounds(model, x[i : i + 1], norm(eps=radius, clip=(0.0, 1.0)))
        assert close(together[i : i + 1], alone)


@each
def test_chunks_change_nothing(certifier: rp.Certifier) -> None:
    model, x = cnn(), images(5)
    chunked = type(certifier)(**{**certifier.__dict__, "batch_size": 2})
    assert close(certifier.bounds(model, x, BALL), chunked.bounds(model, x, BALL))


def test_wider_balls_have_wider_interval_bounds() -> None:
    widths = [IBP().bounds(cnn(), images(), rp.Linf(eps=e, clip=(0.0, 1.0))).width for e in (0.0, 0.05, 0.1, 0.4)]
    for narrow, wide in pairwise(widths):
        assert (narrow <= wide + 1e-6).all()


def test_clip_makes_bounds_tighter() -> None:
    for norm, eps in ((rp.Linf, 0.9), (rp.L2, 3.0), (rp.L1, 9.0)):
        free, cut = (CROWN().bounds(mlp(), points(), norm(eps=eps, clip=clip)) for clip in (None, (0.0, 1.0)))
        assert cut.width.sum() < 0.95 * free.width.sum()


@each
def test_a_normalisation_inside_the_model_changes_nothing(certifier: rp.Certifier) -> None:
    class Normalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.tensor([0.3]).view(1, 1, 1))
            self.std = nn.Parameter(torch.tensor([-0.5]).view(1, 1, 1))  # negative: swaps the ends
            self.net = cnn()

        def forward(self, x: Tensor) -> Tensor:
            return self.net((x - self.mean) / self.std)

    model, x = Normalised().eval(), images()
    inside = certifier.bounds(model, x, rp.Linf(eps=0.05, clip=None))
    outside = certifier.bounds(model.net, (x - 0.3) / -0.5, rp.Linf(eps=0.1, clip=None))
    assert close(inside, outside, 1e-4)


@each
def test_the_model_is_left_as_found(certifier: rp.Certifier) -> None:
    model = cnn().train()
    frozen, free = model[0].weight, model[0].bias
    frozen.requires_grad_(False)
    free.grad = torch.ones(3)
    before = copy.deepcopy(model.state_dict())
    versions = [p._version for p in model.parameters()]
    modes = [m.training for m in model.modules()]
    random_state = torch.get_rng_state()
    bounds = certifier.bounds(model, images(), BALL)
    certifier(model, images(), torch.zeros(4, dtype=torch.long), BALL)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.values(), strict=True))
    assert [p._version for p in model.parameters()] == versions
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not frozen.requires_grad
    assert free.grad is not None
    assert torch.equal(free.grad, torch.ones(3))
    bounds.width.sum().backward()
    assert frozen.grad is None
    assert model[1].weight.grad is not None


@each
def test_the_first_call_does_not_break_a_pending_backward(certifier: rp.Certifier) -> None:
    model = mlp()
    loss = model(points()).square().sum()
    certifier.bounds(model, points(), BALL)
    loss.backward()


@each
def test_no_grad_and_inference_mode(certifier: rp.Certifier) -> None:
    expected = certifier.bounds(cnn(), images(), BALL)
    assert expected.lower.requires_grad
    with torch.no_grad():
        bounds = certifier.bounds(cnn(), images(), BALL)
    assert not bounds.lower.requires_grad
    assert close(bounds, expected)
    model = cnn()
    with torch.inference_mode():
        assert close(certifier.bounds(model, images(), BALL), expected)
        assert not any(certifier(model, images(), torch.zeros(4, dtype=torch.long), BALL).messages)


@each
def test_gradients_agree_with_finite_differences(certifier: rp.Certifier) -> None:
    model = mlp().double()
    x, ball, weight = points(2).double(), rp.Linf(eps=0.1, clip=(0.0, 1.0)), model[1].weight

    def value() -> Tensor:
        bounds = IBP().bounds(model, x, ball) if isinstance(certifier, IBP) else certifier.bounds(model, x, ball)
        return (bounds.upper - 0.5 * bounds.lower).sum()

    if isinstance(certifier, AlphaCROWN):
        # Its slopes are held fixed in the gradient; a finite difference would move them as well.
        value().backward()
        assert weight.grad is not None
        assert float(weight.grad.abs().sum()) > 0
        return
    value().backward()
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    step = 1e-6
    with torch.no_grad():
        weight += step * direction
        above = value()
        weight -= 2 * step * direction
        below = value()
    assert weight.grad is not None
    assert float((weight.grad * direction).sum()) == pytest.approx(float(above - below) / (2 * step), rel=1e-4)


class Settings:
    """What a model may be configured by."""

    def __init__(self) -> None:
        self.scale = 1.0
        self.more: dict[str, object] = {"shift": [torch.zeros(4)], "power": np.ones(4, dtype=np.float32)}


class Changing(nn.Module):
    """A model whose function depends on everything but its parameters."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.other = nn.Linear(12, 10), nn.Linear(10, 4), nn.Linear(10, 4)
        self.act, self.settings, self.scales = torch.relu, Settings(), [torch.ones(4)]
        self.layers = [self.last, self.other]
        self.first.register_forward_hook(lambda module, inputs, output: output)
        factor = [1.0]
        self.factor, self.closure = factor, lambda x: x * factor[0]

    def forward(self, x: Tensor) -> Tensor:
        z = self.layers[0](self.act(self.first(x.flatten(1)))) * self.scales[0] * self.settings.scale
        z = z + self.settings.more["shift"][0]  # type: ignore[index]
        z = z * torch.from_numpy(self.settings.more["power"])  # type: ignore[arg-type]
        return self.closure(z)


def replace_hook(model: Changing) -> None:
    model.first._forward_hooks.clear()
    model.first.register_forward_hook(lambda module, inputs, output: output * 8)


def other_forward(model: Changing, x: Tensor) -> Tensor:
    return 10 * model.last(model.first(x.flatten(1)))


def change_closure(model: Changing) -> None:
    """Seen by comparing graph and model alone."""
    model.closure.__closure__[0].cell_contents = [-3.0]  # type: ignore[index]


def change_array(model: Changing) -> None:
    model.settings.more["power"][:] = -2  # type: ignore[index]


def change_scale(model: Changing) -> None:
    model.settings.scale = -10.0


CHANGES: dict[str, Callable[[Changing], object]] = {
    "function": lambda m: setattr(m, "act", torch.tanh),
    "attribute of an object": change_scale,
    "tensor in a list": lambda m: m.scales.__setitem__(0, -7 * torch.ones(4)),
    "tensor in a list, in place": lambda m: m.scales[0].mul_(-7),
    "tensor in an object": lambda m: m.settings.more["shift"].__setitem__(0, torch.ones(4)),  # type: ignore[attr-defined]
    "array, in place": change_array,
    "hook": replace_hook,
    "forward": lambda m: setattr(m, "forward", MethodType(other_forward, m)),
    "order of layers": lambda m: m.layers.reverse(),
    "closure": change_closure,
}


class TestCache:
    """One conversion per model and shape, always on the present weights."""

    def conversions(self, model: nn.Module) -> int:
        return len(bounded._cache.get(model, {}))

    def test_is_reused_for_every_batch_size(self) -> None:
        model = cnn()
        IBP().bounds(model, images(4), BALL)
        first = next(iter(bounded._cache[model].values()))
        for n in (1, 2, 3, 7):
            IBP().bounds(model, images(n), BALL)
        assert list(bounded._cache[model].values()) == [first]

    @pytest.mark.parametrize("certifier", [IBP(), CROWN()], ids=["IBP", "CROWN"])
    def test_sees_every_change(self, certifier: rp.Certifier) -> None:
        def in_place(model: nn.Sequential) -> None:
            with torch.no_grad():
                model[0].weight.mul_(1.5)

        def replaced(model: nn.Sequential) -> None:
            model[6].weight = nn.Parameter(model[6].weight.detach() * 2)

        def loaded(model: nn.Sequential) -> None:
            model.load_state_dict(cnn(5).state_dict())

        def statistics(model: nn.Sequential) -> None:
            model[1].running_mean = model[1].running_mean + 0.3
            model[1].running_var.mul_(0.5)

        def layer(model: nn.Sequential) -> None:
            model[7] = nn.Tanh()

        def attribute(model: nn.Sequential) -> None:
            model[0].padding = (0, 0)
            model[4] = nn.AdaptiveAvgPool2d(2)

        def training(model: nn.Sequential) -> None:
            model.train()
            model(images(8) * 2)

        for change in (in_place, replaced, loaded, statistics, layer, attribute, training):
            model = cnn()
            before = certifier.bounds(model, images(), BALL)
            change(model)
            after = certifier.bounds(model, images(), BALL)
            fresh = certifier.bounds(copy.deepcopy(model), images(), BALL)
            assert close(after, fresh, 0), change.__name__
            assert not close(before, after), change.__name__

    def test_sees_constants_that_are_no_buffers(self) -> None:
        class Shifted(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net, self.shift, self.flag = mlp(), torch.zeros(3, 4), False
                self.register_buffer("scale", torch.ones(3, 4), persistent=False)

            def forward(self, x: Tensor) -> Tensor:
                z = self.net((x - self.shift) * self.scale)
                return z * 2 if self.flag else z

        model = Shifted().eval()
        seen = [IBP().bounds(model, points(), BALL)]
        model.shift += 0.2
        seen.append(IBP().bounds(model, points(), BALL))
        model.scale.mul_(0.5)
        seen.append(IBP().bounds(model, points(), BALL))
        model.flag = True
        seen.append(IBP().bounds(model, points(), BALL))
        assert all(not close(a, b) for a, b in pairwise(seen))
        assert close(seen[-1], IBP().bounds(copy.deepcopy(model), points(), BALL), 0)

    @pytest.mark.parametrize("certifier", CERTIFIERS, ids=lambda c: type(c).__name__)
    @pytest.mark.parametrize("change", CHANGES)
    def test_sees_what_no_parameter_tells(self, change: str, certifier: rp.Certifier) -> None:
        """A stale graph would give the old bounds: of the changed model, a point lies outside them."""
        model = Changing().eval()
        before = certifier.bounds(model, points(), BALL).detach()
        CHANGES[change](model)
        assert violation(model, points(), BALL, before) > 1e-3
        after = certifier.bounds(model, points(), BALL)
        assert sound(model, points(), BALL, after)
        assert close(after, certifier.bounds(copy.deepcopy(model), points(), BALL), 1e-5)
        assert self.conversions(model) == 1

    def test_is_reused_where_only_weights_change(self) -> None:
        model = Changing().eval()
        IBP().bounds(model, points(), BALL)
        (first,) = bounded._cache[model].values()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1
        IBP().bounds(model, points(), BALL)
        assert list(bounded._cache[model].values()) == [first]

    def test_an_object_that_holds_the_model_does_not_keep_it_alive(self) -> None:
        model = Changing().eval()
        model.settings.model = model
        model.later = model.forward
        model.first.register_forward_hook(lambda *_, model=model: None)
        IBP().bounds(model, points(), BALL)
        dead = weakref.ref(model)
        del model
        gc.collect()
        assert dead() is None

    def test_a_model_that_depends_on_chance_is_refused(self) -> None:
        class Noisy(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net, self.calls = mlp(), [0]

            def forward(self, x: Tensor) -> Tensor:
                self.calls[0] += 1
                return self.net(x) + self.calls[0]

        with pytest.raises(rp.UnsupportedModelError, match="something else"):
            IBP().bounds(Noisy().eval(), points(), BALL)

    def test_sees_weights_that_are_computed_in_the_model(self) -> None:
        class Scaled(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.weight, self.scale = nn.Parameter(torch.randn(4, 12)), nn.Parameter(torch.ones(1))

            def forward(self, x: Tensor) -> Tensor:
                return nn.functional.linear(x.flatten(1), self.weight * self.scale)

        model = Scaled()
        before = IBP().bounds(model, points(), BALL)
        with torch.no_grad():
            model.scale.mul_(3)
        assert close(IBP().bounds(model, points(), BALL), rp.Interval(before.lower * 3, before.upper * 3), 1e-4)

    def test_sees_weights_that_are_no_longer_shared(self) -> None:
        model = nn.Sequential(nn.Flatten(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12))
        model[3].weight = model[1].weight
        IBP().bounds(model, points(), BALL)
        model[3].weight = nn.Parameter(torch.randn(12, 12))
        assert close(IBP().bounds(model, points(), BALL), IBP().bounds(copy.deepcopy(model), points(), BALL), 0)

    def test_keeps_no_model_and_no_history_alive(self) -> None:
        model = mlp()
        for certifier in CERTIFIERS:
            bounds = certifier.bounds(model, points(), BALL)
        history = weakref.ref(bounds.lower)
        parameter, dead = weakref.ref(model[1].weight), weakref.ref(model)
        before = len(bounded._cache)
        del model, bounds
        gc.collect()
        assert dead() is None
        assert parameter() is None
        assert history() is None
        assert len(bounded._cache) < before

    def test_a_batch_size_in_the_graph_is_served_by_one_conversion_each(self) -> None:
        class Viewed(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net = mlp()

            def forward(self, x: Tensor) -> Tensor:
                return self.net(x.reshape(int(x.shape[0]), 12))

        model = Viewed().eval()
        for n in (4, 3, 4):
            assert close(IBP().bounds(model, points(n), BALL), IBP().bounds(model.net, points(n), BALL))

    def test_methods_do_not_disturb_each_other(self) -> None:
        model = cnn()
        before = [c.bounds(model, images(), BALL) for c in CERTIFIERS]
        after = [c.bounds(model, images(), BALL) for c in reversed(CERTIFIERS)]
        assert all(close(a, b, 1e-6) for a, b in zip(before, reversed(after), strict=True))


def test_memory_estimates_make_chunks() -> None:
    sizes = [3072, 16384, 16384, 100]
    with torch.no_grad():
        assert CROWN().bytes_per_sample(sizes, 10, 4) >= 4 * 16384**2
        assert CROWN().bytes_per_sample(sizes, 10, 8) == 2 * CROWN().bytes_per_sample(sizes, 10, 4)
        assert CROWNIBP().bytes_per_sample(sizes, 10, 4) < CROWN().bytes_per_sample(sizes, 10, 4) / 100
        one_graph = CROWN().bytes_per_sample(sizes, 10, 4)
    assert CROWN().bytes_per_sample(sizes, 10, 4) > one_graph  # gradients keep every matrix
