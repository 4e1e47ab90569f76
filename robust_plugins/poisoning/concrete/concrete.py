"""Training as torch does it, one update at a time: of the clean data, and of any poisoned ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from robust_plugins.poisoning.concrete.clipping import Clip
from robust_plugins.poisoning.concrete.losses import Objective
from robust_plugins.poisoning.concrete.optimizers import Optimizer

CHUNK = 2**25
"""The number of per-sample gradients, all parameters together, that are held at a time."""


class ConcreteTraining:
    """A copy of the model, trained in evaluation mode by torch's optimizer, on the batches that it is given.

    With `clip` every sample's gradient is clipped before the mean. With `group` each process holds a part of every
    batch, and gradients are summed over the processes.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Sequence[str],
        objective: Objective,
        optimizer: Optimizer,
        *,
        clip: Clip | None = None,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        self.model = deepcopy(model).eval()
        self.objective, self.schedule, self.clip, self.group = objective, optimizer, clip, group
        known = dict(self.model.named_parameters())
        for parameter in known.values():
            parameter.requires_grad_(False)
            parameter.grad = None
        self.parameters = {name: known[name].requires_grad_() for name in names}
        self.optimizer = optimizer.torch(self.parameters.values())
        self.t = 0

    def step(self, x: Tensor, y: Tensor) -> None:
        """One update on the batch; the gradient of an empty one is 0."""
        for entry in self.optimizer.param_groups:
            entry["lr"] = self.schedule.learning_rate(self.t)
        for name, gradient in self.gradient(x, y).items():
            self.parameters[name].grad = gradient
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.t += 1

    def gradient(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """The mean gradient of the batch at the present parameters."""
        size = self._size(x)
        if not len(x):
            found = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        elif self.clip is None:
            with torch.enable_grad():
                z = self.model(x)
                loss = self.objective.mean(z, y) if self.group is None else self.objective.losses(z, y).sum() / size
                parts = torch.autograd.grad(loss, list(self.parameters.values()), materialize_grads=True)
            found = dict(zip(self.parameters, parts, strict=True))
        else:
            found = {name: s / size for name, s in self._clipped_sum(x, y, self.clip).items()}
        if self.group is not None:
            for g in found.values():
                dist.all_reduce(g, group=self.group)
        return found

    def values(self) -> dict[str, Tensor]:
        """A copy of the trained parameters."""
        return {name: p.detach().clone() for name, p in self.parameters.items()}

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides how the training goes on."""
        return {"t": self.t, "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from `state_dict`."""
        self.t = state["t"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])

    def _clipped_sum(self, x: Tensor, y: Tensor, clip: Clip) -> dict[str, Tensor]:
        step = max(1, CHUNK // max(1, sum(p.numel() for p in self.parameters.values())))
        total = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        for start in range(0, len(x), step):
            part = clip(self._per_sample(x[start : start + step], y[start : start + step]))
            total = {name: s + part[name].sum(0) for name, s in total.items()}
        return total

    def _per_sample(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        parameters = {name: p.detach() for name, p in self.parameters.items()}

        def loss(values: dict[str, Tensor], one: Tensor, label: Tensor) -> Tensor:
            z = functional_call(self.model, values, (one.unsqueeze(0),))
            return self.objective.losses(z, label.unsqueeze(0))[0]

        found: dict[str, Tensor] = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, x, y)
        return found

    def _size(self, x: Tensor) -> int:
        if self.group is None:
            return len(x)
        count = torch.tensor(len(x), device=x.device)
        dist.all_reduce(count, group=self.group)
        return int(count)
