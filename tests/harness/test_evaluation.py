"""Running a model without leaving a trace."""

from __future__ import annotations

import copy
import random
from contextlib import suppress
from fractions import Fraction

import numpy as np
import torch
from torch import nn

from robust_plugins.harness.evaluation import evaluating, evaluation_error
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


def test_errors_of_some_samples_are_those_of_all() -> None:
    case = cnn_case()
    ran: list[int] = []
    case.model.register_forward_pre_hook(lambda _, inputs: ran.append(len(inputs[0])))
    with evaluating(case.model), torch.no_grad():
        logits = case.model(case.x)
        every = evaluation_error(case.model, case.x, logits)
        where = torch.arange(len(logits)) % 2 == 0
        some = evaluation_error(case.model, case.x, logits, where=where)
        none = evaluation_error(case.model, case.x, logits, where=where & False)
    assert ran == [len(where), len(where), int(where.sum())]
    assert (every > 0).all()
    assert (some[~where] == 0).all()
    assert not none.any()
    assert torch.allclose(some[where], every[where], rtol=0.5)  # other shapes are summed in another order


def test_a_model_of_one_batch_size_is_run_whole() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x) + torch.zeros(4, 1, dtype=x.dtype)

    model, x = Fixed(), torch.rand(4, 3)
    where = torch.tensor([True, False, False, True])
    assert (evaluation_error(model, x, model(x) + 1, where=where)[where] > 0.9).all()


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


def test_the_rounding_error_of_cancelling_terms_is_measured() -> None:
    """Terms of size 1000 that cancel to 0.1: the error is that of the terms, not of the logit."""
    model = nn.Linear(50, 2)
    with torch.no_grad():
        model.weight.copy_(1000 * torch.rand(2, 50, generator=torch.Generator().manual_seed(0)))
        x = torch.rand(20, 50, generator=torch.Generator().manual_seed(1))
        model.bias.copy_(-(x @ model.weight.T)[0] + 0.1)
        error = evaluation_error(model, x, model(x))
        exact = x.double() @ model.weight.double().T + model.bias.double()
    torch.testing.assert_close(error.double(), (model(x).double() - exact).abs().amax(1).detach(), rtol=1e-3, atol=1e-9)
    assert error[0] > 1e-6 * 0.1  # what the logits' scale alone would allow
    assert next(model.parameters()).dtype == torch.float32
    wide = copy.deepcopy(model).double()
    size = evaluation_error(wide, x.double(), wide(x.double()))
    assert bool((size < 1e-7 * error.double()).all())  # 1e-9 of it, up to luck


def test_the_rounding_error_of_a_float64_model_has_the_right_size() -> None:
    """Integers beyond 2^53: their sum, which is exactly known, is off by some of the last places."""
    terms = torch.tensor([[2.0**53, 1.0, 1.0, 1.0, -(2.0**53), 1.0, 0.0, 0.0]], dtype=torch.float64)
    model = nn.Linear(8, 2, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.stack((terms[0], 0 * terms[0])))
    x = torch.rand(1, 8, dtype=torch.float64)
    logits = model(x).detach()
    exact = sum((Fraction(a) * Fraction(b) for a, b in zip(terms[0].tolist(), x[0].tolist(), strict=True)), Fraction())
    true = abs(float(Fraction(logits[0, 0].item()) - exact))
    found = evaluation_error(model, x, logits).item()
    assert true <= 8 * found <= 1e4 * true + 1.0
    huge = evaluation_error(model, 1e40 * x, 1e40 * logits)  # float32 overflows
    assert huge.tolist() == [0.0]


def test_a_model_of_one_dtype_has_no_measured_error() -> None:
    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ torch.ones(3, 2)

    x = torch.rand(4, 3)
    assert evaluation_error(Fixed(), x, Fixed()(x)).tolist() == [0.0] * 4


class _Twice(nn.Module):
    """A module that goes by two names, and a weight that two modules hold."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.both = nn.ModuleList([self.first, self.second])

    def forward(self, x: Tensor) -> Tensor:
        return 1e4 * self.both[1](self.both[0](x).tanh()) - 1e4 * self.second(x)


def test_the_rounding_of_modules_under_two_names_is_measured_and_they_stay_as_they_were() -> None:
    torch.manual_seed(0)
    model, x = _Twice(), torch.rand(4, 3)
    with torch.no_grad():
        logits = model(x)
        before = {name: p.clone() for name, p in model.named_parameters()}
        error = evaluation_error(model, x, logits)
        exact = copy.deepcopy(model).double()(x.double())
    assert torch.equal(error, (exact - logits).abs().amax(1).float())
    assert bool((error > 0).any())
    assert all(p.dtype == torch.float32 and torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_errors_that_cancel_at_one_point_show_at_its_neighbours() -> None:
    class Cancelling(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([(x + 3000).sum(1) - 3000 * x.shape[1], x.sum(1)], 1)

    model = Cancelling()
    x = torch.zeros(3, 4)
    x[0] = 1 / 3
    with evaluating(model), torch.no_grad():
        logits = model(x)
        there, around = (evaluation_error(model, x, logits, neighbours=n) for n in (0, 3))
        some = evaluation_error(model, x, logits, neighbours=3, where=torch.tensor([True, False, False]))
    assert (around >= there).all()
    assert around[0] > 1e-5
    assert some[0] > 1e-5
    assert not some[1:].any()
