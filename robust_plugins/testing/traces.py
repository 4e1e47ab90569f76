"""Traces that a public call must not leave: in the model, the inputs, and the random states."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from robust_plugins.testing.networks import Case


@contextmanager
def leaves_no_trace(case: Case) -> Iterator[None]:
    """Puts the model into a state that careless code destroys, and fails where the block has changed any of it.

    Training mode with one submodule in evaluation mode, one frozen parameter, a gradient in place, seeded random
    states, batch-norm statistics.
    """
    model = case.model
    model.train()
    list(model.modules())[-1].eval()
    parameters = list(model.parameters())
    parameters[0].requires_grad_(False)
    parameters[-1].grad = torch.full_like(parameters[-1], 3.0)
    before = _state(model, case.x, case.y)
    gradient = parameters[-1].grad
    try:
        yield
        after = _state(model, case.x, case.y)
        for what, value in before.items():
            assert _same(after[what], value), f"{what} changed"
        assert parameters[-1].grad is gradient, "a parameter's .grad was replaced by another tensor"
    finally:
        parameters[-1].grad = None
        for parameter in parameters:
            parameter.requires_grad_(True)
        model.eval()


def _state(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, object]:
    state: dict[str, object] = {
        "torch's random state": torch.get_rng_state(),
        "numpy's random state": str(np.random.get_state()),  # noqa: NPY002 (the global one is what backends use)
        "python's random state": random.getstate(),
        "torch's default dtype": torch.get_default_dtype(),
        "the gradient mode": torch.is_grad_enabled(),
        "x": x.clone(),
        "y": y.clone(),
        "x.requires_grad": x.requires_grad,
    }
    for name, module in model.named_modules():
        state[f"the mode of submodule {name!r}"] = module.training
    for name, parameter in model.named_parameters():
        state[f"{name}.requires_grad"] = parameter.requires_grad
        state[f"{name}.grad"] = None if parameter.grad is None else parameter.grad.clone()
        state[f"the device of {name}"] = parameter.device
        state[name] = parameter.detach().clone()
    for name, buffer in model.named_buffers():
        state[name] = buffer.clone()
    return state


def _same(a: object, b: object) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(a, b)
    return a == b
