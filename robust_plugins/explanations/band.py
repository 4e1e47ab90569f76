"""`Band`: how far gradients, and bounds on them, may be off by rounding; measured against another precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from robust_plugins.explanations.explained import Explained
from robust_plugins.harness.component import ERRORS
from robust_plugins.harness.functional import called, in_precision, other_precision
from robust_plugins.intervals import Interval

ULPS = 8
"""Relative to a sample's largest number, in units of the dtype's precision: what is allowed for rounding besides."""

UNMEASURED = 1e-4
"""Taken for the relative error of models that run in one precision only."""


@dataclass(frozen=True, eq=False)
class Band:
    """The gradient at x, and the rounding error of its evaluation.

    The error is measured: for float32 as the distance from the same model in float64; for float64 as the distance from
    the same model in float32, times the ratio of both precisions, which is its size and not itself. Where large terms
    cancel, as where the true gradient is zero, it is far above the dtype's precision times the gradient.
    """

    value: Float[Tensor, "batch *features"]
    """The gradient at x as the model computes it."""
    error: Float[Tensor, " batch"]
    """The largest rounding error of a component."""
    zero: Bool[Tensor, "batch *features"]
    """Where both precisions give exactly zero: nothing was rounded."""

    @classmethod
    def at(cls, model: nn.Module, x: Float[Tensor, "batch *features"], explained: Explained) -> Band:
        """The gradient of `explained` at `x` and its error. `model` is in evaluation mode."""
        value = explained.gradient(model, x)
        dtype, ratio = other_precision(x.dtype)
        other = _gradient_in(dtype, model, x, explained)
        if other is None:
            return cls(value, UNMEASURED * _largest(value), value == 0)
        error = _largest(other.double() - value.double())
        if dtype == torch.float64:
            error = torch.where(error.isnan(), torch.inf, error)
        else:  # where the narrower range of float32 overflows, nothing is learnt
            error = ratio * error.nan_to_num(nan=0.0, posinf=0.0)
        if explained.of == "loss":  # p_y - 1 is rounded as 1 is: to 0, where p_y is near enough
            own = Explained("logit", explained.y, -explained.coefficients).gradient(model, x)
            error = torch.maximum(error, torch.finfo(x.dtype).eps * _largest(own).to(error))
        error = torch.maximum(error, _of_probabilities(model, x, explained).to(error))
        return cls(value, error.to(x.dtype), (value == 0) & (other == 0))

    @classmethod
    def exact(cls, model: nn.Module, x: Float[Tensor, "batch *features"], explained: Explained) -> Band:
        """The gradient at `x` alone, without an error: for bounds that hold for the model's own arithmetic already."""
        value = explained.gradient(model, x)
        return cls(value, torch.zeros_like(_largest(value)), value == 0)

    def fit(self, bounds: Interval) -> Fit:
        """How `bounds` lie about the gradient at x."""
        low, up, value = bounds.lower.detach(), bounds.upper.detach(), self.value
        gaps = [(one - two).flatten(1).amax(1) for one, two in ((low, value), (value, up), (low, up))]
        return Fit(torch.stack([_most_finite(t) for t in (low, up, value)]).amax(0), *gaps)

    def allowance(self, fit: Fit) -> Float[Tensor, " batch"]:
        """How far each sample's bounds may be off: by the error, or by as much as they miss the gradient at x."""
        return ULPS * torch.finfo(fit.size.dtype).eps * fit.size + ERRORS * torch.maximum(self.error, fit.missed)

    def around(self, bounds: Interval, allowance: Float[Tensor, " batch"]) -> Interval:
        """`bounds`, together with the gradient at x, widened by `allowance`; what is exactly zero stays so."""
        wider = allowance.view(-1, *[1] * (self.value.dim() - 1))
        if bool(self.zero.any()):
            wider = torch.where(self.zero & (bounds.lower == 0) & (bounds.upper == 0), 0.0, wider)
        low, up = torch.minimum(bounds.lower, bounds.upper), torch.maximum(bounds.lower, bounds.upper)
        return Interval(torch.minimum(low, self.value) - wider, torch.maximum(up, self.value) + wider)


