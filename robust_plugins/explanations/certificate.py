"""`ExplanationCertificate`: what is proved about the input gradients of a ball."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from robust_plugins.decisions.results import Verdict, counted
from robust_plugins.errors import ArgumentError
from robust_plugins.explanations.explained import Of
from robust_plugins.harness.result import SampleResult
from robust_plugins.intervals import Interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class ExplanationCertificate(SampleResult):
    """Bounds on the explanation v(x') over all inputs x' of the ball, and what follows from them.

    They hold for the model in evaluation mode, for every point of the ball (and for every model of the box of weights
    that was asked for); `soundness` says in which arithmetic and under which further assumptions. They are widened by
    what rounding may have moved them, and every statement is made of the widened bounds. Where nothing is proved about
    a sample, its bounds are infinite and every statement about it is False.

    - `gradient`: the bounds on each component of v, shape (batch, *features).
    - `value`: v at `x` itself, with the model's own weights.
    - `rounding`: how far v and the ends of the bounds may be off by rounding; the bounds have room for it.
    - `delta`: the width that was allowed to each component.
    - `of`: whose gradient is explained: that of the logit, the margin or the loss.
    - `verdicts`: CERTIFIED where every feature is robust, UNKNOWN where some feature's bounds are too wide; one per
      sample.
    - `messages`: the cause for ERROR and UNSUPPORTED verdicts, else an empty string; one per sample.
    - `seconds`: wall-clock time of the whole call.
    - `soundness`: the arithmetic and the assumptions under which the bounds hold.
    - `advice`: which certifier to use instead where this one is known to be far from tight; empty where all samples are
      certified for finite widths.
    """

    gradient: Interval
    value: Float[Tensor, "batch *features"]
    rounding: Float[Tensor, " batch"]
    delta: Float[Tensor, "#batch *features"]
    of: Of
    verdicts: tuple[Verdict, ...]
    messages: tuple[str, ...]
    seconds: float
    soundness: str
    advice: str = ""

    def __repr__(self) -> str:
        """One line; the tensors are in the fields."""
        what = f"{len(self.verdicts)} samples, {counted(self.verdicts)}"
        return f"<ExplanationCertificate of the {self.of}: {what}, {self.seconds:.2g} s>"

    def plot(
        self, x: Float[Tensor, "batch *features"] | None = None, *, samples: int = 6, feature_names: Sequence[str] = ()
    ) -> Figure:
        """A picture: attributions of `samples` samples with their bounds, and `x` where it is given and holds images.

        Raises PluginError without matplotlib.
        """
        from robust_plugins.explanations.pictures import Explanations, explained_figure

        return explained_figure(Explanations(value=self.value, bounds=self.gradient, x=x), samples, feature_names)

    def to_records(self) -> list[dict[str, Any]]:
        """For each sample: its verdict, the proved deviation, the largest width, the share of robust features."""
        count = len(self.verdicts)
        columns: dict[str, Any] = {
            "sample": range(count),
            "verdict": [verdict.value for verdict in self.verdicts],
            "deviation": self.deviation.tolist(),
            "widest": self.width.flatten(1).amax(1).tolist() if count else [],
            "robust": self.robust.flatten(1).double().mean(1).tolist() if count else [],
            "message": self.messages,
        }
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    @property
    def width(self) -> Float[Tensor, "batch *features"]:
        """`max v_i - min v_i` over the ball is at most this; rounded upward."""
        low, up = self.gradient.lower, self.gradient.upper
        width = up - low
        return torch.where(
            width.double() < up.double() - low.double(), width.nextafter(torch.full_like(width, torch.inf)), width
        )

    @property
    def robust(self) -> Bool[Tensor, "batch *features"]:
        """Where the width is proved to be at most delta: no two explanations of the ball differ by more there."""
        width = self.width
        return (width <= self.delta) & width.isfinite()

    @property
    def deviation(self) -> Float[Tensor, " batch"]:
        """A proved upper bound of `max |v(x') - v| / |v|` over the ball, Euclidean norms; infinite where v is 0.

        It bounds Captum's `sensitivity_max` from above. It is 0 where v is 0 over the whole ball.
        """
        farthest = self._farthest_from(self.value.double()).flatten(1)
        worst = most(euclidean(farthest), farthest)
        # v itself may be off: by its rounding in every component that is not exactly zero.
        off = self.rounding.double() * (farthest > 0).sum(1).sqrt()
        length = least(euclidean(self.value.double()), farthest) - off
        found = torch.where(worst == 0, 0.0, torch.where(length > 0, most((worst + off) / length, farthest), torch.inf))
        return upward(found, self.value.dtype)

    def keeps_top(self, k: int) -> Bool[Tensor, " batch"]:
        """Where the k features with the largest `|v_i|` at x are proved to stay the k largest over the ball.

        Their order among themselves may change. Ties are not kept. Raises ArgumentError for k outside
        [1, number of features].
        """
        value = self.value.flatten(1).abs()
        if not 1 <= k <= value.shape[1]:
            raise ArgumentError("k", k, accepted=f"from 1 to {value.shape[1]}", hint="It counts features.")
        low, up = self.gradient.lower.flatten(1), self.gradient.upper.flatten(1)
        least = torch.maximum(low, -up).clamp(min=0)
        most = torch.maximum(-low, up)
        top = torch.zeros_like(value, dtype=torch.bool).scatter(1, value.topk(k).indices, True)
        weakest = least.masked_fill(~top, torch.inf).amin(1)
        strongest = most.masked_fill(top, -torch.inf).amax(1)
        return (weakest > strongest) & self._bounded

    def keeps_sign(self) -> Bool[Tensor, " batch"]:
        """Where every component is proved to keep its sign over the ball; a component that is 0 must stay 0."""
        sign = self.value.sign()
        kept = (self.gradient.lower.sign() == sign) & (self.gradient.upper.sign() == sign)
        return kept.flatten(1).all(1)

    def excludes(
        self, target: Float[Tensor, "#batch *features"], threshold: float | Float[Tensor, " batch"]
    ) -> Bool[Tensor, " batch"]:
        """Where no explanation of the ball is within `threshold` of `target`: proved by the distance to the bounds.

        `target` is an explanation shaped like x, or one for the whole batch; the distance is Euclidean.
        """
        if target.shape[1:] != self.value.shape[1:] or len(target) not in (1, len(self.value)):
            raise ArgumentError(
                "target",
                f"of shape {tuple(target.shape)}",
                accepted=f"{tuple(self.value.shape)}, or a batch of one",
                hint="Give one explanation per sample.",
            )
        low, up, point = (t.double() for t in (self.gradient.lower, self.gradient.upper, target))
        outside = torch.maximum(low - point, point - up).clamp(min=0)
        return (least(euclidean(outside), outside) > threshold) & self._bounded

    @property
    def _bounded(self) -> Bool[Tensor, " batch"]:
        """Where the backend answered; bounds that overflow still leave some statements true."""
        answered = [v in (Verdict.CERTIFIED, Verdict.UNKNOWN) for v in self.verdicts]
        return torch.tensor(answered, dtype=torch.bool, device=self.value.device)

    def _farthest_from(self, point: Tensor) -> Tensor:
        """For each component the largest distance of its bounds from `point`, in its dtype."""
        return torch.maximum(self.gradient.upper - point, point - self.gradient.lower)


def most(norm: Float[Tensor, " batch"], of: Float[Tensor, "batch *features"]) -> Float[Tensor, " batch"]:
    """An upper bound of a Euclidean norm of `of` that was computed in the dtype of both, whatever was rounded."""
    return norm * (1 + _steps(of))


def least(norm: Float[Tensor, " batch"], of: Float[Tensor, "batch *features"]) -> Float[Tensor, " batch"]:
    """A lower bound of a Euclidean norm of `of` that was computed in the dtype of both, whatever was rounded."""
    return norm * (1 - _steps(of))


def _steps(of: Tensor) -> float:
    """The relative error of as many roundings as a norm of these components takes, with some to spare."""
    return (of[0].numel() + 8 if len(of) else 8) * torch.finfo(of.dtype).eps


def upward(t: Float[Tensor, " batch"], dtype: torch.dtype) -> Float[Tensor, " batch"]:
    """`t` in another precision, rounded upward."""
    found = t.to(dtype)
    return torch.where(found.to(t) < t, found.nextafter(torch.full_like(found, torch.inf)), found)


def euclidean(t: Float[Tensor, "batch *features"]) -> Float[Tensor, " batch"]:
    """The Euclidean norm of each sample, also where squares would underflow or overflow."""
    flat = t.flatten(1)
    largest = flat.abs().amax(1)
    scale = torch.where((largest > 0) & largest.isfinite(), largest, 1)
    found: Tensor = scale * torch.linalg.vector_norm(flat / scale.unsqueeze(1), dim=1)
    return found
