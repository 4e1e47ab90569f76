"""Where the worst case comes from: `Attacked`, `Certified`, `Blended` bounds, and `SmallBox` (SABR)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from robust_plugins.balls import Ball, Linf
from robust_plugins.decisions.attack import Attack
from robust_plugins.decisions.certifier import Certifier
from robust_plugins.decisions.registered import attack, certifier
from robust_plugins.decisions.specifications import margin_spec
from robust_plugins.decisions.trusted import is_of_the_engine
from robust_plugins.errors import ArgumentError
from robust_plugins.intervals import Interval
from robust_plugins.losses.batch import Batch, WorstCase
from robust_plugins.registry.information import Kind
from robust_plugins.registry.registry import registry


@dataclass(frozen=True, kw_only=True)
class Attacked(WorstCase):
    """The logits of the adversarial examples that an attack finds. Madry et al. 2018, equation 2.1."""

    attack: Attack

    def outputs(self, batch: Batch) -> Float[Tensor, "batch outputs"]:  # noqa: D102 (inherited)
        return batch.adversarial(self.attack)


@dataclass(frozen=True, kw_only=True)
class _Bounded(WorstCase):
    @property
    def certified(self) -> bool:
        return True

    @property
    @abstractmethod
    def certifiers(self) -> tuple[Certifier, ...]:
        """Those whose bounds are taken."""

    @abstractmethod
    def interval(self, batch: Batch) -> Interval:
        """Bounds on the model's outputs."""

    @abstractmethod
    def lower(self, batch: Batch, spec: Float[Tensor, "batch rows classes"]) -> Float[Tensor, "batch rows"]:
        """Lower bounds on `spec` times the model's outputs."""

    def outputs(self, batch: Batch) -> Float[Tensor, "batch outputs"]:
        """Zero for the true class and minus the margin's lower bound for the others: Gowal et al. 2018, section 3.

        For shares q of classes, the cross-entropy is log sum_j exp(z_j - z_y) - (q . z - z_y), y the largest share: the
        last column is the lower bound of that line, so that their loss is above that of every input of the ball. For
        continuous labels, the end of the interval that is further from the label.
        """
        own = all(map(is_of_the_engine, self.certifiers))
        # Bounds in half precision would bound nothing; the model's parameters are in full precision under autocast.
        with torch.autocast(batch.x.device.type, enabled=False), batch.bounding(history=own):
            if batch.continuous:
                interval = self.interval(batch)
                self._check_differentiable(batch, interval.lower)
                return _further(interval, batch)
            classes = batch.clean.shape[1]
            spec = margin_spec(batch.y, classes, dtype=batch.x.dtype)
            if batch.shares is not None:
                spec = torch.cat((spec, _linear(batch, batch.shares)), 1)
            margins = self.lower(batch, spec)
            self._check_differentiable(batch, margins)
            worst = margins.new_zeros((len(margins), classes)).masked_scatter(batch.wrong, -margins[:, : classes - 1])
            return worst if batch.shares is None else torch.cat((worst, margins[:, classes - 1 :]), 1)

    def _check_differentiable(self, batch: Batch, bounds: Tensor) -> None:
        if bounds.requires_grad or not torch.is_grad_enabled():
            return
        if any(p.requires_grad for p in batch.model.parameters()):
            raise ArgumentError(
                "worst", self, accepted="a certifier whose bounds are differentiable in the weights",
                hint="Without gradients only the clean loss would be trained.",
            )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Certified(_Bounded):
    """The worst margins by a certifier. It bounds the model in evaluation mode."""

    certifier: Certifier

    @property
    def certifiers(self) -> tuple[Certifier, ...]:  # noqa: D102 (inherited)
        return (self.certifier,)

    def interval(self, batch: Batch) -> Interval:  # noqa: D102 (inherited)
        return _whole(self.certifier, batch).bounds(batch.model, batch.x, batch.ball)

    def lower(self, batch: Batch, spec: Float[Tensor, "batch rows classes"]) -> Float[Tensor, "batch rows"]:  # noqa: D102 (inherited)
        return _whole(self.certifier, batch).lower_bounds(batch.model, batch.x, batch.ball, spec)


