"""Conversions are kept, and made again where the model changed."""

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
from support.lirpa_cases import BALL, CERTIFIERS, close, cnn, images, mlp, points
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.adapters.lirpa import CROWN, IBP, bounded

ONE_OF_EACH_KIND = [
    c if isinstance(c, IBP) or type(c) is CROWN else pytest.param(c, marks=pytest.mark.slow) for c in CERTIFIERS
]
"""They share one way to keep conversions; the others are asked by the slow tests."""


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

    @pytest.mark.parametrize("certifier", ONE_OF_EACH_KIND, ids=lambda c: type(c).__name__)
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

        with pytest.raises(rp.UnsupportedModelError, match=r"depend on the other samples|something else"):
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
