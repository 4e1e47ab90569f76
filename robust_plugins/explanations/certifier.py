"""`ExplanationCertifier`: the common interface of bounds on input gradients."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, TypeVar, final

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from robust_plugins.balls import Ball
from robust_plugins.decisions.results import Verdict
from robust_plugins.errors import ArgumentError, ComponentError, UnsupportedModelError
from robust_plugins.explanations.band import Band, Fit
from robust_plugins.explanations.bounds.widening import exactly
from robust_plugins.explanations.certificate import ExplanationCertificate
from robust_plugins.explanations.explained import Explained, Of, explained_by
from robust_plugins.explanations.uncancelled import lost_in_softmax
from robust_plugins.harness.batches import Inputs, Labels, as_batch
from robust_plugins.harness.call import calling, ordinary
from robust_plugins.harness.component import ERRORS, Component, chunks
from robust_plugins.harness.memory import BUDGET, activation_sizes
from robust_plugins.harness.wrappers import Model
from robust_plugins.intervals import Interval

Result = TypeVar("Result")
_Judged = tuple[Interval, Tensor, Tensor, list[tuple[Verdict, str] | None]]


@dataclass(frozen=True, kw_only=True)
class ExplanationCertifier(Component, ABC):
    """Bounds the input gradient over the whole ball, and over a box of weights: an upper bound on its change.

    To write one, implement `gradient_bounds`, and freeze it as a dataclass whose fields are its parameters.

    - `batch_size`: how many samples are handed to the backend at a time; None lets the component choose.
    """

    soundness: ClassVar[str] = (
        "real arithmetic, evaluated in the model's dtype without outward rounding; at kinks the slope of automatic "
        "differentiation; L2 and L1 balls by the box around them"
    )
    """The assumptions under which the bounds hold; stated in every certificate."""

    rounding: ClassVar[float] = 1e-5
    """Relative to the largest component or bound of a sample: bounds that cross, or miss the gradient at x, by more
    (and by more than the measured rounding error of the gradient there) are an error. Zero for certifiers that round
    outward: their bounds are taken as they are, all others are widened by the `Band` of rounding."""

    @abstractmethod
    def gradient_bounds(
        self,
        model: nn.Module,
        x: Float[Tensor, "batch *features"],
        ball: Ball,
        explained: Explained,
        *,
        radius: float,
    ) -> Interval:
        """Bounds on the gradient of `explained.number` by the input over the ball, shaped like `x`.

        Differentiable in the model's parameters where gradients are enabled. `model` is in evaluation mode. With
        `radius` > 0 they must also hold for every model whose parameters w lie in
        [w - radius |w|, w + radius |w|]. Raise UnsupportedModelError, naming the layer, for a model that cannot be
        bounded soundly, and ArgumentError for arguments that cannot.
        """

    def cheaper(self, model: nn.Module, x: Float[Tensor, "batch *features"]) -> ExplanationCertifier | None:
        """A certifier that is asked before this one where `delta` is finite; None, the default, for none.

        What it proves to be robust is not asked again: `refined` then bounds the components that are left.
        """
        return None

    def refined(
        self,
        model: nn.Module,
        x: Float[Tensor, "batch *features"],
        ball: Ball,
        explained: Explained,
        *,
        radius: float,
        wanted: Bool[Tensor, "batch *features"],
    ) -> Interval:
        """Bounds the gradients where only some components are `wanted`: others may be as wide as they are.

        By default it bounds all of them.
        """
        return self.gradient_bounds(model, x, ball, explained, radius=radius)

    def bytes_per_sample(self, activations: Sequence[int], classes: int, itemsize: int) -> int:
        """An estimate of the memory that one sample takes, from the sizes of the activations; sets `batch_size`.

        The default is right for interval propagation: a few tensors per activation.
        """
        return 12 * itemsize * (sum(activations) + classes * classes)

    def advice(self, of: Of) -> str:
        """Which certifier to use instead, in a sentence, where this one's bounds are known to be far from tight.

        `of` is what is explained. The certificate shows it unless all samples are certified for finite widths. Empty
        by default.
        """
        return ""

    @final
    def bounds(
        self,
        model: Model,
        x: Float[Tensor, "batch *features"],
        y: Int[Tensor, " batch"],
        ball: Ball,
        *,
        of: Of,
        radius: float = 0.0,
    ) -> Interval:
        """Bounds on the explanation over the ball, shaped like `x`; see `__call__` for the arguments.

        Computed in evaluation mode and differentiable in the model's parameters (call it under `torch.no_grad()` to
        save memory), in chunks of `batch_size`. They hold the gradient at x, and are widened by what rounding may have
        moved them. `model` is left as found. Raises ArgumentError for unusable arguments, UnsupportedModelError for a
        model that cannot be bounded, ComponentError for results that are not an Interval of the right shape, are NaN,
        cross, or miss the gradient at x.
        """

        def whole(model: nn.Module, x: Tensor, ball: Ball, explained: Explained) -> Interval:
            found, _, _, faults = self._examined(model, x, ball, explained, radius)
            bad = next((i for i, fault in enumerate(faults) if fault), None)
            if bad is not None:
                raise ComponentError(f"{self}: {faults[bad]} of a sample (number {bad} of {len(x)} in its chunk)")
            return found

        parts = self._in_chunks(whole, model, x, y, ball, of, radius)
        if len(parts) == 1:
            return parts[0]
        return Interval(torch.cat([x[:0], *(p.lower for p in parts)]), torch.cat([x[:0], *(p.upper for p in parts)]))

    @final
    def widths(
        self,
        model: Model,
        x: Float[Tensor, "batch *features"],
        y: Int[Tensor, " batch"],
        ball: Ball,
        *,
        of: Of,
        radius: float = 0.0,
    ) -> Float[Tensor, "batch *features"]:
        """The widths of the bounds over the ball without room for rounding: what training makes smaller, and no proof.

        Differentiable, and with arguments and errors, as `bounds`, at two passes of the model less; 0 for a point.
        """

        def width(model: nn.Module, x: Tensor, ball: Ball, explained: Explained) -> Tensor:
            with exactly():
                return self._bounded(model, x, ball, explained, radius).width

        return torch.cat([x[:0], *self._in_chunks(width, model, x, y, ball, of, radius)])

    @final
    def _in_chunks(
        self,
        compute: Callable[[nn.Module, Tensor, Ball, Explained], Result],
        model: Model,
        x: Tensor,
        y: Tensor,
        ball: Ball,
        of: Of,
        radius: float,
    ) -> list[Result]:
        _check_radius(radius)
        with calling(model, x, ball) as call:
            x = call.x
            model, explained = explained_by(call.model, x, ordinary(y), of, size=self.batch_size)
            parts = [
                compute(model, x[part], ball[part], explained[part])
                for part in chunks(len(x), self._chunk_size(model, x, explained))
            ]
            call.check(self)
        return parts

    @final
    def __call__(
        self,
        model: Model,
        x: Inputs,
        y: Labels | None,
        ball: Ball,
        *,
        of: Of = "logit",
        delta: float | Shaped[Tensor, "..."],
        radius: float = 0.0,
    ) -> ExplanationCertificate:
        """Bounds the explanation of each sample over the ball, and says which features are robust.

        - `model` maps a batch to logits of shape (batch, classes), or to one output z a sample, read as the logits
          (-z/2, z/2), and is certified in evaluation mode; `y` are the classes to explain, shape (batch,), whether or
          not the model predicts them.
        - `of`: whose gradient the explanation is: `"logit"` (of class y), `"margin"` (to the runner-up at x) or
          `"loss"` (cross-entropy); see `Explained`.
        - `delta`: the width allowed to each feature, in units of the gradient: a number, or a tensor that broadcasts
          against `x`. Where it is finite, a certifier that knows a cheaper one spends its effort on the components
          that this leaves open; infinite for the tightest bounds on all.
        - `radius`: bounds also over all models whose parameters differ from the given ones by at most this relative
          amount each.

        `x` and `y` may be numpy arrays, or `x` a TensorDataset or a DataLoader of pairs and `y` None.

        A sample is CERTIFIED where every feature is robust; ERROR where the bounds are NaN, cross, or miss the
        gradient at x; UNSUPPORTED where the model has a layer that the certifier cannot bound. `model` and the random
        states are left as found. Raises ArgumentError for unusable arguments.
        """
        _check_radius(radius)
        samples, labels = as_batch(x, y, model)
        with torch.no_grad(), calling(model, samples, ball) as call:
            x = call.x.detach()
            allowed = ordinary(_checked_delta(delta, x))
            model, explained = explained_by(call.model, x, ordinary(labels), of, size=self.batch_size)
            parts = [
                self._staged(model, x[part], ball[part], explained[part], radius, allowed[part])
                for part in chunks(len(x), self._chunk_size(model, x, explained))
            ]
            call.check(self)
        found = [fault for *_, faults in parts for fault in faults]
        certificate = ExplanationCertificate(
            gradient=Interval(
                torch.cat([x[:0], *(g.lower for g, *_ in parts)]), torch.cat([x[:0], *(g.upper for g, *_ in parts)])
            ),
            value=torch.cat([x[:0], *(v for _, v, _, _ in parts)]),
            rounding=torch.cat([x.new_empty(0), *(r for _, _, r, _ in parts)]),
            delta=allowed,
            of=of,
            verdicts=tuple(Verdict.UNKNOWN if fault is None else fault[0] for fault in found),
            messages=tuple("" if fault is None else fault[1] for fault in found),
            seconds=call.seconds,
            soundness=self.soundness,
        )
        robust = certificate.robust.flatten(1).all(1).tolist() if len(x) else []
        verdicts = tuple(
            Verdict.CERTIFIED if v is Verdict.UNKNOWN and r else v
            for v, r in zip(certificate.verdicts, robust, strict=True)
        )
        asked = bool(allowed.isfinite().all()) and Verdict.UNKNOWN not in verdicts
        advice = "" if asked else self.advice(of)
        return replace(certificate, verdicts=verdicts, advice=advice)

    @final
    def _chunk_size(self, model: nn.Module, x: Tensor, explained: Explained) -> int | None:
        if self.batch_size is not None or len(x) <= 1:
            return self.batch_size
        classes = explained.coefficients.shape[1]
        return max(1, BUDGET // max(1, self.bytes_per_sample(activation_sizes(model, x), classes, x.element_size())))

    @final
    def _bounded(
        self,
        model: nn.Module,
        x: Tensor,
        ball: Ball,
        explained: Explained,
        radius: float,
        wanted: Tensor | None = None,
    ) -> Interval:
        if wanted is None:
            found = self.gradient_bounds(model, x.clone(), ball, explained, radius=radius)
        else:
            found = self.refined(model, x.clone(), ball, explained, radius=radius, wanted=wanted)
        if not isinstance(found, Interval) or found.shape != x.shape or found.dtype != x.dtype:
            what = f"{found.dtype} of {tuple(found.shape)}" if isinstance(found, Interval) else type(found).__name__
            raise ComponentError(
                f"{self}: gradient_bounds returned {what}; expected an Interval, {x.dtype} of {tuple(x.shape)}"
            )
        return found

    @final
    def _examined(
        self,
        model: nn.Module,
        x: Tensor,
        ball: Ball,
        explained: Explained,
        radius: float,
        wanted: Tensor | None = None,
    ) -> tuple[Interval, Tensor, Tensor, list[str]]:
        """Bounds of one chunk with room for rounding, the gradients at x, that room, and each sample's fault or ""."""
        found = self._bounded(model, x, ball, explained, radius, wanted)
        band = (Band.at if self.rounding else Band.exact)(model, x, explained)
        fit, value = band.fit(found), band.value
        faults = self._faults(found, fit, band)
        if self.rounding and bool(torch.stack([*faults.values()]).any()):
            band = replace(band, error=torch.maximum(band.error, lost_in_softmax(model, x, explained)))
            faults = self._faults(found, fit, band)
        causes = [(text, where.tolist()) for text, where in faults.items()]
        messages = [next((text for text, at in causes if at[i]), "") for i in range(len(x))]
        if not self.rounding:
            return found, value, band.error, messages
        allowance = band.allowance(fit)
        return band.around(found, allowance), value, allowance, messages

    @final
    def _faults(self, found: Interval, fit: Fit, band: Band) -> dict[str, Tensor]:
        """Each fault, and of which samples: whatever is more than rounding explains."""
        limit = self.rounding * fit.size + ERRORS * band.error
        nan = fit.crossing.isnan()
        if bool(nan.any()):  # or both bounds are the same infinity
            nan = (found.lower.isnan() | found.upper.isnan()).flatten(1).any(1)
        return {
            "the bounds are NaN": nan,
            "the gradient at x is NaN": band.value.flatten(1).amax(1).isnan(),
            "the bounds cross: lower > upper": fit.crossing > limit,
            "the bounds do not contain the gradient at x": (fit.above > limit) | (fit.below > limit),
        }

    @final
    def _staged(
        self, model: nn.Module, x: Tensor, ball: Ball, explained: Explained, radius: float, allowed: Tensor
    ) -> _Judged:
        """Judges as `_judge`, with a cheaper certifier's bounds for what it proves to be robust."""
        first = self.cheaper(model, x) if len(x) and bool(allowed.isfinite().any()) else None
        if first is None:
            return self._judge(model, x, ball, explained, radius)
        found, value, allowance, faults = first._staged(model, x, ball, explained, radius, allowed)
        fine = torch.tensor([fault is None for fault in faults], device=x.device).view(-1, *[1] * (x.dim() - 1))
        still_open = (found.width > allowed) & fine
        samples = still_open.flatten(1).any(1).nonzero().flatten()
        if not len(samples):
            return found, value, allowance, faults
        chosen, radii = samples.tolist(), ball.radii
        rest = replace(ball, eps=tuple(radii[i] for i in chosen)) if isinstance(radii, tuple) else ball
        wanted = still_open[samples]
        finer, _, room, more = self._judge(model, x[samples], rest, explained.of_samples(samples), radius, wanted)
        wrong = torch.tensor([fault is not None for fault in more], device=x.device).view(-1, *[1] * (x.dim() - 1))
        met = found.map(lambda t: t[samples]).agreeing(finer)
        low, up = torch.where(wrong, finer.lower, met.lower), torch.where(wrong, finer.upper, met.upper)
        for i, fault in zip(chosen, more, strict=True):
            faults[i] = fault
        return (
            Interval(found.lower.index_copy(0, samples, low), found.upper.index_copy(0, samples, up)),
            value,
            allowance.index_copy(0, samples, torch.maximum(room, allowance[samples])),
            faults,
        )

    @final
    def _judge(
        self,
        model: nn.Module,
        x: Tensor,
        ball: Ball,
        explained: Explained,
        radius: float,
        wanted: Tensor | None = None,
    ) -> _Judged:
        """Bounds, gradient and room for rounding of one chunk, and for each sample what went wrong."""
        nothing = Interval(torch.full_like(x, -torch.inf), torch.full_like(x, torch.inf))
        try:
            with torch.no_grad():
                found, value, allowance, messages = self._examined(model, x, ball, explained, radius, wanted)
        except UnsupportedModelError as error:
            faults: list[tuple[Verdict, str] | None] = [(Verdict.UNSUPPORTED, str(error))] * len(x)
            return nothing, explained.gradient(model, x), x.new_full((len(x),), torch.inf), faults
        found = found.detach().to(x)
        if not any(messages):
            return found, value, allowance, [None] * len(x)
        bad = torch.tensor([bool(m) for m in messages], device=x.device).view(-1, *[1] * (x.dim() - 1))
        found = Interval(torch.where(bad, nothing.lower, found.lower), torch.where(bad, nothing.upper, found.upper))
        return found, value, allowance, [(Verdict.ERROR, m) if m else None for m in messages]


def _check_radius(radius: float) -> None:
    if not (isinstance(radius, int | float) and math.isfinite(radius) and radius >= 0):
        raise ArgumentError(
            "radius",
            repr(radius),
            accepted="a finite number >= 0",
            hint="It is the relative radius of the weights' intervals, for example 0.01; 0 keeps them fixed.",
        )


def _checked_delta(delta: float | Tensor, x: Tensor) -> Tensor:
    accepted = f"numbers >= 0 that broadcast against x, {tuple(x.shape)}"
    hint = "Give the width that each feature's gradient may have over the ball."
    try:
        allowed = torch.as_tensor(delta, dtype=x.dtype, device=x.device)
    except (TypeError, ValueError, RuntimeError):
        raise ArgumentError("delta", repr(delta), accepted=accepted, hint=hint) from None
    try:
        shape = torch.broadcast_shapes(allowed.shape, x.shape)
    except RuntimeError:
        shape = None
    if shape != x.shape:
        raise ArgumentError("delta", f"of shape {tuple(allowed.shape)}", accepted=accepted, hint=hint)
    if bool((allowed.isnan() | (allowed < 0)).any()):
        raise ArgumentError("delta", repr(delta), accepted=accepted, hint=hint)
    return allowed.expand(x.shape)
