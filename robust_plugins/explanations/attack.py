"""`ExplanationAttack`: the common interface of searches for inputs, and weights, with another explanation."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from robust_plugins.balls import Ball
from robust_plugins.errors import ArgumentError
from robust_plugins.explanations.certificate import euclidean
from robust_plugins.explanations.explained import Of, explained_by
from robust_plugins.explanations.task import Goal, Task
from robust_plugins.harness.batches import Inputs, Labels, as_batch
from robust_plugins.harness.call import calling, ordinary
from robust_plugins.harness.component import Component, chunks
from robust_plugins.harness.evaluation import checked_seed
from robust_plugins.harness.guard import TOLERATED
from robust_plugins.harness.memory import BUDGET
from robust_plugins.harness.result import SampleResult
from robust_plugins.harness.wrappers import Landed, Model

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class ExplanationAttackResult(SampleResult):
    """The worst explanations that an attack found, recomputed on the network: the empirical side of the bracket.

    Where nothing was worse than `x` itself, `x_adv` is `x`.

    - `x_adv`: inside the ball around `x` and inside its clip range.
    - `weights_adv`: for each sample the parameters of the model that was found, (batch, *parameter) by name, inside
      their intervals; None where only inputs were attacked.
    - `gradient`: the explanation at `x_adv`, of the model with `weights_adv`.
    - `value`: the explanation at `x`, of the model itself.
    - `deviation`: `|gradient - value| / |value|`, Euclidean norms; infinite where `value` is 0 and `gradient` is not.
    - `evicted`: where the `k` features with the largest `|value|` are no longer those with the largest `|gradient|`.
    - `distance`: the Euclidean distance between `gradient` and the target; None without one.
    - `success`: whether the goal was reached; None where no `threshold` says when that is.
    - `agreeing`: how many independent ascents of the attack came within 1 % of the largest deviation; None for other
      goals, and for attacks that make or report fewer than two. One alone hints at more to be found.
    - `goal`: what the attack was to change: `"deviation"`, `"top_k"` or `"target"`.
    - `k`: how many of the largest features `evicted` is about.
    - `of`: whose gradient is the explanation.
    - `seconds`: wall-clock time of the whole call.
    - `seed`: the seed that reproduces this result, also where none was given.
    """

    x_adv: Float[Tensor, "batch *features"]
    weights_adv: dict[str, Tensor] | None
    gradient: Float[Tensor, "batch *features"]
    value: Float[Tensor, "batch *features"]
    deviation: Float[Tensor, " batch"]
    evicted: Bool[Tensor, " batch"]
    distance: Float[Tensor, " batch"] | None
    success: Bool[Tensor, " batch"] | None
    agreeing: Int[Tensor, " batch"] | None
    goal: Goal
    k: int
    of: Of
    seconds: float
    seed: int

    def __repr__(self) -> str:
        """One line; the tensors are in the fields."""
        count = len(self.deviation)
        typical = f", median deviation {self.deviation.nanmedian():.3g}" if count else ""
        reached = "" if self.success is None else f", success on {int(self.success.sum())}"
        what = f"{self.goal} of the {self.of}: {count} samples{typical}{reached}, {self.seconds:.2g} s"
        return f"<ExplanationAttackResult for the {what}>"

    def plot(
        self, x: Float[Tensor, "batch *features"] | None = None, *, samples: int = 6, feature_names: Sequence[str] = ()
    ) -> Figure:
        """A picture: attributions of `samples` samples beside what was found, and `x` where it holds images.

        Raises PluginError without matplotlib.
        """
        from robust_plugins.explanations.pictures import Explanations, explained_figure

        what = Explanations(value=self.value, found=self.gradient, found_by="the attack", x=x)
        return explained_figure(what, samples, feature_names)

    def to_records(self) -> list[dict[str, Any]]:
        """For each sample: the deviation that was reached, and whether the k most important features changed."""
        columns: dict[str, Any] = {
            "sample": range(len(self.deviation)),
            "deviation": self.deviation.tolist(),
            "evicted": self.evicted.tolist(),
        }
        optional = {"distance": self.distance, "success": self.success, "agreeing": self.agreeing}
        columns |= {name: values.tolist() for name, values in optional.items() if values is not None}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


@dataclass(frozen=True, kw_only=True)
class ExplanationAttack(Component, ABC):
    """Searches the ball around each sample for an input with another explanation: a lower bound on its change.

    To write one, implement `search`, and freeze it as a dataclass whose fields are its parameters.

    - `batch_size`: how many samples are handed to the backend at a time; None lets the component choose.
    """

    @abstractmethod
    def search(self, task: Task) -> None:
        """Offers candidates to `task.offer`, which projects and scores them on the network and keeps the best.

        `task.gradient` and `task.objective` are there to be followed. The model is in evaluation mode with weight
        gradients off; the global generators of torch, numpy and python are seeded, so draw from them.
        """

    @final
    def __call__(
        self,
        model: Model,
        x: Inputs,
        y: Labels | None,
        ball: Ball,
        *,
        of: Of = "logit",
        goal: Goal = "deviation",
        k: int = 1,
        target: Float[Tensor, "#batch *features"] | None = None,
        threshold: float | None = None,
        radius: float = 0.0,
        seed: int | None = None,
    ) -> ExplanationAttackResult:
        """Attacks the explanations of `model` at `x`, in evaluation mode.

        - `y`, `of`: what is explained, as for `rp.ExplanationCertifier`.
        - `goal`: `"deviation"`, as far from the explanation at x as possible; `"top_k"`, other features than the `k`
          with the largest `|v_i|`; `"target"`, as near to the explanation `target` as possible, shaped like `x` or
          one for the whole batch.
        - `threshold`: when the goal is reached: the relative deviation to exceed, or the Euclidean distance from the
          target not to exceed. A top-k set is changed or not, without a threshold.
        - `radius`: the relative radius by which each parameter may be moved too, for each sample on its own.
        - `seed`: makes the call reproducible; None draws one, which the result states.

        `x` and `y` may be numpy arrays, or `x` a TensorDataset or a DataLoader of pairs and `y` None.

        Each sample keeps its best candidate, scored on the network itself. `model`, the random states and `x` are left
        as found. Raises ArgumentError for unusable arguments.
        """
        seed = checked_seed(seed)
        samples, labels = as_batch(x, y, model)
        with calling(model, samples, ball, seed=seed, freeze=True) as call:
            _check_goal(samples, goal, k, target, threshold, radius)
            x = call.x.detach()
            model, explained = explained_by(call.model, x, ordinary(labels), of, size=self.batch_size)
            goals = None if target is None else ordinary(target.detach()).to(x).expand(x.shape)
            tasks, agreeing = [], []
            if ball.relaxed is not ball:
                model = Landed(model, ball)
            for part in chunks(len(x), self._chunk_size(model, radius)):
                aim = None if goals is None else goals[part]

                def task(within: Ball, part: slice = part, aim: Tensor | None = aim) -> Task:
                    return Task(
                        model, x[part].clone(), within[part], explained[part], goal, k=k, target=aim, radius=radius
                    )

                searched = task(ball.relaxed)
                with torch.enable_grad():
                    self.search(searched)
                # What was found is scored again by a task that the attack never had, on the model as it was.
                call.check(self, tolerated=TOLERATED)
                judged = task(ball)
                judged.offer(searched.best, searched.best_weights)
                tasks.append(judged)
                agreeing.append(_agreeing(searched, goal))
            value = torch.cat([x[:0], *(t.value for t in tasks)])
            gradient = torch.cat([x[:0], *(t.best_gradient for t in tasks)])
            deviation, evicted = relative_deviation(gradient, value), evicts(gradient, value, k)
            counts = [count for count in agreeing if count is not None]
            distance = None if goals is None else euclidean(gradient - goals)
            x_adv, weights_adv = torch.cat([x[:0], *(t.best for t in tasks)]), _joined(tasks, call.model, model)
        return ExplanationAttackResult(
            x_adv=x_adv,
            weights_adv=weights_adv,
            gradient=gradient,
            value=value,
            deviation=deviation,
            evicted=evicted,
            distance=distance,
            success=_success(goal, threshold, deviation, evicted, distance),
            agreeing=torch.cat(counts) if counts and len(counts) == len(tasks) else None,
            goal=goal,
            k=k,
            of=of,
            seconds=call.seconds,
            seed=seed,
        )

    @final
    def _chunk_size(self, model: nn.Module, radius: float) -> int | None:
        if self.batch_size is not None or radius == 0:
            return self.batch_size
        # Every sample has weights of its own: the best ones, the candidate's, their gradients, and what these keep.
        size = sum(p.numel() * p.element_size() for p in model.parameters())
        return max(1, BUDGET // max(1, 12 * size))


def relative_deviation(
    gradient: Float[Tensor, "batch *features"], value: Float[Tensor, "batch *features"]
) -> Float[Tensor, " batch"]:
    """`|gradient - value| / |value|` for each sample, Euclidean norms; 0 where both are equal, even 0."""
    length, moved = euclidean(value), euclidean(gradient - value)
    return torch.where(moved == 0, 0.0, moved / length)


def evicts(
    gradient: Float[Tensor, "batch *features"], value: Float[Tensor, "batch *features"], k: int
) -> Bool[Tensor, " batch"]:
    """Where the `k` features with the largest `|value|` are not those with the largest `|gradient|`; ties do not count.

    Never, where `k` is the number of features.
    """
    size, before = gradient.flatten(1).abs(), value.flatten(1).abs()
    top = torch.zeros_like(size, dtype=torch.bool).scatter(1, before.topk(min(k, size.shape[1])).indices, True)
    return size.masked_fill(top, -torch.inf).amax(1) > size.masked_fill(~top, torch.inf).amin(1)


def _success(
    goal: Goal, threshold: float | None, deviation: Tensor, evicted: Tensor, distance: Tensor | None
) -> Tensor | None:
    if goal == "top_k":
        return evicted
    if threshold is None:
        return None
    return deviation > threshold if distance is None else distance <= threshold


def _agreeing(searched: Task, goal: Goal) -> Tensor | None:
    if goal != "deviation" or len(searched.ascents) < 2:
        return None
    near = torch.stack(searched.ascents) >= 0.99**2 * searched.best_score  # of squared distances
    return near.sum(0)


def _joined(tasks: list[Task], own: nn.Module, attacked: nn.Module) -> dict[str, Tensor] | None:
    """The weights that were found, by their names in the user's model and not in a wrapper around it."""
    found = [task.best_weights for task in tasks if task.best_weights is not None]
    names = {id(p): name for name, p in own.named_parameters()}
    inside = {name: names[id(p)] for name, p in attacked.named_parameters()}
    return {inside[name]: torch.cat([part[name] for part in found]) for name in found[0]} if found else None


