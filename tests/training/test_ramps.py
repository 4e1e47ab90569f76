"""What training says of ramps that are too short or too long for it, and when they move."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from support.digits import EPS, batched, network
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.losses import Blended, GradientCertLoss


def _fit(digits: rp.Dataset, loss: object, epochs: int, **parameters: object) -> rp.TrainingRecord:
    model = network(digits, (8,))
    return rp.fit(model, batched(digits, samples=64 * 10), loss, epochs=epochs, progress=False,
                  optimizer=torch.optim.Adam(model.parameters()), **parameters)  # fmt: skip


def _ibp(digits: rp.Dataset, **parameters: object) -> rp.MixedLoss:
    return rp.recipe("ibp", ball=rp.Linf(eps=EPS, clip=digits.clip), **({"epochs": 2} | parameters))


def test_a_ramp_of_few_steps_is_warned_about(digits: rp.Dataset) -> None:
    with pytest.warns(UserWarning, match=r"fewer than 20 steps.*constant network"):
        _fit(digits, _ibp(digits), 2)
    _fit(digits, _ibp(digits, schedule=rp.Ramp(start=0, end=0)), 2)  # said so
    _fit(digits, rp.recipe("madry", ball=rp.Linf(eps=EPS, clip=digits.clip)), 1)


@pytest.mark.parametrize(("schedule", "reached"), [
    (None, "0.00756"),  # that of epochs=50
    (rp.Ramp(start=0, end=9), "0.048"), (rp.Ramp(start=5, end=9), "0"), (lambda epoch: epoch / 8, "0.25"),
])  # fmt: skip
def test_a_ramp_that_outlasts_training_is_warned_about(
    schedule: Callable[[float], float] | None, reached: str, digits: rp.Dataset
) -> None:
    loss = _ibp(digits, epochs=50, schedule=schedule)
    with pytest.warns(
        UserWarning, match=f"the ramp is not over after 2 epochs: training ends at {reached}[0-9]* times"
    ):
        record = _fit(digits, loss, 2)
    assert 0.7 * float(reached) * EPS <= record.final.eps <= float(reached) * EPS * 1.01  # that of the last batch


def test_what_is_said_of_a_ramp_that_outlasts_training_helps(digits: rp.Dataset) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*fewer than.* steps")
        for loss, epochs in ((_ibp(digits, epochs=2), 2), (_ibp(digits, epochs=6), 2), (_ibp(digits, epochs=9), 4)):
            assert _fit(digits, loss, epochs).final.eps == EPS


@pytest.mark.parametrize(("name", "parameters"), [
    ("gamma", {"gamma": rp.Ramp(start=0, end=9, first=1, last=0.5)}),
    ("beta", {"worst": Blended(tight=rp.certifier("interval:crown-ibp"), loose=rp.certifier("interval:ibp"),
                               beta=rp.Ramp(start=0, end=9, first=1, last=0))}),
    ("GradientCertLoss.schedule", {"regularisers": [
        GradientCertLoss(ball=rp.Linf(eps=0.01, clip=(0, 1)), schedule=rp.Ramp(start=1, end=3))]}),
])  # fmt: skip
def test_so_is_every_other_schedule_of_a_loss(name: str, parameters: dict[str, object], digits: rp.Dataset) -> None:
    loss = replace(_ibp(digits, schedule=rp.Ramp(start=0, end=0)), **parameters)
    with pytest.warns(UserWarning, match=f"the ramp of {name} is not over after 1 epochs"):
        _fit(digits, loss, 1)


def test_what_stands_still_on_purpose_is_not_warned_about(digits: rp.Dataset) -> None:
    for schedule in (lambda epoch: 0.5, rp.Ramp(start=0, end=9, first=1, last=1)):
        _fit(digits, _ibp(digits, schedule=schedule), 1)
    loss = _ibp(digits, schedule=rp.Ramp(start=0, end=0))
    _fit(digits, replace(loss, gamma=lambda epoch: 0.5), 1)


def test_the_ramp_stands_still_within_an_accumulated_group(digits: rp.Dataset) -> None:
    loss = _ibp(digits, schedule=rp.Ramp(start=0, end=1, shape="linear"))
    seen: list[float] = []

    class Noting:
        step = staticmethod(loss.step)

        def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            value = loss(model, x, y)
            seen.append(round(value.terms.eps / EPS, 6))
            return value

    _fit(digits, Noting(), 1, accumulate=4)
    assert seen == [0, 0, 0, 0, 0.4, 0.4, 0.4, 0.4, 0.8, 0.8]
    seen.clear()
    loss.step(0, -1)
    _fit(digits, Noting(), 1)
    assert seen == [pytest.approx(k / 10) for k in range(10)]
