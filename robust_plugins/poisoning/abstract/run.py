"""`PoisoningRun`: what is proved about every model that poisoned training can return."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from robust_plugins.balls import L1, L2, Ball
from robust_plugins.errors import ArgumentError, of_type
from robust_plugins.harness.batches import Inputs as Samples
from robust_plugins.harness.batches import Labels, as_batch
from robust_plugins.harness.call import neutral
from robust_plugins.harness.result import Result
from robust_plugins.harness.stored import stored
from robust_plugins.harness.table import Table
from robust_plugins.harness.weights import Weights
from robust_plugins.intervals import Interval, trace
from robust_plugins.poisoning.abstract.privacy import PrivatePrediction, private_response
from robust_plugins.poisoning.box import sample_gradients
from robust_plugins.poisoning.box.logit_differences import antisymmetric, pairs
from robust_plugins.poisoning.box.sample_gradients import Inputs
from robust_plugins.poisoning.budget import PoisoningBudget
from robust_plugins.poisoning.concrete.losses import Loss, Objective, objective

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHUNK = 1000
"""Samples that are bounded at a time."""


@runtime_checkable
class Tighter(Protocol):
    """A domain that knows more of the parameters than their box."""

    def bounds(self, x: Interval, spec: Float[Tensor, "batch rows outputs"]) -> Interval:
        """Bounds on `spec` times the outputs: x (batch, *features), spec (batch, rows, outputs)."""


@stored
@dataclass(frozen=True)
class PoisoningEpoch:
    """One epoch of abstract gradient training.

    - `epoch`: its number, from 1.
    - `updates`: how many were made since the beginning.
    - `seconds`: wall-clock time of the epoch.
    - `width`: of all parameters' intervals, summed.
    - `widest`: the parameter with the largest mean width.
    - `certified`: certified accuracy (for regression the certified mean squared error) on the validation data, where
      given.
    - `nominal`: the same quantity of the model trained without poison.
    - `vacuous`: whether the bounds had come to decide the class of no training sample.
    """

    epoch: int
    updates: int
    seconds: float
    width: float
    widest: str
    certified: float | None
    nominal: float | None
    vacuous: bool


@dataclass(frozen=True, eq=False, repr=False)
class PoisoningRun(Result):
    """The set of models that training can return when the poisoner stays in the budget, and what all of them share.

    Every query holds for each of these models, in evaluation mode; with a `ball` also for every input of it, as where
    a trigger is added at test time (a backdoor). Bounds hold in real arithmetic, or, where the run was made with
    `rounding="outward"`, in the floating point of the run's tensors.

    - `nominal`: trained without poison: what plain torch training gives on the same batches.
    - `parameters`: the interval of every trained parameter, by its name; the others are fixed.
    - `history`: the record of each epoch.
    - `budget`: what the poisoner may do.
    - `loss`: the loss by its name.
    - `domain`: a tighter set than the box, from which queries gain; None for the box alone.
    - `rounding`: the arithmetic of the bounds.
    - `input_shape`: the shape of a sample, without the batch.

    Samples and labels are tensors, numpy arrays, or a TensorDataset or DataLoader with None for the labels. A network
    that returns a record with the field `logits` returns these alone as `nominal`. `save` keeps the weights of
    `nominal`, and `load(path, model)` puts them into a copy of a network like it.
    """

    nominal: nn.Module
    parameters: dict[str, Interval]
    history: tuple[PoisoningEpoch, ...]
    budget: PoisoningBudget
    loss: Loss
    domain: Tighter | None = field(default=None, repr=False)
    rounding: Literal["nearest", "outward"] = "nearest"
    input_shape: tuple[int, ...] = ()
    _model: nn.Module = field(init=False, repr=False)
    """A copy of `nominal` of our own, so that answers stay those of the training whatever becomes of it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "_model", deepcopy(self.nominal))

    def __repr__(self) -> str:
        """One line."""
        count = sum(p.lower.numel() for p in self.parameters.values())
        proved = self.history[-1].certified if self.history else None
        score = "" if proved is None else f", certified {proved:.4g}"
        vacuous = ", vacuous" if self.vacuous else ""
        said = f"{count} parameters, {len(self.history)} epochs, width {self.width:.4g}{score}{vacuous}"
        return f"<PoisoningRun: {said}>"

    def plot(self) -> Figure:
        """A picture: the width of all bounds, and the scores, epoch by epoch. Raises PluginError without matplotlib."""
        from robust_plugins.poisoning.abstract.pictures import training_figure

        score = "accuracy" if objective(self.loss).classifies else "mean squared error"
        history = self.history
        return training_figure(
            [r.epoch for r in history], [r.width for r in history], [r.nominal for r in history],
            [r.certified for r in history], score,
        )  # fmt: skip

    def state(self) -> dict[str, Any]:
        """Everything that `from_state` makes it of, for files.

        Raises ArgumentError where the shape of samples is not known, and for a domain of somebody else's.
        """
        if not self.input_shape:
            raise ArgumentError("input_shape", "()", accepted="the shape of a sample, to save the run",
                                hint="dataclasses.replace(run, input_shape=tuple(x.shape[1:])) has it.")  # fmt: skip
        domain = None
        if self.domain is not None:
            if not hasattr(self.domain, "kept"):
                raise ArgumentError("domain", type(self.domain).__name__, accepted="None or that of domain='zonotope'",
                                    hint="`to_records` gives the figures.")  # fmt: skip
            domain = self.domain.kept()
        return {
            "nominal": Weights.of(self._model, self.input_shape), "parameters": self.parameters,
            "history": self.history, "budget": self.budget, "loss": self.loss, "rounding": self.rounding,
            "input_shape": self.input_shape, "domain": domain,
        }  # fmt: skip

    @classmethod
    def from_state(cls, values: dict[str, Any]) -> PoisoningRun:
        """The inverse of `state`."""
        domain: Tighter | None = None
        if values["domain"] is not None:
            from robust_plugins.poisoning.zonotope import Zonotope

            nominal: nn.Module = values["nominal"]
            x = next(nominal.parameters()).new_zeros((1, *values["input_shape"]))
            with neutral(x.dtype):
                network = trace(nominal, x)
                domain = Zonotope.restored(
                    network, list(values["parameters"]), values["loss"], values["budget"], values["domain"]
                )
        return cls(**values | {"domain": domain})

    def to_records(self) -> list[dict[str, Any]]:
        """For each epoch: its updates, the width of all bounds, the certified and the nominal score."""
        return [asdict(epoch) for epoch in self.history]

    def parts(self) -> list[Table | str]:
        """One line, and a table of the epochs."""
        names = ("epoch", "updates", "width", "certified", "nominal")
        rows = tuple(tuple(_cell(getattr(epoch, name)) for name in names) for epoch in self.history)
        return [repr(self), Table(names, rows, words=0)]

    @property
    def width(self) -> float:
        """The widths of all parameters' intervals, summed."""
        return sum(p.width.sum().item() for p in self.parameters.values())

    @property
    def vacuous(self) -> bool:
        """Whether the bounds came to decide no training sample, as the last epoch's record says; or are infinite."""
        return not self._finite or (bool(self.history) and self.history[-1].vacuous)

    @property
    def _finite(self) -> bool:
        return all(bool(p.lower.isfinite().all() and p.upper.isfinite().all()) for p in self.parameters.values())

    def logits(self, x: Samples, *, ball: Ball | None = None) -> Interval:
        """Bounds on the outputs, (batch, outputs)."""
        return _joined([outputs for outputs, _ in self._outputs(x, ball)])

    def certified_prediction(self, x: Samples, *, ball: Ball | None = None) -> Int[Tensor, " batch"]:
        """The class that every model gives the sample, -1 where they may differ.

        A model with one logit has the classes 0 and 1, at the sign of the logit.
        """
        kind = self._classifying("certified_prediction")
        return torch.cat([kind.decides(z, d) for z, d in self._outputs(x, ball)])

    def certified_accuracy(self, x: Samples, y: Labels | None = None, *, ball: Ball | None = None) -> float:
        """The share of samples that every model classifies as y: no poisoner can leave less."""
        kind = self._classifying("certified_accuracy")
        x, y = self._given(x, y)
        found = self.certified_prediction(x, ball=ball)
        labels = self._labels(kind, x, y).to(found.device)
        return float((found == (labels.flatten() > 0 if labels.dim() == 2 else labels)).double().mean())

    def excludes(self, x: Samples, target: int | Iterable[int], *, ball: Ball | None = None) -> Bool[Tensor, " batch"]:
        """Where no model predicts `target`, or any class of it: no targeted poisoning succeeds."""
        kind = self._classifying("excludes")
        targets = [target] if isinstance(target, int) else list(target)
        found = []
        for z, differences in self._outputs(x, ball):
            outputs = z.shape[1]
            for t in targets:
                if t not in range(max(outputs, 2)):
                    raise ArgumentError(
                        "target", t, accepted=f"classes from 0 to {max(outputs, 2) - 1}", hint="Name them."
                    )
            if outputs == 1:
                decided = kind.decides(z, differences)
                found.append(torch.stack([decided == 1 - t for t in targets]).all(0))
            elif differences is None:
                best = z.lower.amax(1, keepdim=True)
                found.append((best > z.upper)[:, targets].all(1))
            else:  # another class is above it for certain; z_j - z_t at [t, j]
                found.append((differences.lower > 0).any(2)[:, targets].all(1))
        return torch.cat(found)

    def worst_loss(
        self,
        x: Samples,
        y: Labels | None = None,
        *,
        ball: Ball | None = None,
        reduction: Literal["mean", "none"] = "mean",
    ) -> float | Float[Tensor, " batch"]:
        """An upper bound of the loss, in the mean or of each sample: how much training can be spoilt."""
        if reduction not in ("mean", "none"):
            raise ArgumentError("reduction", repr(reduction), accepted="'mean' or 'none'", hint="As in torch.")
        kind = objective(self.loss)
        x, y = self._given(x, y)
        y, start, found = self._labels(kind, x, y), 0, []
        for z, differences in self._outputs(x, ball):
            found.append(
                kind.worst(z, y[start : start + len(z)], differences).nan_to_num(nan=math.inf, posinf=math.inf)
            )
            start += len(z)
        losses = torch.cat(found)
        return losses if reduction == "none" else losses.mean().item()

    def unlearned(self, x: Samples, *, ball: Ball | None = None) -> Bool[Tensor, " batch"]:
        """Where every model trained without the removed samples predicts the same: they have left no trace.

        Needs a run with `PoisoningBudget.removal(k)`.
        """
        if self.budget.change != "removal":
            raise ArgumentError("budget", self.budget, accepted="PoisoningBudget.removal(k)",
                                hint="Train with it: other budgets change samples.")  # fmt: skip
        return self.certified_prediction(x, ball=ball) >= 0

    def private_prediction(
        self, x: Samples, epsilon: float, *, generator: torch.Generator | None = None
    ) -> PrivatePrediction:
        """Predictions released with epsilon-differential privacy for each sample: noise only where they are unstable.

        Needs two classes and a run with `PoisoningBudget.privacy(k)`. See `PrivatePrediction`.
        """
        if self.budget.change != "substitution":
            raise ArgumentError("budget", self.budget, accepted="PoisoningBudget.privacy(k)",
                                hint="Privacy asks for any other data set at distance k.")  # fmt: skip
        self._classifying("private_prediction")
        x = self._samples(x)
        with torch.no_grad():
            z = self._model(x)
        if z.shape[1] > 2:
            raise ArgumentError("x", f"classified among {z.shape[1]} classes", accepted="two classes",
                                hint="The noise is that of a response with values 0 and 1.")  # fmt: skip
        response = (z[:, 0] > 0) if z.shape[1] == 1 else z.argmax(1) == 1
        stable = self.certified_prediction(x) >= 0
        return private_response(response, stable, k=self.budget.k, epsilon=epsilon, generator=generator)

    def _given(self, x: Samples, y: Labels | None) -> tuple[Tensor, Tensor]:
        """Samples and labels as tensors. Raises ArgumentError where there are no labels."""
        samples, labels = as_batch(x, y, self._model)
        if not isinstance(labels, Tensor):
            raise ArgumentError("y", type(y).__name__, accepted="a label for each sample: a tensor or an array",
                                hint="Only a TensorDataset or a DataLoader has them itself.")  # fmt: skip
        return samples, labels

    def _samples(self, x: Samples) -> Tensor:
        """Samples as a tensor; the labels of a data set are left out."""
        found: Tensor = as_batch(x, None, self._model)[0]
        return found

    def _outputs(self, x: Samples, ball: Ball | None) -> list[tuple[Interval, Interval | None]]:
        """The outputs and their differences `z_j - z_i` at [batch, i, j], of a part of the batch each."""
        with neutral(next(iter(self.parameters.values())).dtype):
            return list(self._bounded(self._samples(x), ball))

    def _bounded(self, x: Tensor, ball: Ball | None) -> Iterator[tuple[Interval, Interval | None]]:
        parameter = next(iter(self.parameters.values())).lower
        if not isinstance(x, Tensor) or x.dtype != parameter.dtype:
            given = x.dtype if isinstance(x, Tensor) else of_type(x)
            raise ArgumentError("x", given, accepted=f"a tensor of {parameter.dtype}",
                                hint="The model's dtype.")  # fmt: skip
        if ball is not None:
            ball.check(x)
        network = trace(self._model, x[:1], weights=self.parameters)
        differing, finite = objective(self.loss).pairwise, self._finite
        for start in range(0, max(len(x), 1), CHUNK):
            samples = slice(start, start + CHUNK)
            part = x[samples].to(parameter.device)
            inputs = _inputs(part, None if ball is None else ball[samples])
            if not finite:
                with torch.no_grad():
                    yield _everything(self._model(part)), None
                continue
            with sample_gradients.arithmetic(self.rounding):
                found = sample_gradients.forward(network, inputs, differing=differing)
            z, differences = _known(found.outputs), found.differences
            if self.domain is not None:
                z, differences = self._tightened(inputs.box, z, differences)
            yield z, None if differences is None else _known(differences)

    def _tightened(self, x: Interval, z: Interval, differences: Interval | None) -> tuple[Interval, Interval | None]:
        assert self.domain is not None
        eye = torch.eye(z.shape[1], dtype=z.dtype, device=z.device).expand(len(x), -1, -1)
        z = z.sharpened(_known(self.domain.bounds(x, eye)))
        if differences is None:
            return z, None
        spec, (i, j) = pairs(z.lower)
        found = _known(self.domain.bounds(x, spec.expand(len(x), -1, -1)))
        return z, differences.sharpened(antisymmetric(found, i, j, z.shape[1]))

    def _classifying(self, what: str) -> Objective:
        kind = objective(self.loss)
        if not kind.classifies:
            raise ArgumentError("loss", repr(self.loss), accepted=f"a loss of classes for {what}",
                                hint="For regression ask for worst_loss(x, y) or logits(x).")  # fmt: skip
        return kind

    def _labels(self, kind: Objective, x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            outputs = self._model(x[:1]).shape[1]
        if len(y) != len(x):
            raise ArgumentError("y", f"{len(y)} labels", accepted=f"{len(x)}, one per sample", hint="Check the two.")
        return kind.checked(y, outputs)


def _inputs(x: Tensor, ball: Ball | None) -> Inputs:
    if ball is None:
        return Inputs(Interval.point(x))
    box = ball.box(x)
    if not isinstance(ball, L1 | L2):
        return Inputs(box, "crown")
    radius = ball.eps_for(x).expand_as(x)
    return Inputs(box, "crown", x, radius, "l1" if isinstance(ball, L1) else "l2")


def _everything(like: Tensor) -> Interval:
    return Interval(torch.full_like(like, -math.inf), torch.full_like(like, math.inf))


def _known(i: Interval) -> Interval:
    """Ends that overflowed to NaN say nothing."""
    return Interval(i.lower.nan_to_num(nan=-math.inf, neginf=-math.inf, posinf=math.inf),
                    i.upper.nan_to_num(nan=math.inf, neginf=-math.inf, posinf=math.inf))  # fmt: skip


def _joined(parts: list[Interval]) -> Interval:
    return Interval(torch.cat([p.lower for p in parts]), torch.cat([p.upper for p in parts]))


def as_bounds(parameters: Mapping[str, Tensor]) -> dict[str, Interval]:
    """Each parameter as the interval that holds it alone."""
    return {name: Interval.point(p) for name, p in parameters.items()}


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
