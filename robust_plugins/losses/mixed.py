"""`MixedLoss`: clean loss and worst-case loss, for any training loop."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from robust_plugins.balls import Ball
from robust_plugins.decisions.attack import Attack
from robust_plugins.decisions.certifier import Certifier
from robust_plugins.errors import ArgumentError
from robust_plugins.harness.wrappers import Logits, TwoLogits
from robust_plugins.losses.batch import Batch, WorstCase
from robust_plugins.losses.combiners import Combiner, Worst
from robust_plugins.losses.labels import Labels, Task, check_task, said_of
from robust_plugins.losses.ramp import Ramp
from robust_plugins.losses.refused import check_gradients
from robust_plugins.losses.regularisers import Regulariser
from robust_plugins.losses.worst import worst_case

Schedule = Callable[[float], float]
"""From the epoch, which may be a fraction, to a number: `rp.Ramp`, or any function."""

PATIENCE = 100
"""How many batches may pass without `step` before it is warned about: fewer would be one epoch of somebody's."""


@dataclass(frozen=True)
class Terms:
    """The parts that a value of the loss consists of: scalars without gradients, and the state of the schedules."""

    clean: Float[Tensor, ""]
    """The loss on the clean inputs."""
    worst: Float[Tensor, ""] | None
    """The robust loss; None where its weight is zero, so that it was not computed."""
    eps: float | tuple[float, ...]
    """The radius, or one per sample, that was trained for."""
    gamma: float
    """The weight of the clean loss."""
    parts: dict[str, Float[Tensor, ""]]
    """Losses that the robust one consists of, and regularisers, by name."""


