"""Running a model without leaving a trace."""

from __future__ import annotations

import random
from contextlib import suppress

import numpy as np
import torch
from torch import nn

from robust_plugins.evaluation import evaluating
from robust_plugins.testing.networks import cnn_case
from robust_plugins.testing.traces import leaves_no_trace


def test_all_is_restored_also_after_an_error() -> None:
    case = cnn_case()
    with leaves_no_trace(case), suppress(RuntimeError), evaluating(case.model, seed=5):
        case.model.train()
        case.model(case.x)  # moves the batch-norm statistics
        for parameter in case.model.parameters():
            parameter.requires_grad_(False)
            parameter.grad = torch.ones_like(parameter)
        torch.rand(3)
        np.random.rand(3)  # noqa: NPY002
        random.random()
        raise RuntimeError("backend")


def test_inside_it_is_evaluation_mode_seeded_and_frozen() -> None:
    case = cnn_case()
    case.model.train()
    draws = []
    for _ in range(2):
        with evaluating(case.model, seed=7, freeze=True):
            assert not any(m.training for m in case.model.modules())
            assert not any(p.requires_grad for p in case.model.parameters())
            draws.append((torch.rand(1).item(), np.random.rand(), random.random()))  # noqa: NPY002
    assert draws[0] == draws[1]


def test_the_users_gradient_is_not_added_to() -> None:
    model = nn.Linear(2, 2)
    model(torch.ones(1, 2)).sum().backward()
    gradient, before = model.weight.grad, model.weight.grad.clone()
    with evaluating(model):
        model(torch.ones(1, 2)).sum().backward()
    assert model.weight.grad is gradient
    assert torch.equal(gradient, before)
