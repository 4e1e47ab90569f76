"""The conformance checks of a recipe. Each takes a function from `ball` and `epochs` to its loss, as `rp.recipe` is.

make = functools.partial(rp.recipe, "mylab:robust")
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn

from robust_plugins.balls import Ball, Linf
from robust_plugins.losses import MixedLoss
from robust_plugins.losses.batch import Batch
from robust_plugins.losses.regularisers import Regulariser
from robust_plugins.testing.networks import Case, cnn_case, mlp_case

Make: TypeAlias = Callable[..., MixedLoss]

EPOCHS = 4
_BALL = Linf(eps=0.05, clip=(0.0, 1.0))


def is_a_mixed_loss_of_the_ball(make: Make) -> None:
    """Every call makes a loss of its own, over the ball that it was given."""
    loss, other = _made(make), _made(make)
    assert isinstance(loss, MixedLoss), f"it made {loss!r}, which is no rp.MixedLoss"
    assert loss is not other, "two calls give the same object, whose schedules would be shared"
    assert loss.ball in (_BALL, None), f"its ball is {loss.ball}, not the one that was given"


def values_are_finite_scalars(make: Make) -> None:
    """At the start, in the middle and at the end of training, in both precisions."""
    for case in (mlp_case(), cnn_case(), mlp_case().to(torch.float64, "cpu")):
        loss = _made(make)
        for epoch in range(EPOCHS):
            value = _value(loss, case)
            assert value.shape == (), f"the loss has the shape {tuple(value.shape)}"
            assert value.isfinite(), f"the loss is {value.item()} in epoch {epoch}"
            assert value.dtype == case.x.dtype
            loss.step(epoch, 0, 1)


def gradients_reach_the_weights(make: Make) -> None:
    """Every parameter has a finite gradient once schedules are over, and the last layer's is not zero."""
    for case in (mlp_case(), cnn_case()):
        loss = _ended(make)
        _value(loss, case).backward()
        for name, parameter in case.model.named_parameters():
            assert parameter.grad is not None, f"no gradient reaches {name}"
            assert parameter.grad.isfinite().all(), f"the gradient of {name} is not finite"
        assert list(case.model.parameters())[-1].grad.abs().sum() > 0  # type: ignore[union-attr]


def steps_lower_it(make: Make) -> None:
    """Thirty steps of gradient descent lower the loss."""
    case = mlp_case()
    loss = _ended(make)
    optimizer = torch.optim.SGD(case.model.parameters(), lr=0.05)
    case.model.train()
    before = _value(loss, case).item()
    for _ in range(30):
        optimizer.zero_grad()
        _value(loss, case).backward()
        optimizer.step()
    after = _value(loss, case).item()
    assert after < before, f"thirty steps took the loss from {before:.4g} to {after:.4g}"


def model_is_left_as_found(make: Make) -> None:
    """Computing it changes neither modes, weights, flags nor gradients."""
    case = mlp_case()
    loss = _ended(make)
    case.model.train()
    list(case.model.modules())[-1].eval()
    before = {name: value.clone() for name, value in case.model.state_dict().items()}
    modes = [module.training for module in case.model.modules()]
    _value(loss, case)
    assert [module.training for module in case.model.modules()] == modes, "a mode changed"
    assert all(p.grad is None and p.requires_grad for p in case.model.parameters()), "a gradient or a flag changed"
    for name, value in case.model.state_dict().items():
        assert torch.equal(value, before[name]), f"{name} changed"


def seeds_reproduce(make: Make) -> None:
    """With torch seeded alike, the value is the same; under no_grad too."""
    case = mlp_case()
    values = []
    for gradients in (True, True, False):
        torch.manual_seed(5)
        with torch.set_grad_enabled(gradients):
            values.append(_value(_ended(make), case).item())
    assert values[0] == values[1], "the same seed of torch gives another value"
    assert abs(values[0] - values[2]) <= 1e-6 * max(1.0, abs(values[0])), "under no_grad it is another number"


def shared_parameters_are_taken(make: Make) -> None:
    """A regulariser is added to it, and the task can be named."""
    case = mlp_case()
    seeded: list[float] = []
    for regularisers in ((), (_Constant(),)):
        loss = make(ball=_BALL, epochs=EPOCHS, regularisers=regularisers, task="classification")
        _end(loss)
        torch.manual_seed(5)
        seeded.append(_value(loss, case).item())
    assert abs(seeded[1] - seeded[0] - 1) < 1e-4, "a regulariser of 1 does not add 1 to the loss"


class _Constant(Regulariser):
    """A regulariser that is 1."""

    def penalty(self, batch: Batch) -> Tensor:
        """The number 1."""
        return batch.x.new_ones(())


def _made(make: Make) -> MixedLoss:
    ball: Ball = _BALL
    return make(ball=ball, epochs=EPOCHS)


def _ended(make: Make) -> MixedLoss:
    loss = _made(make)
    _end(loss)
    return loss


def _end(loss: MixedLoss) -> None:
    loss.step(EPOCHS - 1, 0, 1)


def _value(loss: MixedLoss, case: Case) -> Tensor:
    model: nn.Module = case.model
    return loss(model, case.x, case.y)


recipe_checks = [
    is_a_mixed_loss_of_the_ball,
    values_are_finite_scalars,
    gradients_reach_the_weights,
    steps_lower_it,
    model_is_left_as_found,
    seeds_reproduce,
    shared_parameters_are_taken,
]
"""For `pytest.mark.parametrize("check", recipe_checks)`; each check takes what makes the loss."""
