"""Trainings on data that a poisoner really changed: at random, or to push the parameters one way as far as he can."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from robust_plugins.poisoning.budget import PoisoningBudget


def losses(name: str, z: Tensor, y: Tensor) -> Tensor:
    """One loss per sample."""
    if name == "cross_entropy":
        return F.cross_entropy(z, y, reduction="none")
    if name == "binary_cross_entropy":
        return F.binary_cross_entropy_with_logits(z, y.view(z.shape).to(z), reduction="none").mean(1)
    return F.mse_loss(z, y.view(z.shape), reduction="none").mean(1)


def other_labels(name: str, y: Tensor, budget: PoisoningBudget, classes: int) -> Iterator[Tensor]:
    """Every label vector worth trying."""
    if name == "mse":
        assert budget.label_radius is not None
        yield from (y - budget.label_radius, y + budget.label_radius)
    else:
        for c in range(classes) if budget.target is None else [budget.target]:
            yield torch.full_like(y, c)


class Poisoner:
    """Changes each batch of a training so that the update goes as far as possible in a direction, or at random."""

    def __init__(self, model: nn.Module, names: list[str], loss: str, budget: PoisoningBudget, kind: str, seed: int,
                 test: tuple[Tensor, Tensor]) -> None:  # fmt: skip
        self.model, self.names, self.loss, self.budget, self.kind, self.test = (
            deepcopy(model).requires_grad_(False), names, loss, budget, kind, test)  # fmt: skip
        self.random = torch.Generator().manual_seed(seed)
        parameters = dict(self.model.named_parameters())
        self.parameters = {n: parameters[n].detach().clone() for n in names}
        flat = self._flat(self.parameters)
        self.entry = int(torch.randint(len(flat), (), generator=self.random))
        self.sign = 1.0 if seed % 2 else -1.0

    def step(self, x: Tensor, y: Tensor, lr: float, weight_decay: float) -> None:
        x, y = self._random(x, y) if self.kind == "random" else self._guided(x, y)
        gradient = torch.func.grad(lambda p: self._losses(p, x, y).mean())(self.parameters)
        self.parameters = {n: p - lr * (gradient[n] + weight_decay * p) for n, p in self.parameters.items()}

    def outputs(self, x: Tensor) -> Tensor:
        return functional_call(self.model, self.parameters, (x,))

    def _losses(self, parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return losses(self.loss, functional_call(self.model, parameters, (x,)), y)

    def _direction(self) -> dict[str, Tensor]:
        if self.kind == "parameter":
            flat = torch.zeros_like(self._flat(self.parameters))
            flat[self.entry] = self.sign
        else:
            x, y = self.test
            flat = -self._flat(torch.func.grad(lambda p: self._losses(p, x, y).mean())(self.parameters))
        found, start = {}, 0
        for n, p in self.parameters.items():
            found[n] = flat[start : start + p.numel()].view_as(p)
            start += p.numel()
        return found

    def _flat(self, values: dict[str, Tensor]) -> Tensor:
        return torch.cat([values[n].flatten() for n in self.names])

    def _gain(self, x: Tensor, y: Tensor) -> Tensor:
        """Each sample's gradient along the direction."""
        one = torch.func.grad(lambda p, a, b: self._losses(p, a[None], b[None]).sum())
        gradients = torch.func.vmap(one, in_dims=(None, 0, 0))(self.parameters, x, y)
        return sum(((gradients[n] * d).flatten(1).sum(1) for n, d in self._direction().items()), start=x.new_zeros(()))

    def _moved(self, x: Tensor, y: Tensor) -> Tensor:
        slope = torch.func.grad(lambda z: self._gain(z, y).sum())(x)
        radius = self.budget.radius(x)
        steps = slope.sign() if self.budget.norm == "linf" else slope / slope.norm(dim=1, keepdim=True).clamp(min=1e-9)
        far = self.budget.project(x + steps * radius * (1 if self.budget.norm == "linf" else 3), x)
        return torch.where((self._gain(far, y) > self._gain(x, y))[:, None], far, x)

    def _relabelled(self, x: Tensor, y: Tensor) -> Tensor:
        best, gain = y, self._gain(x, y)
        for other in other_labels(self.loss, y, self.budget, max(2, self.outputs(x).shape[1])):
            theirs = self._gain(x, other)
            best = torch.where((theirs > gain).view(-1, *[1] * (y.dim() - 1)), other, best)
            gain = torch.maximum(gain, theirs)
        return best

    def _guided(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        n, m, x0, y0 = min(self.budget.points, len(x)), min(self.budget.labels, len(x)), x, y
        if m:
            better = self._relabelled(x0, y0)
            chosen = (self._gain(x0, better) - self._gain(x0, y0)).topk(m).indices
            y = y.clone()
            y[chosen] = better[chosen]
        if n:
            better = self._moved(x0, y)
            gain = self._gain(better, y) - self._gain(x0, y)
            if self.budget.paired and m:
                inside = torch.full_like(gain, -1.0)
                inside[chosen] = 1.0
                gain = gain + 1e6 * inside  # nested: those with changed labels first
            chosen = gain.topk(n).indices
            x = x.clone()
            x[chosen] = better[chosen]
        return x, y

    def _random(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        order = torch.randperm(len(x), generator=self.random)
        moved = order[: self.budget.points]
        if not self.budget.paired:
            order = torch.randperm(len(x), generator=self.random)
        changed = order[: self.budget.labels]
        corner = torch.randn(x.shape, generator=self.random, dtype=x.dtype).sign() * 10
        x, y = x.clone(), y.clone()
        x[moved] = self.budget.project(x + corner, x)[moved]
        if len(changed):
            choices = list(other_labels(self.loss, y, self.budget, max(2, self.outputs(x).shape[1])))
            pick = int(torch.randint(len(choices), (), generator=self.random))
            y[changed] = choices[pick][changed]
        return x, y


KINDS = ("random", "parameter", "parameter", "loss")


def poisoners(model: nn.Module, names: list[str], loss: str, budget: PoisoningBudget, count: int,
              test: tuple[Tensor, Tensor]) -> list[Poisoner]:  # fmt: skip
    """A mix of all kinds."""
    return [Poisoner(model, names, loss, budget, KINDS[i % len(KINDS)], i, test) for i in range(count)]