def _check_goal(x: Tensor, goal: Goal, k: int, target: Tensor | None, threshold: float | None, radius: float) -> None:
    if goal not in get_args(Goal):
        raise ArgumentError("goal", repr(goal), accepted=", ".join(map(repr, get_args(Goal))), hint="Choose one.")
    features = x[0].numel() if len(x) else k
    if not (isinstance(k, int) and 1 <= k <= features):
        raise ArgumentError("k", repr(k), accepted=f"from 1 to {features}", hint="It counts features.")
    if (goal == "target") != (target is not None):
        raise ArgumentError(
            "target",
            "given" if target is not None else "None",
            accepted="an explanation with goal='target', and None with any other",
            hint="Give the explanation that is to be produced, shaped like x.",
        )
    if target is not None and (target.shape[1:] != x.shape[1:] or len(target) not in (1, len(x))):
        raise ArgumentError(
            "target",
            f"of shape {tuple(target.shape)}",
            accepted=f"{tuple(x.shape)}, or a batch of one",
            hint="Give one explanation per sample.",
        )
    if threshold is not None and (goal == "top_k" or not threshold >= 0):
        raise ArgumentError(
            "threshold",
            threshold,
            accepted="a number >= 0 with goal='deviation' or 'target', else None",
            hint="A set of k features is changed or not.",
        )
    if not (isinstance(radius, int | float) and math.isfinite(radius) and radius >= 0):
        raise ArgumentError(
            "radius", repr(radius), accepted="a finite number >= 0", hint="It is relative, for example 0.01."
        )
