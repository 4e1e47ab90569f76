"""The conformance checks of abstract training. Each takes a function that is called as `rp.abstract_gradient_training`.

    train = functools.partial(rp.abstract_gradient_training, domain="zonotope")

It is given `model, batches, budget` and the keywords `loss`, `optimizer`, `epochs` and `clip_gradient`, and returns
what has the interval of every trained parameter by its name, `parameters`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from copy import deepcopy
from itertools import pairwise
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from robust_plugins.errors import ArgumentError
from robust_plugins.intervals import Interval
from robust_plugins.poisoning import SGD, PoisoningBudget, poisoned_trainings, poisoning_attack

Train: TypeAlias = Callable[..., Any]

BUDGETS = (
    PoisoningBudget(points=2, eps=1e-4),
    PoisoningBudget(points=2, eps=0.1),
    PoisoningBudget(labels=2),
    PoisoningBudget(points=1, eps=0.1, labels=1),
    PoisoningBudget.substitution(1),
    PoisoningBudget.removal(2),
)
ATTACKS = ("poison:random(count=20)", "poison:loss-ascent", "poison:alignment", "poison:coordinates")


def bounds_contain_poisoned_trainings(train: Train) -> None:
    """No training on poison that the attacks choose within a budget leaves the bounds, for every budget it takes."""
    tried, how = 0, _how(train)
    for budget in BUDGETS:
        bounds = _bounds(train, budget)
        if bounds is None:
            continue
        tried += 1
        for name in ATTACKS:
            try:
                found = poisoned_trainings(poisoning_attack(name), _model(), _batches(), budget, seed=0, **how)
            except ArgumentError:
                continue  # a budget that the attack does not handle
            for parameter, values in found.parameters.items():
                low, high = bounds[parameter].lower - 1e-9, bounds[parameter].upper + 1e-9
                assert ((values >= low) & (values <= high)).all(), f"{name} leaves the bounds of {parameter}, {budget}"
    assert tried, "it takes none of the budgets"


def no_budget_is_the_training_itself(train: Train) -> None:
    """Where nothing may change, the bounds are a point: the parameters that plain training gives."""
    bounds = _bounds(train, PoisoningBudget())
    if bounds is None:
        return
    model, most = _model(), _how(train)["clip_gradient"] or torch.inf
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    for _ in range(_HOW["epochs"]):
        for x, y in _batches():
            optimizer.zero_grad()
            # Each sample's gradient is clipped by itself.
            gradients: dict[str, Tensor] = {}
            for i in range(len(x)):
                one = torch.autograd.grad(
                    nn.functional.cross_entropy(model(x[i : i + 1]), y[i : i + 1]), list(model.parameters())
                )
                for (name, _), g in zip(model.named_parameters(), one, strict=True):
                    gradients[name] = gradients.get(name, torch.zeros_like(g)) + g.clamp(-most, most) / len(x)
            for name, p in model.named_parameters():
                p.grad = gradients[name]
            optimizer.step()
    for name, p in model.named_parameters():
        assert bounds[name].width.max() <= 1e-9, f"the bounds of {name} are no point"
        torch.testing.assert_close(bounds[name].center, p.detach(), rtol=1e-8, atol=1e-9)


def larger_budgets_give_wider_bounds(train: Train) -> None:
    """More points, or a larger radius, never give narrower bounds."""
    chain = [PoisoningBudget(points=n, eps=eps) for n, eps in ((1, 0.01), (1, 0.05), (2, 0.05), (3, 0.1))]
    found = [b for b in (_bounds(train, budget) for budget in chain) if b is not None]
    for small, large in pairwise(found):
        for name, bounds in small.items():
            assert (large[name].lower <= bounds.lower + 1e-9).all(), f"a larger budget has narrower bounds of {name}"
            assert (large[name].upper >= bounds.upper - 1e-9).all(), f"a larger budget has narrower bounds of {name}"


def model_is_left_as_found(train: Train) -> None:
    """The model that is given is not trained, and keeps its modes and flags."""
    model = _model().train()
    before = deepcopy(model.state_dict())
    for budget in BUDGETS:
        if _bounds(train, budget, model) is not None:
            break
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), f"{name} was changed"
    assert all(module.training for module in model.modules()), "a mode was changed"
    assert all(p.requires_grad and p.grad is None for p in model.parameters()), "a flag or a gradient was changed"


_HOW: dict[str, Any] = {
    "loss": "cross_entropy", "optimizer": SGD(lr=0.2), "epochs": 2, "clip_gradient": 0.5,
}  # fmt: skip


def _how(train: Train) -> dict[str, Any]:
    """The settings of the training: with the gradients of samples clipped, where it takes that."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            train(_model(), _batches(), PoisoningBudget(), **_HOW)
    except ArgumentError:
        return _HOW | {"clip_gradient": None}
    return _HOW


def _bounds(train: Train, budget: PoisoningBudget, model: nn.Module | None = None) -> dict[str, Interval] | None:
    """The bounds on each parameter; None for a budget that is refused."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that bounds are loose is no fault
            found = train(_model() if model is None else model, _batches(), budget, **_how(train))
    except ArgumentError:
        return None
    bounds: dict[str, Interval] = found.parameters
    return bounds


def _model() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()


def _batches() -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(0)
    x = torch.rand((10, 3), generator=draw, dtype=torch.float64)
    return list(zip(x.split((6, 4)), (2 * x[:, 0]).long().split((6, 4)), strict=True))


abstract_training_checks = [
    bounds_contain_poisoned_trainings,
    no_budget_is_the_training_itself,
    larger_budgets_give_wider_bounds,
    model_is_left_as_found,
]
"""For `pytest.mark.parametrize("check", abstract_training_checks)`; each check takes what trains."""
