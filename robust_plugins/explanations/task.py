"""`Task`: one batch under an explanation attack, with the explanation, its goal, and the best found so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import vmap

from robust_plugins.balls import Ball
from robust_plugins.explanations.explained import (
    Explained,
    derivative,
    refused_in_place,
    twice_differentiable,
    weight_intervals,
)
from robust_plugins.harness.functional import called

Goal = Literal["deviation", "top_k", "target"]
Weights = Mapping[str, Tensor]
"""For each parameter by name, one value per sample: shape (batch, *parameter)."""


class Task:
    """One batch under attack. It scores what it is offered on the network itself, and keeps each sample's best.

    `x`, `ball` and `value`, the explanation at `x`, describe the task; `box` are the intervals of the weights, or None
    where the weights are not attacked. All of it is in evaluation mode, with weight gradients off.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Float[Tensor, "batch *features"],
        ball: Ball,
        explained: Explained,
        goal: Goal,
        *,
        k: int,
        target: Tensor | None,
        radius: float,
    ) -> None:
        self.model, self.x, self.ball, self.goal = model, x, ball, goal
        self.box = weight_intervals(model, radius)
        self._explained, self._target, self._k, self._radius = explained, target, k, radius
        self.value = explained.gradient(model, x)
        size = self.value.flatten(1).abs()
        self._top = torch.zeros_like(size, dtype=torch.bool).scatter(1, size.topk(k).indices, True)
        self.ascents: list[Tensor] = []
        """The best objective of each independent ascent, (batch,), where a search says so: do they agree?"""
        self.best = x
        self.best_weights: Weights | None = self.own_weights()
        self.best_gradient = self.value
        self.best_score = self.objective(self.value, self.value)

    def repeated(self, times: int) -> Task:
        """The same task `times` times over, as one batch, from its start: for searches that run side by side."""
        radii = self.ball.radii
        ball = replace(self.ball, eps=radii * times) if isinstance(radii, tuple) else self.ball
        ones = [1] * (self.x.dim() - 1)
        target = None if self._target is None else self._target.repeat(times, *ones)
        return Task(
            self.model, self.x.repeat(times, *ones), ball, self._explained.repeated(times), self.goal,
            k=self._k, target=target, radius=self._radius,
        )  # fmt: skip

    def take(self, other: Task, times: int) -> None:
        """Offers what was found by a task that is this one, `times` times over."""
        size = len(self.x)
        for begin in range(0, times * size, size):
            part, weights = slice(begin, begin + size), other.best_weights
            self.offer(other.best[part], None if weights is None else {k: w[part] for k, w in weights.items()})

    def own_weights(self) -> Weights | None:
        """The model's own parameters, once for each sample; None where the weights are not attacked."""
        if self.box is None:
            return None
        own = dict(self.model.named_parameters())
        return {name: own[name].detach().expand(len(self.x), *own[name].shape) for name in self.box}

    def gradient(
        self, z: Float[Tensor, "batch *features"], weights: Weights | None = None, *, create_graph: bool = False
    ) -> Float[Tensor, "batch *features"]:
        """The explanation at `z`, of the model or of models with `weights`; inside `smoothed`, that of the surrogate.

        With `create_graph` it is differentiable in `z` and `weights` where these require gradients.
        """
        if weights is None:
            return self._explained.gradient(self.model, z, create_graph=create_graph)

        def logits(own: Weights, sample: Tensor) -> Tensor:
            out: Tensor = called(self.model, own, sample.unsqueeze(0))
            return out.squeeze(0)

        with torch.enable_grad(), twice_differentiable(create_graph):
            z = z if create_graph and z.requires_grad else z.detach().requires_grad_()
            with refused_in_place():
                number = self._explained.number(vmap(logits)(dict(weights), z)).sum()
            found = derivative(number, z, create_graph=create_graph)
        return found if create_graph else found.detach()

    def objective(
        self, v: Float[Tensor, "batch *features"], reference: Float[Tensor, "batch *features"]
    ) -> Float[Tensor, " batch"]:
        """How far the explanations `v` have come, to be raised; `reference` is the explanation at `x`.

        - `"deviation"`: the squared distance from the reference.
        - `"top_k"`: the largest `|v_i|` of the features outside the k largest at x, less the smallest of those k; they
          are no longer the k largest where it is above zero.
        - `"target"`: minus the squared distance from the target.
        """
        if self.goal == "deviation":
            return (v - reference).flatten(1).square().sum(1)
        if self.goal == "target":
            assert self._target is not None  # checked by ExplanationAttack
            return -(v - self._target).flatten(1).square().sum(1)
        size = v.flatten(1).abs()
        return size.masked_fill(self._top, -torch.inf).amax(1) - size.masked_fill(~self._top, torch.inf).amin(1)

    def offer(self, z: Float[Tensor, "batch *features"], weights: Weights | None = None) -> Float[Tensor, " batch"]:
        """Scores candidates, and keeps those that beat the best: the objective on the network itself, shape (batch,).

        What lies outside the ball or the intervals of the weights is projected first. A candidate with NaN is taken
        for `x` itself, and an explanation with NaN never wins.
        """
        z = chosen(z.detach().isfinite().flatten(1).all(1), z.detach(), self.x)
        z = self.ball.project(z, self.x)
        weights = self.inside(weights)
        found = self.gradient(z, weights)
        score = self.objective(found, self.value).detach()
        better = (score > self.best_score) & found.isfinite().flatten(1).all(1)
        self.best_score = torch.where(better, score, self.best_score)
        self.best, self.best_gradient = chosen(better, z, self.best), chosen(better, found, self.best_gradient)
        if weights is not None and self.best_weights is not None:
            self.best_weights = {name: chosen(better, w, self.best_weights[name]) for name, w in weights.items()}
        return score

    def inside(self, weights: Weights | None) -> Weights | None:
        """`weights` moved into their intervals; the model's own where there are none."""
        if self.box is None or weights is None:
            return self.own_weights()
        found = {}
        for name, box in self.box.items():
            moved = torch.minimum(torch.maximum(weights[name].detach(), box.lower), box.upper)
            found[name] = torch.where(moved.isnan(), box.center, moved)
        return found


def chosen(where: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Sample by sample, `one` where the flag is set, else `other`."""
    return torch.where(where.view(-1, *[1] * (one.dim() - 1)), one, other)