@dataclass(kw_only=True)
class MixedLoss:
    """`gamma * L(y, f(x)) + (1 - gamma) * R`, where R is the loss of the worst case over the ball.

        value = loss(model, x, y)          # a scalar; value.terms says what it consists of
        value.backward()
        loss.step(epoch, batch, batches)   # where the schedules are next

    - `worst`: an attack or a certifier, itself or by its registered name, or a `WorstCase` (`Blended`, `SmallBox`);
      None with `gamma=1`, which is plain training.
    - `gamma` in [0, 1]: a number, whose distance from 1 is ramped with `eps`; or a function of the epoch, taken as
      it is.
    - `ball`: the perturbations. Its `eps` is that of the end of the ramp.
    - `schedule`: from the epoch to a factor in [0, 1] of `eps` and, for a number, of `1 - gamma`. None: at full
      strength from the start, about which training on bounds is warned: it would collapse to a constant. It goes on
      with `step`; a loss that is never stepped is warned about, too.
    - `combiner`: makes R of the worst case; the default is its loss.
    - `regularisers`: added to all of it.
    - `task`: "classification", where L is the cross-entropy; "binary", where it is that of the logits (-z/2, z/2) of a
      model of one output z; or "regression", where it is the mean squared error, and the worst case the further end of
      a certifier's interval. Labels of classification may be classes, one-hot rows, or shares of all classes (soft
      labels), for which bounds are those of the cross-entropy itself, and attacks those of the largest share. None
      takes integers and booleans for classes and floating point for numbers, except between 0 and 1, where the
      task is inferred from the first batch, with a warning that names it: zeros and ones for one output are binary,
      rows with a sum of 1 classification, all else regression.

    Adversarial examples are found in evaluation mode; the forward pass on them is in the model's own mode. Bounds are
    those of the model in evaluation mode, in full precision under autocast. Batch normalisation in training mode uses
    the statistics of the clean batch for all of them; gradients flow through these, except for the bounds of other
    libraries.

    >>> ball, model = rp.Linf(eps=0.1, clip=(0, 1)), torch.nn.Linear(2, 2)
    >>> loss = rp.MixedLoss(worst="interval:ibp", gamma=0.5, ball=ball, schedule=rp.Ramp(start=0, end=0))
    >>> value = loss(model, torch.rand(4, 2), torch.tensor([0, 1, 0, 1]))
    >>> bool(value.terms.worst >= value.terms.clean)
    True
    """

    worst: str | Attack | Certifier | WorstCase | None
    gamma: float | Schedule
    ball: Ball | None
    schedule: Schedule | None = None
    combiner: Combiner = field(default_factory=Worst)
    regularisers: Sequence[Regulariser] = ()
    task: Task | None = None
    inferred: Task | None = field(default=None, init=False, repr=False)
    """What labels in floating point were first taken for, where `task` does not say."""
    epoch: float = field(default=0.0, init=False)
    """Where training is; `step` sets it."""

    def __post_init__(self) -> None:
        self._check_kinds()
        if self.worst is None and self.gamma != 1:
            raise ArgumentError(
                "worst", None, accepted="an attack or a certifier", hint="Without one, gamma is 1: plain training."
            )
        if self.worst is not None and self.ball is None:
            raise ArgumentError("ball", None, accepted="rp.Linf, rp.L2 or rp.L1", hint="Say over what.")
        self._resolved: tuple[object, WorstCase | None] = (None, None)
        self._wrapped: TwoLogits | Logits | None = None
        self._calls = 0
        """Since the last step."""
        self._last, self._batches = (0, -1), 0
        """Epoch and batch of the last step, and the number of batches in the epoch before."""
        if self.certified and self.schedule is None:
            warnings.warn(
                "training on bounds without a ramp collapses to a constant network; pass schedule=rp.Ramp(...), "
                "or rp.Ramp(start=0, end=0) to keep it so",
                stacklevel=3,
            )

    @property
    def certified(self) -> bool:
        """Whether it trains on bounds, with which training collapses unless they are ramped."""
        return self._source is not None and self._source.certified

    @property
    def schedules(self) -> dict[str, Schedule]:
        """All that depends on the epoch, by name: of the loss, of its weight, of its bounds and its regularisers."""
        found = {"schedule": self.schedule, "gamma": self.gamma, "beta": getattr(self._source, "beta", None)}
        for regulariser in self.regularisers:
            found[f"{type(regulariser).__name__}.schedule"] = getattr(regulariser, "schedule", None)
        return {name: schedule for name, schedule in found.items() if callable(schedule)}

    @property
    def _source(self) -> WorstCase | None:
        if self.worst is not self._resolved[0]:
            self._resolved = self.worst, None if self.worst is None else worst_case(self.worst)
        return self._resolved[1]

    def step(self, epoch: int, batch: int, batches: int | None = None) -> None:
        """Says that batch number `batch` of epoch number `epoch`, both from zero, is done; -1 is the epoch's start.

        The schedules go on with every batch, by the number of `batches` in an epoch; where it is not given, that is
        counted in the first epoch, in which they stand at its start. `step(0, k, batches)` after batch k of the whole
        training does as well.
        """
        if batches is not None and batches < 1:
            raise ArgumentError("batches", batches, accepted="an integer of at least 1", hint="That of one epoch.")
        if epoch != self._last[0]:
            self._batches = self._last[1] + 1 if epoch == self._last[0] + 1 else 0
        self._last, self._calls = (epoch, batch), 0
        if batches is not None:
            self.epoch = epoch + (batch + 1) / batches
        elif self._batches > 1:  # who only ever says batch 0 means the epoch
            self.epoch = epoch + min(1.0, (batch + 1) / self._batches)
        else:
            self.epoch = float(epoch)

    def __call__(
        self,
        model: nn.Module,
        x: Float[Tensor, "batch *features"],
        y: Shaped[Tensor, "batch *outputs"],
    ) -> Float[Tensor, ""]:
        """The loss of one batch, with `terms` as an attribute. `model`'s mode, flags and gradients are left as found.

        `model` maps a batch to outputs of shape (batch, classes), or one per sample, or to a record with the field
        `logits` of these, and is given itself, compiled, averaged or within DistributedDataParallel. `y` holds classes,
        or numbers for regression; see `task`. Attacks draw their seeds from torch's random state. Under
        `torch.no_grad()` it is the same number. Raises ArgumentError for arguments that do not fit and under
        `torch.inference_mode()`, and as the attack or the certifier does.
        """
        check_gradients()
        if not isinstance(x, Tensor):
            raise ArgumentError("x", type(x).__name__, accepted="a torch.Tensor", hint="Use torch.as_tensor(x).")
        if not len(x):
            raise ArgumentError("x", "an empty batch", accepted="at least one sample", hint="Leave the batch out.")
        factor = 1.0 if self.schedule is None else self._scheduled("schedule", self.schedule)
        gamma = self._scheduled("gamma", self.gamma) if callable(self.gamma) else 1 - factor * (1 - self.gamma)
        self._warn_where_nothing_is_stepped()
        counts = gamma > 0 or self.combiner.uses_clean
        batch = Batch(
            model, x, y, self.ball, factor=factor, epoch=self.epoch, clean_counts=counts,
            earlier_model=self._wrapped, task=self.task, earlier=self.inferred,
        )  # fmt: skip
        if batch.labels.why:
            self._say_what_was_inferred(batch.labels)
        elif self.task is None and y.is_floating_point():
            self.inferred = batch.labels.task
        self._wrapped = batch.model if isinstance(batch.model, TwoLogits | Logits) else None
        clean = batch.loss(batch.clean)
        total = clean
        worst: Tensor | None = None
        parts: dict[str, Tensor] = {}
        if gamma < 1:
            source = self._source
            assert source is not None  # a schedule of gamma comes with a source
            worst, parts = self.combiner.loss(batch, source)
            total = worst if gamma == 0 else gamma * clean + (1 - gamma) * worst
        for regulariser in self.regularisers:
            with torch.autocast(x.device.type, enabled=False):  # bounds and second derivatives in full precision
                name, term = type(regulariser).__name__, regulariser.penalty(batch)
            parts[name] = term + parts[name] if name in parts else term
            total = total + term
        total.terms = Terms(  # type: ignore[attr-defined] # a tensor takes attributes
            clean.detach(),
            None if worst is None else worst.detach(),
            0.0 if self.ball is None else batch.ball.radii,
            gamma,
            {name: part.detach() for name, part in parts.items()},
        )
        return total

    def _scheduled(self, name: str, schedule: Schedule) -> float:
        value = schedule(self.epoch)
        if not (isinstance(value, int | float) and 0 <= value <= 1):
            raise ArgumentError(
                name, f"{value} at epoch {self.epoch:g}", accepted="a function of the epoch to numbers in [0, 1]",
                hint="For a part of eps, give the ball the eps of the end.",
            )  # fmt: skip
        return float(value)

    def _say_what_was_inferred(self, labels: Labels) -> None:
        if self.inferred is None:
            warnings.warn(said_of(labels), stacklevel=3)
        self.inferred = labels.task

    def _warn_where_nothing_is_stepped(self) -> None:
        self._calls += 1
        if self._calls == PATIENCE and (_moves(self.schedule, self.epoch) or _moves(self.gamma, self.epoch)):
            warnings.warn(
                f"{PATIENCE} batches without loss.step(epoch, batch): the schedules stand still", stacklevel=3
            )

    def _check_kinds(self) -> None:
        check_task(self.task)
        number = isinstance(self.gamma, int | float) and not isinstance(self.gamma, bool)
        if not callable(self.gamma) and not (number and 0 <= self.gamma <= 1):
            raise ArgumentError(
                "gamma", repr(self.gamma), accepted="a number in [0, 1], or a function of the epoch", hint="Try 0.5."
            )
        if isinstance(self.regularisers, Regulariser) or not all(isinstance(r, Regulariser) for r in self.regularisers):
            raise ArgumentError(
                "regularisers", repr(self.regularisers), accepted="a list of rp.losses.Regulariser",
                hint="For example [rp.losses.L1Penalty(weight=1e-5)].",
            )  # fmt: skip
        for name, value, kind, accepted in (
            ("worst", self.worst, str | Attack | Certifier | WorstCase | None, "an attack, a certifier, or its name"),
            ("ball", self.ball, Ball | None, "rp.Linf, rp.L2 or rp.L1"),
            ("combiner", self.combiner, Combiner, "a rp.losses.Combiner"),
        ):
            if not isinstance(value, kind):
                raise ArgumentError(name, repr(value), accepted=accepted, hint="See rp.MixedLoss.")
        if not (self.schedule is None or callable(self.schedule)):
            raise ArgumentError(
                "schedule", repr(self.schedule), accepted="a function of the epoch, or None",
                hint="For example rp.Ramp(start=1, end=6).",
            )  # fmt: skip


def _moves(schedule: object, epoch: float) -> bool:
    """Whether the schedule has yet to change, as far as can be told."""
    if isinstance(schedule, Ramp):
        return epoch < schedule.end and schedule.first != schedule.last
    return callable(schedule)