@dataclass(frozen=True, eq=False)
class Fit:
    """How the bounds on a gradient lie about the gradient at x, for each sample; NaN where something is."""

    size: Float[Tensor, " batch"]
    """The largest finite number among the bounds and the gradient."""
    above: Float[Tensor, " batch"]
    """How far lower bounds lie above the gradient at x, at most."""
    below: Float[Tensor, " batch"]
    """How far upper bounds lie below it."""
    crossing: Float[Tensor, " batch"]
    """How far lower bounds lie above upper ones."""

    @property
    def missed(self) -> Float[Tensor, " batch"]:
        """How far the gradient at x lies outside the bounds, or these cross; infinite where anything is NaN."""
        off = torch.stack((self.above, self.below, self.crossing)).amax(0)
        return torch.where(off.isnan(), torch.inf, off.clamp(min=0))


def with_room(bounds: Interval, value: Float[Tensor, "batch *features"]) -> Interval:
    """`bounds` on something computed from bounds with room already, together with its `value`, and their rounding."""
    room = ULPS * torch.finfo(value.dtype).eps * torch.maximum(bounds.magnitude, value.abs())
    return Interval(torch.minimum(bounds.lower, value) - room, torch.maximum(bounds.upper, value) + room)


def _gradient_in(dtype: torch.dtype, model: nn.Module, x: Tensor, explained: Explained) -> Tensor | None:
    """The gradient at `x`, the model evaluated in `dtype`; None where it runs in its own only."""
    cast = Explained(explained.of, explained.y, explained.coefficients.to(dtype))
    state = in_precision(model, dtype)

    def alone(z: Tensor) -> Any:
        return called(model, state, z)

    def every_operation(z: Tensor) -> Any:
        with _Casting(dtype):
            return called(model, state, z)

    for run in (alone, every_operation):  # the second for constants of a fixed dtype
        try:
            return cast.gradient(run, x.to(dtype))
        except Exception:  # a device without float64, an operation of one dtype: whatever the model is made of
            continue
    return None


def _of_probabilities(model: nn.Module, x: Tensor, explained: Explained) -> Tensor:
    """Softmax at the end of a model loses this of its gradient `p_i sum_j p_j (g_i - g_j)`: an ulp of each p_i g_j.

    Where one probability is nearly 1 that is more than the gradient itself, and both precisions may lose the same.
    """
    with torch.no_grad():
        p = model(x)
    if p.dim() != 2 or not bool(((p >= 0) & (p <= 1)).all()) or not bool(((p.sum(1) - 1).abs() < 1e-4).all()):
        return x.new_zeros(len(x))
    sizes = []
    for classes in (explained.y.long(), *p.topk(min(2, p.shape[1]), 1).indices.unbind(1)):
        own = torch.nn.functional.one_hot(classes, p.shape[1]).to(p)
        logarithm = Explained("logit", classes, own)
        # Of probabilities that have become 0 nothing is left.
        slope = logarithm.gradient(lambda z: model(z).clamp(min=torch.finfo(x.dtype).tiny).log(), x)
        sizes.append(_largest(slope.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)))
    share = p.amax(1) if explained.of == "loss" else (explained.coefficients.abs() * p).amax(1)
    found: Tensor = torch.stack(sizes).amax(0) * share * (4 * torch.finfo(x.dtype).eps)
    return found


class _Casting(TorchFunctionMode):
    """Inside it, every operation takes floating-point tensors of any other dtype as `dtype`."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def cast(t: Tensor) -> Tensor:
            with torch._C.DisableTorchFunction():
                return t.to(self.dtype) if t.is_floating_point() and t.dtype != self.dtype else t

        return func(*tree_map_only(Tensor, cast, args), **tree_map_only(Tensor, cast, kwargs or {}))


def _most_finite(t: Tensor) -> Tensor:
    largest = _largest(t)
    if bool(largest.isfinite().all()):
        return largest
    return _largest(t.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0))


def _largest(t: Tensor) -> Tensor:
    return t.flatten(1).abs().amax(1)
