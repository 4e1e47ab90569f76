"""Checks that attacks on decisions and attacks on explanations share: both search a ball for inputs, `x_adv`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robust_plugins.balls import Ball
from robust_plugins.testing.networks import Case
from robust_plugins.testing.traces import leaves_no_trace


def check_frozen_data(component: Any) -> None:
    """Prints its parameters, compares and hashes by them."""
    assert replace(component) == component
    assert hash(replace(component)) == hash(component)
    assert type(component).__name__ in repr(component)


def check_traces(attack: Any, case: Case, ball: Ball) -> None:
    """Modes, gradients, flags, buffers, inputs and random states are as before, also under no_grad."""
    with leaves_no_trace(case):
        attack(case.model, case.x, case.y, ball, seed=3)
    with torch.no_grad(), leaves_no_trace(case):
        attack(case.model, case.x, case.y, ball)


def check_evaluation_mode(attack: Any, case: Case, ball: Ball) -> None:
    """A model in training mode, with dropout, gives the same result as in evaluation mode."""
    model = nn.Sequential(case.model, nn.Dropout(0.5))
    in_evaluation = attack(model.eval(), case.x, case.y, ball, seed=0)
    in_training = attack(model.train(), case.x, case.y, ball, seed=0)
    assert torch.equal(in_evaluation.x_adv, in_training.x_adv), "the model's mode changes the result"


def check_seed(attack: Any, case: Case, ball: Ball) -> None:
    """The same seed gives the same result, whatever the global random states are; the result states its seed."""
    first = attack(case.model, case.x, case.y, ball)
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002 (the global state is what backends draw from)
    again = attack(case.model, case.x, case.y, ball, seed=first.seed)
    assert torch.equal(first.x_adv, again.x_adv), "the stated seed does not reproduce the result"


def check_batches(attack: Any, case: Case, ball: Ball) -> None:
    """Empty batches, single samples, chunks and one eps per sample, for a case of six samples."""
    shape = case.x.shape[1:]
    assert attack(case.model, case.x[:0], case.y[:0], ball, seed=0).x_adv.shape == (0, *shape)
    assert attack(case.model, case.x[:1], case.y[:1], ball, seed=0).x_adv.shape == (1, *shape)
    chunked = replace(attack, batch_size=4)(case.model, case.x, case.y, ball, seed=0)
    assert ball.contains(chunked.x_adv, case.x).all()
    radii = replace(ball, eps=[0.0, 0.01, 0.02, 0.05, 0.1, 0.2])
    each = attack(case.model, case.x, case.y, radii, seed=0)
    assert radii.contains(each.x_adv, case.x).all(), "a sample left its own eps"
    assert torch.equal(each.x_adv[0], case.x[0]), "eps = 0 moved a sample"


def unusable_inputs(case: Case) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and labels that every call over a ball with the clip range [0, 1] refuses."""
    yield torch.full_like(case.x, torch.nan), case.y
    yield case.x + 2, case.y  # outside the clip range
    yield case.x, case.y + 4  # classes that there are not
    yield case.x.double(), case.y
