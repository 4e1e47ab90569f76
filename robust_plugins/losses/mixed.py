"""`MixedLoss`: clean loss and worst-case loss, for any training loop."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from jaxtyping import Float, Shaped
from torch import Tensor, nn

from robust_plugins.balls import Ball
from robust_plugins.errors import ArgumentError
from robust_plugins.interfaces import Attack, Certifier
from robust_plugins.losses.batch import Batch, TwoLogits
from robust_plugins.losses.combiners import Combiner, Worst
from robust_plugins.losses.regularisers import Regulariser
from robust_plugins.losses.worst import WorstCase, worst_case

Schedule = Callable[[float], float]
"""From the epoch, which may be a fraction, to a number: `rp.Ramp`, or any function."""


@dataclass(frozen=True)
class Terms:
    """What a value of the loss consists of: scalars without gradients, and the state of the schedules."""

    clean: Tensor
    """The loss on the clean inputs."""
    worst: Tensor | None
    """The robust loss; None where its weight is zero, so that it was not computed."""
    eps: float | tuple[float, ...]
    """The radius, or one per sample, that was trained for."""
    gamma: float
    """The weight of the clean loss."""
    parts: dict[str, Tensor]
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
      strength from the start, about which training on bounds is warned: it would collapse to a constant.
    - `combiner`: makes R of the worst case; the default is its loss.
    - `regularisers`: added to all of it.

    With integer labels L is the cross-entropy, for a model of one output z that of the logits (-z/2, z/2). With
    floating-point labels L is the mean squared error, and the worst case the further end of a certifier's interval.
    Adversarial examples are found in evaluation mode; the forward pass on them is in the model's own mode, except that
    batch normalisation uses the statistics of the clean batch. Bounds are those of the model in evaluation mode, with
    its running statistics; they are computed in full precision under autocast.
    """

    worst: str | Attack | Certifier | WorstCase | None
    gamma: float | Schedule
    ball: Ball | None
    schedule: Schedule | None = None
    combiner: Combiner = field(default_factory=Worst)
    regularisers: Sequence[Regulariser] = ()
    epoch: float = field(default=0.0, init=False)
    """Where training is; `step` sets it."""

    def __post_init__(self) -> None:
        if not callable(self.gamma) and not 0 <= self.gamma <= 1:
            raise ArgumentError("gamma", self.gamma, accepted="a number in [0, 1], or a schedule", hint="Try 0.5.")
        if self.worst is None and self.gamma != 1:
            raise ArgumentError(
                "worst", None, accepted="an attack or a certifier", hint="Without one, gamma is 1: plain training."
            )
        if self.worst is not None and self.ball is None:
            raise ArgumentError("ball", None, accepted="rp.Linf, rp.L2 or rp.L1", hint="Say over what.")
        self._source = None if self.worst is None else worst_case(self.worst)
        self._pair: TwoLogits | None = None
        if self._source is not None and self._source.certified and self.schedule is None:
            warnings.warn(
                "training on bounds without a ramp collapses to a constant network; pass schedule=rp.Ramp(...), "
                "or rp.Ramp(start=0, end=0) to keep it so",
                stacklevel=3,
            )

    def step(self, epoch: int, batch: int, batches: int | None = None) -> None:
        """Says that batch number `batch` of epoch number `epoch`, both from zero, is done.

        With the number of `batches` in an epoch the schedules go on with every batch; without it they do once an epoch.
        """
        self.epoch = epoch if batches is None else epoch + (batch + 1) / batches

    def __call__(
        self,
        model: nn.Module,
        x: Float[Tensor, "batch *features"],
        y: Shaped[Tensor, "batch *outputs"],
    ) -> Float[Tensor, ""]:
        """The loss of one batch, with `terms` as an attribute. `model`'s mode, flags and gradients are left as found.

        `model` maps a batch to outputs of shape (batch, classes), and is given itself or within
        DistributedDataParallel. `y` holds classes, or numbers for regression. Attacks draw their seeds from torch's
        random state. Raises ArgumentError for arguments that do not fit, and as the attack or the certifier does.
        """
        if not len(x):
            raise ArgumentError("x", "an empty batch", accepted="at least one sample", hint="Leave the batch out.")
        factor = 1.0 if self.schedule is None else self.schedule(self.epoch)
        gamma = self.gamma(self.epoch) if callable(self.gamma) else 1 - factor * (1 - self.gamma)
        counts = gamma > 0 or self.combiner.uses_clean
        batch = Batch(model, x, y, self.ball, factor=factor, epoch=self.epoch, clean_counts=counts, pair=self._pair)
        self._pair = batch.model if isinstance(batch.model, TwoLogits) else None
        clean = batch.loss(batch.clean)
        total = clean
        worst: Tensor | None = None
        parts: dict[str, Tensor] = {}
        if gamma < 1:
            assert self._source is not None  # a schedule of gamma comes with a source
            worst, parts = self.combiner.loss(batch, self._source)
            total = worst if gamma == 0 else gamma * clean + (1 - gamma) * worst
        for regulariser in self.regularisers:
            parts[type(regulariser).__name__] = term = regulariser.penalty(batch)
            total = total + term
        total.terms = Terms(  # type: ignore[attr-defined] # a tensor takes attributes
            clean.detach(),
            None if worst is None else worst.detach(),
            0.0 if self.ball is None else batch.ball.radii,
            gamma,
            {name: part.detach() for name, part in parts.items()},
        )
        return total