@dataclass(frozen=True, kw_only=True)
class Blended(_Bounded):
    """`beta * tight + (1 - beta) * loose`, by two certifiers: CROWN-IBP training.

    `beta` is a number, a function of the epoch such as `rp.Ramp(..., first=1, last=0)`, or None: from 1 to 0 as the
    loss's ramp goes from 0 to 1. Where it is 0, `tight` is not computed. Zhang et al. 2020, "Towards stable and
    efficient training of verifiably robust neural networks".
    """

    tight: Certifier
    loose: Certifier
    beta: float | Callable[[float], float] | None = None

    def __post_init__(self) -> None:
        if not (self.beta is None or callable(self.beta) or 0 <= self.beta <= 1):
            raise ArgumentError(
                "beta", self.beta, accepted="a number in [0, 1], a function of the epoch, or None", hint="Try None."
            )

    @property
    def certifiers(self) -> tuple[Certifier, ...]:  # noqa: D102 (inherited)
        return (self.tight, self.loose)

    def interval(self, batch: Batch) -> Interval:  # noqa: D102 (inherited)
        beta, model, x, ball = self._beta(batch), batch.model, batch.x, batch.ball
        loose = _whole(self.loose, batch).bounds(model, x, ball)
        if beta == 0:
            return loose
        tight = _whole(self.tight, batch).bounds(model, x, ball)
        return Interval(
            beta * tight.lower + (1 - beta) * loose.lower,
            beta * tight.upper + (1 - beta) * loose.upper,
        )

    def lower(self, batch: Batch, spec: Float[Tensor, "batch rows classes"]) -> Float[Tensor, "batch rows"]:  # noqa: D102 (inherited)
        beta, model, x, ball = self._beta(batch), batch.model, batch.x, batch.ball
        loose = _whole(self.loose, batch).lower_bounds(model, x, ball, spec)
        if beta == 0:
            return loose
        return beta * _whole(self.tight, batch).lower_bounds(model, x, ball, spec) + (1 - beta) * loose

    def _beta(self, batch: Batch) -> float:
        beta = 1 - batch.factor if self.beta is None else self.beta
        return beta(batch.epoch) if callable(beta) else beta


@dataclass(frozen=True, kw_only=True)
class SmallBox(_Bounded):
    """A certifier on the box of radius `ratio * eps` around the adversarial example, moved so that it fits: SABR.

    Müller et al. 2023, "Certified training: small boxes are all you need". `ratio` lies in (0, 1]; at 1 it
    is the certifier on the whole ball. For `rp.Linf`; raises ArgumentError for another ball. What is bounded is not
    the whole ball, so that these bounds train and certify nothing.
    """

    attack: Attack
    certifier: Certifier
    ratio: float

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1:
            raise ArgumentError("ratio", self.ratio, accepted="a number in (0, 1]", hint="For example 0.4.")

    @property
    def certifiers(self) -> tuple[Certifier, ...]:  # noqa: D102 (inherited)
        return (self.certifier,)

    def outputs(self, batch: Batch) -> Float[Tensor, "batch outputs"]:  # noqa: D102 (inherited)
        batch.attacked(self.attack)  # before the statistics of the batch stand in, as for every other attack
        return super().outputs(batch)

    def interval(self, batch: Batch) -> Interval:  # noqa: D102 (inherited)
        center, ball = self._box(batch)
        return _whole(self.certifier, batch).bounds(batch.model, center, ball)

    def lower(self, batch: Batch, spec: Float[Tensor, "batch rows classes"]) -> Float[Tensor, "batch rows"]:  # noqa: D102 (inherited)
        center, ball = self._box(batch)
        return _whole(self.certifier, batch).lower_bounds(batch.model, center, ball, spec)

    def _box(self, batch: Batch) -> tuple[Tensor, Ball]:
        if not isinstance(batch.ball, Linf):
            raise ArgumentError("ball", batch.ball, accepted="rp.Linf", hint="A small box needs a box to lie in.")
        x, ball = batch.x, batch.ball
        shift = (1 - self.ratio) * ball.eps_for(x)
        center = torch.minimum(torch.maximum(batch.attacked(self.attack), x - shift), x + shift)
        return center, ball.scaled(self.ratio)


def worst_case(source: str | Attack | Certifier | WorstCase) -> WorstCase:
    """`source`, or the worst case by an attack or a certifier, which may be given by its registered name."""
    if isinstance(source, str):
        kind = registry().kind_of(source, [Kind.ATTACK, Kind.CERTIFIER])
        source = attack(source) if kind is Kind.ATTACK else certifier(source)
    if isinstance(source, Attack):
        return Attacked(attack=source)
    return Certified(certifier=source) if isinstance(source, Certifier) else source


def _linear(batch: Batch, shares: Tensor) -> Tensor:
    """The row `q - e_y`, whose product with the logits is `q . z - z_y`."""
    row = shares.to(batch.x.dtype)
    return row.scatter_add(1, batch.y.unsqueeze(1), torch.full_like(row[:, :1], -1)).unsqueeze(1)


def _whole(certifier: Certifier, batch: Batch) -> Certifier:
    """The certifier, which bounds the whole batch at once unless it has a batch size of its own.

    Estimates of memory would cost a pass of the model, and a batch whose graph does not fit cannot be trained on.
    """
    return certifier if certifier.batch_size is not None else replace(certifier, batch_size=max(1, len(batch.x)))


def _further(found: Interval, batch: Batch) -> Tensor:
    low, up = found.lower, found.upper
    if batch.single:  # of the two numbers (-z/2, z/2), the second
        low, up = 2 * low[:, 1:], 2 * up[:, 1:]
    return torch.where((up - batch.y).abs() >= (low - batch.y).abs(), up, low)
