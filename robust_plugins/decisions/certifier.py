"""The interface of certifiers of decisions: a final public call over one small abstract method.

The public call never trusts a backend. It checks its arguments, runs the model in evaluation mode and restores
everything afterwards, and states only what it has recomputed itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, TypeVar, final

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from robust_plugins.balls import Ball
from robust_plugins.decisions.judgement import Asked, Decision, Judgement, judged, unsupported
from robust_plugins.decisions.results import Certificate, Stage, Verdict
from robust_plugins.decisions.specifications import margin_spec
from robust_plugins.decisions.trusted import leaves_alone
from robust_plugins.errors import ComponentError, UnsupportedModelError
from robust_plugins.harness.arguments import as_labels, check_spec, decided, first_decided
from robust_plugins.harness.batches import Inputs, Labels, as_batch
from robust_plugins.harness.call import calling, ordinary
from robust_plugins.harness.component import Component, chunks
from robust_plugins.harness.final_layer import is_cut
from robust_plugins.harness.memory import BUDGET, activation_sizes
from robust_plugins.harness.wrappers import Model, unreadable
from robust_plugins.intervals import Interval

Result = TypeVar("Result")
CertifierClass = TypeVar("CertifierClass", bound="Certifier")

LEFT_OUT = "margins of the logits before the model's final softmax or sigmoid, which changes no decision"
"""What a certificate adds to its soundness where a last layer was left out."""


@dataclass(frozen=True, kw_only=True)
class Certifier(Component, ABC):
    """Bounds the logits over the whole ball and derives what is proved: an upper bound on the damage.

    To write one, implement `propagate`, and freeze it as a dataclass whose fields are its parameters.

    - `batch_size`: how many samples are handed to the backend at a time; None lets the component choose.
    """

    soundness: ClassVar[str] = "real arithmetic, evaluated in the model's dtype without outward rounding"
    """The assumptions under which the bounds hold; stated in every certificate."""

    rounding: ClassVar[float] = 1e-6
    """Relative to the scale of logits and bounds: margins within it of zero count as unknown, and bounds may miss
    the clean logits by it. The measured rounding error of the model's own evaluation is added. Zero for certifiers
    that round outward, for which nothing is added."""

    @abstractmethod
    def propagate(
        self,
        model: nn.Module,
        x: Float[Tensor, "batch *features"],
        ball: Ball,
        spec: Float[Tensor, "batch rows classes"] | None,
    ) -> Interval:
        """Bounds on `spec @ logits` over the ball, shape (batch, rows); on the logits themselves for None.

        Differentiable in the model's parameters where gradients are enabled. `model` is in evaluation mode. A
        certifier that cannot merge `spec` into the last layer returns `rp.apply_spec(logits, spec)`. Raise
        UnsupportedModelError, naming the layer, for a model that cannot be bounded soundly, and ArgumentError
        for a norm that cannot.
        """

    def propagate_lower(
        self,
        model: nn.Module,
        x: Float[Tensor, "batch *features"],
        ball: Ball,
        spec: Float[Tensor, "batch rows classes"],
    ) -> Float[Tensor, "batch rows"]:
        """The lower ends of `propagate(model, x, ball, spec)`; override it where they cost less on their own.

        Sound over the same set, under the same assumptions, and differentiable where `propagate` is.
        """
        return self._ordered(self._propagated(model, x, ball, spec, spec.shape[2])).lower

    def propagate_decision(
        self,
        model: nn.Module,
        x: Float[Tensor, "batch *features"],
        ball: Ball,
        spec: Float[Tensor, "batch rows classes"],
    ) -> Interval:
        """Bounds on the margins `spec @ logits`, as good as it takes to say whether all are positive: for certificates.

        Override it where that costs less than `propagate`: a lower bound above zero may be left as it is, and upper
        bounds may be any sound ones. Sound over the same set, under the same assumptions.
        """
        return self.propagate(model, x, ball, spec)

    def decide(
        self,
        model: nn.Module,
        x: Float[Tensor, "batch *features"],
        y: Integer[Tensor, " batch"],
        ball: Ball,
        spec: Float[Tensor, "batch rows classes"],
    ) -> Decision:
        """The raw material of certificates: bounds on the margins `spec @ logits`, and witnesses where there are any.

        Override it for a certifier that also searches for witnesses, or that may stop early; `propagate_decision` for
        all others.
        """
        return Decision(self.propagate_decision(model, x, ball, spec))

    def bytes_per_sample(self, activations: Sequence[int], classes: int, itemsize: int) -> int:
        """An estimate of the memory that one sample takes, from the sizes of the activations; sets `batch_size`.

        The default is right for interval propagation: a few tensors per activation.
        """
        return 6 * itemsize * (sum(activations) + classes * (max(activations) + classes))

    @final
    def bounds(
        self,
        model: Model,
        x: Float[Tensor, "batch *features"],
        ball: Ball,
        spec: Float[Tensor, "batch rows classes"] | None = None,
    ) -> Interval:
        """Bounds on the logits over the ball, shape (batch, classes), or on the rows of `spec @ logits`.

        Computed in evaluation mode and differentiable in the model's parameters (call it under `torch.no_grad()`
        to save memory), in chunks of `batch_size`. `model` is left as found. Raises ArgumentError for unusable
        arguments, UnsupportedModelError for a model that cannot be bounded, ComponentError for results that are
        not an Interval of the right shape and dtype, are NaN, or cross by more than rounding does.
        """

        def whole(model: nn.Module, x: Tensor, ball: Ball, spec: Tensor | None, classes: int) -> Interval:
            return self._ordered(self._propagated(model, x, ball, spec, classes))

        classes, parts = self._in_chunks(whole, model, x, ball, spec)
        if not parts:
            return Interval.point(x.new_empty((0, classes if spec is None else spec.shape[1])))
        if len(parts) == 1:
            return parts[0]
        return Interval(torch.cat([p.lower for p in parts]), torch.cat([p.upper for p in parts]))

    @final
    def lower_bounds(
        self,
        model: Model,
        x: Float[Tensor, "batch *features"],
        ball: Ball,
        spec: Float[Tensor, "batch rows classes"],
    ) -> Float[Tensor, "batch rows"]:
        """The lower ends of `bounds(model, x, ball, spec)` alone, for which some certifiers need half the time.

        Shape (batch, rows). Training for margins needs no more. Sound over the ball, differentiable, and raises, as
        `bounds`.
        """

        def lower(model: nn.Module, x: Tensor, ball: Ball, spec: Tensor | None, _: int) -> Tensor:
            assert spec is not None  # given below
            found = self.propagate_lower(model, x, ball, spec)
            shape = (len(x), spec.shape[1])
            if not isinstance(found, Tensor) or found.shape != shape or found.dtype != x.dtype:
                what = f"{found.dtype} of shape {tuple(found.shape)}" if isinstance(found, Tensor) else repr(found)
                raise ComponentError(f"{self}: propagate_lower returned {what}; expected {x.dtype} of shape {shape}")
            if bool(found.isnan().any()):
                raise ComponentError(f"{self}: lower bounds are NaN")
            return found

        _, parts = self._in_chunks(lower, model, x, ball, spec)
        return torch.cat(parts) if parts else x.new_empty((0, spec.shape[1]))

    @final
    def _in_chunks(
        self,
        compute: Callable[[nn.Module, Tensor, Ball, Tensor | None, int], Result],
        model: Model,
        x: Tensor,
        ball: Ball,
        spec: Tensor | None,
    ) -> tuple[int, list[Result]]:
        """The number of classes, and `compute(model, x, ball, spec, classes)` of each chunk, in evaluation mode."""
        _check_rounding(self)
        own = leaves_alone(self, model)
        with calling(model, x, ball, guarded=not own, thorough=False) as call:
            x, spec = call.x, ordinary(spec)
            if own and isinstance(spec, Tensor) and spec.dim() == 3 and spec.shape[2] > 2:
                model, classes = call.model, spec.shape[2]  # checked by the certifier itself
            else:
                with torch.no_grad():
                    model, classes = first_decided(call.model, x, size=self.batch_size, outputs=True)
            if spec is not None:
                check_spec(spec, x, classes)
            _check_readable(call.model)
            size, given = self._chunk_size(model, x, classes), (lambda t: t) if own else torch.clone
            parts = [
                compute(model, given(x[part]), ball[part], None if spec is None else given(spec[part]), classes)
                for part in chunks(len(x), size)
            ]
            call.check(self)
            return classes, parts

    @final
    def __call__(
        self,
        model: Model,
        x: Inputs,
        y: Labels | None,
        ball: Ball,
    ) -> Certificate:
        """Tries to prove, for each sample, that no input of the ball is classified otherwise than as `y`.

        `model` maps a batch to logits of shape (batch, classes) and is certified in evaluation mode; `y` has shape
        (batch,). The margins `z_y - z_j` are bounded as one specification, which certifiers merge into the last
        layer. A sample is CERTIFIED where every margin's lower bound is above zero by more than the backend's
        rounding error; FALSIFIED where `x` itself is misclassified, or an input of the ball that the certifier names;
        TIMEOUT where it gave up; ERROR where the bounds are NaN, cross, or miss
        the clean logits; UNSUPPORTED where the model has a layer that the certifier cannot bound. `model` and the
        random states are left as found. Raises ArgumentError for unusable arguments.

        `x` and `y` may be numpy arrays, which come in the dtype and on the device of the model's parameters; or `x` is
        a TensorDataset or a DataLoader of pairs, read once, whole, and `y` None. The certificate holds tensors.

        A model of one output z has the logits (-z/2, z/2). A softmax or log-softmax at the end of the model changes no
        decision and is left out: the margins are those of the logits before it, and `soundness` says so.
        """
        _check_rounding(self)
        samples, labels = as_batch(x, y, model)
        with torch.no_grad(), calling(model, samples, ball) as call:
            x = call.x.detach()
            model, logits = decided(call.model, x, size=self.batch_size)
            y = as_labels(ordinary(labels), x, logits.shape[1])
            spec = margin_spec(y, logits.shape[1], dtype=x.dtype)
            parts = [
                self._judge(Asked(model, x[part], y[part], ball[part], spec[part], logits[part], self.batch_size))
                for part in chunks(len(x), self._chunk_size(model, x, logits.shape[1]))
            ]
            call.check(self)
        margin = torch.cat([x.new_empty(0), *(part.margin for part in parts)])
        verdicts = tuple(v for part in parts for v in part.verdicts)
        messages = tuple(m for part in parts for m in part.messages)
        witness = torch.cat([x[:0], *(part.witness for part in parts)])
        certified = torch.tensor([v is Verdict.CERTIFIED for v in verdicts], dtype=torch.bool, device=x.device)
        falsified = torch.tensor([v is Verdict.FALSIFIED for v in verdicts], dtype=torch.bool, device=x.device)
        witness = torch.where(falsified.view(-1, *[1] * (x.dim() - 1)), witness, torch.nan)
        soundness = self.soundness + ("; " + LEFT_OUT if is_cut(model) else "")
        stages = tuple(_joined(same) for same in zip(*(part.stages for part in parts), strict=True))
        return Certificate(verdicts, margin, logits, certified, witness, messages, call.seconds, soundness, stages)

    @final
    def _chunk_size(self, model: nn.Module, x: Tensor, classes: int) -> int | None:
        if self.batch_size is not None or len(x) <= 1:
            return self.batch_size
        needed = self.bytes_per_sample(activation_sizes(model, x), classes, x.element_size())
        return max(1, BUDGET // max(1, needed))

    @final
    def _ordered(self, found: Interval) -> Interval:
        """`found`, checked: raises ComponentError where it is NaN, or crosses by more than rounding does."""
        with torch.no_grad():
            if bool(found.ordered().all()):
                return found
            scale = torch.maximum(found.lower.abs(), found.upper.abs()).nan_to_num().amax(1, keepdim=True)
            fault = ~found.ordered() & ~(found.width.abs() <= max(self.rounding, 1e-6) * scale)
        if bool(fault.any()):
            sample, row = fault.nonzero()[0].tolist()
            low, up = found.lower[sample, row].item(), found.upper[sample, row].item()
            raise ComponentError(
                f"{self}: bounds of sample {sample}, row {row} cross or are NaN: [{low:.6g}, {up:.6g}]"
            )
        return found

    @final
    def _propagated(self, model: nn.Module, x: Tensor, ball: Ball, spec: Tensor | None, classes: int) -> Interval:
        return self._checked(self.propagate(model, x, ball, spec), x, classes if spec is None else spec.shape[1])

    @final
    def _checked(self, found: Interval, x: Tensor, rows: int) -> Interval:
        """`found`, as a certifier returned it; raises ComponentError where it has another type, shape or dtype."""
        shape = (len(x), rows)
        if not isinstance(found, Interval) or found.shape != shape or found.dtype != x.dtype:
            what = f"{found.dtype} of shape {tuple(found.shape)}" if isinstance(found, Interval) else repr(found)
            raise ComponentError(f"{self}: propagate returned {what}; expected an Interval, {x.dtype} of shape {shape}")
        return found

    @final
    def _judge(self, asked: Asked) -> Judgement:
        """Decides about the samples of one chunk."""
        x = asked.x
        try:
            _check_readable(asked.model)
            decision = self.decide(asked.model, x.clone(), asked.y.clone(), asked.ball, asked.spec.clone())
        except UnsupportedModelError as error:
            return unsupported(asked, str(error))
        self._checked(decision.bounds, x, asked.spec.shape[1])
        given = decision.witness
        if given is not None and (given.shape != x.shape or given.dtype != x.dtype):
            raise ComponentError(f"{self}: decide returned witnesses of shape {tuple(given.shape)}, {given.dtype}")
        return judged(asked, decision, rounding=self.rounding)


def _joined(parts: Sequence[Stage]) -> Stage:
    """The record of one stage over all chunks of a batch."""
    verdicts = tuple(verdict for part in parts for verdict in part.verdicts)
    return replace(parts[0], verdicts=verdicts, seconds=sum(part.seconds for part in parts))


def _check_readable(model: nn.Module) -> None:
    if (why := unreadable(model)) is not None:
        raise UnsupportedModelError(why)


def _check_rounding(certifier: Certifier) -> None:
    if not (isinstance(certifier.rounding, float | int) and 0 <= certifier.rounding < 1):
        raise ComponentError(f"{certifier}: its `rounding` is {certifier.rounding!r}; expected a number in [0, 1)")
