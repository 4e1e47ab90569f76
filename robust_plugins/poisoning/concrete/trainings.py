"""Concrete trainings of one model, as torch does them: of the clean data, or many at once on poisoned batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from robust_plugins.poisoning.concrete.batches import PoisonedBatch
from robust_plugins.poisoning.concrete.clipping import Clip
from robust_plugins.poisoning.concrete.losses import Objective
from robust_plugins.poisoning.concrete.optimizers import Optimizer

CHUNK = 2**22
"""The number of values, of gradients or of activations, that are held at a time."""


class Trainings:
    """`count` copies of a model, trained together in evaluation mode by torch's optimizer, each on its own batches.

    Parameters have the shape (trainings, *parameter). Optimizers work entry by entry, so that one of torch's own
    serves all trainings at once. A single training is torch's to the last bit.

    - `names`: the parameters that are trained.
    - `clip`: how every sample's gradient is clipped before the mean.
    - `group`: processes that each hold a part of every batch of a single training; gradients are summed over them.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Sequence[str],
        objective: Objective,
        optimizer: Optimizer,
        *,
        clip: Clip | None = None,
        count: int = 1,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        assert group is None or count == 1
        self.model = deepcopy(model).eval().requires_grad_(False)
        for parameter in self.model.parameters():
            parameter.grad = None
        self.objective, self.schedule, self.clip, self.count, self.group = objective, optimizer, clip, count, group
        known = dict(self.model.named_parameters())
        self.parameters = {n: known[n].detach().expand(count, *known[n].shape).clone() for n in names}
        self.optimizer = optimizer.torch(self.parameters.values())
        self.size = sum(known[n].numel() for n in names)
        self.t = 0

    def step(self, batch: PoisonedBatch) -> None:
        """One update of every training, on its own batch."""
        for entry in self.optimizer.param_groups:
            entry["lr"] = self.schedule.learning_rate(self.t)
        for name, gradient in self.gradient(batch).items():
            self.parameters[name].grad = gradient
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.t += 1

    def gradient(self, batch: PoisonedBatch) -> dict[str, Tensor]:
        """Every training's mean gradient over its batch, 0 where that is empty."""
        if self.count == 1:
            return self._gradient_of_one(*batch.of(0))
        if not batch.x.shape[1]:
            return {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        return self._parts(self._mean, batch.x, batch.y, batch.present.to(batch.x.dtype), per_sample=self.clip)

    def _gradient_of_one(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """By plain reverse mode, as a loop of torch's own has it."""
        size = self._size(x)
        values = {name: p[0].detach() for name, p in self.parameters.items()}
        if not len(x):
            found = {name: torch.zeros_like(v) for name, v in values.items()}
        elif self.clip is None:
            with torch.enable_grad():
                values = {name: v.requires_grad_() for name, v in values.items()}
                z = functional_call(self.model, values, (x,))
                loss = self.objective.mean(z, y) if self.group is None else self.objective.losses(z, y).sum() / size
                parts = torch.autograd.grad(loss, list(values.values()), materialize_grads=True)
            found = dict(zip(values, parts, strict=True))
        else:
            whole = PoisonedBatch.whole(x, y)
            sums = self._clipped_sums({n: v[None] for n, v in values.items()}, whole.x, whole.y, whole.present)
            found = {name: s[0] / size for name, s in sums.items()}
        if self.group is not None:
            for g in found.values():
                dist.all_reduce(g, group=self.group)
        return {name: g.unsqueeze(0) for name, g in found.items()}

    def _size(self, x: Tensor) -> int:
        if self.group is None:
            return len(x)
        count = torch.tensor(len(x), device=x.device)
        dist.all_reduce(count, group=self.group)
        return int(count)

    def trained(self, training: int = 0) -> nn.Module:
        """A copy of the model with the parameters of one training."""
        model = deepcopy(self.model)
        known = dict(model.named_parameters())
        with torch.no_grad():
            for name, p in self.parameters.items():
                known[name].copy_(p[training])
                known[name].requires_grad_()
        return model

    def copy(self) -> Trainings:
        """A copy that can be asked, trained or spoilt without any effect on these trainings."""
        found = Trainings(self.model, list(self.parameters), self.objective, self.schedule, clip=self.clip,
                          count=self.count)  # fmt: skip
        for name, p in self.parameters.items():
            found.parameters[name].copy_(p)
        found.t = self.t
        return found

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides how the trainings go on."""
        return {"t": self.t, "parameters": self.values(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from `state_dict`."""
        self.t = state["t"]
        for name, value in state["parameters"].items():
            self.parameters[name].copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])

    def outputs(self, x: Float[Tensor, "samples *features"]) -> Tensor:
        """The outputs on the same samples, (trainings, samples, outputs)."""

        def one(values: dict[str, Tensor]) -> dict[str, Tensor]:
            return {"z": functional_call(self.model, values, (x,))}

        with torch.no_grad():
            return self._parts(vmap(one), samples=x)["z"]

    def losses(
        self, x: Float[Tensor, "trainings samples *features"], y: Shaped[Tensor, "trainings samples *labels"]
    ) -> Tensor:
        """Every sample's loss, (trainings, samples), for x (trainings, samples, *features)."""
        return self._parts(lambda *given: {"loss": vmap(self._losses)(*given)}, x, y)["loss"]

    def loss_gradient(
        self, x: Float[Tensor, "samples *features"], y: Shaped[Tensor, "samples *labels"]
    ) -> dict[str, Tensor]:
        """The gradient of the mean loss over the same samples for every training."""
        whole = PoisonedBatch(
            x.expand(self.count, *x.shape), y.expand(self.count, *y.shape), x.new_ones(self.count, len(x)).bool()
        )
        return self._parts(self._mean_unclipped, whole.x, whole.y, whole.present.to(x.dtype))

    def scores(
        self,
        direction: Mapping[str, Tensor],
        x: Float[Tensor, "trainings samples *features"],
        y: Shaped[Tensor, "trainings samples *labels"],
    ) -> Tensor:
        """`<direction, gradient of the sample>` after clipping: (trainings, samples). Differentiable in x."""
        names = list(direction)

        def along(values: dict[str, Tensor], x: Tensor, y: Tensor, *u: Tensor) -> dict[str, Tensor]:
            def one(values: dict[str, Tensor], x: Tensor, y: Tensor, u: dict[str, Tensor]) -> Tensor:
                # All scores of a batch at once: the derivative by the samples' weights.
                def weighted(weights: Tensor) -> Tensor:
                    found = grad(lambda v: (weights * self._losses(v, x, y)).sum())(values)
                    return torch.stack([(found[name] * u[name]).sum() for name in u]).sum()

                scores: Tensor = grad(weighted)(torch.ones_like(x.flatten(1)[:, 0]))
                return scores

            return {"score": vmap(one)(values, x, y, dict(zip(names, u, strict=True)))}

        def clipped(values: dict[str, Tensor], x: Tensor, y: Tensor, *u: Tensor) -> dict[str, Tensor]:
            gradients = self._clipped(values, x, y)
            parts = [_flat(gradients[n] * v.unsqueeze(1)).sum(2) for n, v in zip(names, u, strict=True)]
            return {"score": torch.stack(parts).sum(0)}

        given = (x, y, *(direction[name] for name in names))
        return self._parts(along if self.clip is None else clipped, *given, per_sample=self.clip)["score"]

    def values(self) -> dict[str, Tensor]:
        """A copy of the parameters."""
        return {name: p.detach().clone() for name, p in self.parameters.items()}

    def _losses(self, values: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return self.objective.losses(functional_call(self.model, values, (x,)), y)

    def _mean(self, values: dict[str, Tensor], x: Tensor, y: Tensor, present: Tensor) -> dict[str, Tensor]:
        if self.clip is None:
            return self._mean_unclipped(values, x, y, present)
        sizes = present.sum(1).clamp(min=1)
        sums = self._clipped_sums(values, x, y, present)
        return {name: s / sizes.view(-1, *[1] * (s.dim() - 1)) for name, s in sums.items()}

    def _clipped_sums(self, values: dict[str, Tensor], x: Tensor, y: Tensor, present: Tensor) -> dict[str, Tensor]:
        """The sums of the clipped gradients of the samples that are present, some samples at a time."""
        step = max(1, CHUNK // max(1, self.size * len(x)))
        total = {name: torch.zeros_like(v) for name, v in values.items()}
        for start in range(0, x.shape[1], step):
            some = slice(start, start + step)
            for name, g in self._clipped(values, x[:, some], y[:, some]).items():
                total[name] += (g * present[:, some].view(*present[:, some].shape, *[1] * (g.dim() - 2))).sum(1)
        return total

    def _mean_unclipped(self, values: dict[str, Tensor], x: Tensor, y: Tensor, present: Tensor) -> dict[str, Tensor]:
        def loss(values: dict[str, Tensor], x: Tensor, y: Tensor, present: Tensor) -> Tensor:
            return (self._losses(values, x, y) * present).sum() / present.sum().clamp(min=1)

        found: dict[str, Tensor] = vmap(grad(loss))(values, x, y, present)
        return found

    def _clipped(self, values: dict[str, Tensor], x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """The clipped gradient of every sample, (trainings, samples, *parameter)."""

        def loss(values: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            return self._losses(values, x.unsqueeze(0), y.unsqueeze(0))[0]

        assert self.clip is not None
        of_sample = vmap(vmap(grad(loss), in_dims=(None, 0, 0)))(values, x, y)
        clipped = self.clip({name: g.flatten(0, 1) for name, g in of_sample.items()})
        return {name: g.view(*x.shape[:2], *g.shape[1:]) for name, g in clipped.items()}

    def _parts(
        self,
        compute: Callable[..., dict[str, Tensor]],
        *given: Tensor,
        per_sample: Clip | None = None,
        samples: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """`compute(parameters, *given)`, some trainings at a time."""
        of_one = samples if samples is not None else given[0][0]
        # Activations are taken to be at most 32 times as many as the input's values.
        cost = max(32 * of_one.numel(), self.size * (len(of_one) if per_sample is not None else 1), 1)
        step = max(1, CHUNK // cost)
        found = []
        for start in range(0, self.count, step):
            some = slice(start, start + step)
            values = {name: p.detach()[some] for name, p in self.parameters.items()}
            found.append(compute(values, *(g[some] for g in given)))
        return found[0] if len(found) == 1 else {name: torch.cat([f[name] for f in found]) for name in found[0]}


def _flat(values: Tensor) -> Tensor:
    """(trainings, samples, entries) of any parameter's values, of a single number's too."""
    return values.reshape(*values.shape[:2], values.shape[2:].numel())
