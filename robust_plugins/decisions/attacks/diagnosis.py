"""A few samples tell what a model offers to a search by gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from robust_plugins.decisions.attacks.surrogates import straight_through
from robust_plugins.harness.arguments import logits_of

SAMPLES = 16
"""So many samples a diagnosis looks at."""

ROUNDED_AWAY = 1
"""Below so many times the dtype's precision, 1 - p of the decision is rounding: the gradient of cross-entropy has lost
the decision's own logit, and soon all of itself."""


@dataclass(frozen=True)
class Diagnosis:
    """How the gradients of a model are, at `samples` of a batch; the numbers are of samples."""

    samples: int
    differentiable: bool = True
    """Whether the logits have a gradient by the input at all."""
    random: bool = False
    """Whether two evaluations differ by more than rounding."""
    saturated: int = 0
    """Where cross-entropy's gradient is lost in rounding, for the decision is too sure."""
    flat: int = 0
    """Where the margin's gradient is zero."""
    passed: int = 0
    """Of these, where it is not when gradients are passed straight through roundings and casts."""

    @property
    def blind(self) -> bool:
        """Whether a search by the model's own gradients sees nothing at half of the samples, or more."""
        return not self.differentiable or 2 * self.flat > self.samples

    @property
    def passable(self) -> bool:
        """Whether straight-through gradients see more."""
        return self.passed > 0


def diagnosed(
    model: nn.Module,
    x: Float[Tensor, "batch *features"],
    y: Integer[Tensor, " batch"],
    *,
    targeted: bool = False,
    samples: int = SAMPLES,
) -> Diagnosis:
    """Looks at `samples` of the batch, evenly spread: two evaluations and one gradient, two where that is zero.

    `y` are classes to leave, or with `targeted` to reach; samples that are decided so already are best left out.
    """
    if not len(x):
        return Diagnosis(0)
    at = torch.linspace(0, len(x) - 1, min(samples, len(x)), device=x.device).round().long().unique()
    x, y = x[at], y[at]
    logits, steep = _steep(model, x, y)
    differentiable = steep is not None
    flat = ~steep if steep is not None else torch.ones_like(y, dtype=torch.bool)
    passed = torch.zeros_like(flat)
    if bool(flat.any()):
        try:
            _, through = _steep(straight_through(model), x, y)
        except (RuntimeError, IndexError, TypeError):  # what was an integer is a number with a gradient now
            through = None
        passed = flat & through if through is not None else passed
    with torch.no_grad():
        again = logits_of(model, x)
        scale = max(1.0, float(logits.abs().nan_to_num(posinf=0.0).max()))
        random = not torch.allclose(again, logits, rtol=1e-3, atol=1e-4 * scale, equal_nan=True)
        chosen = logits.log_softmax(1).gather(1, y.unsqueeze(1)).squeeze(1)
        # Towards a target cross-entropy is steep as long as it is missed.
        sure = (-torch.expm1(chosen) < ROUNDED_AWAY * torch.finfo(x.dtype).eps) & (not targeted)
    return Diagnosis(len(x), differentiable, random, int(sure.sum()), int(flat.sum()), int(passed.sum()))


def _steep(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
    """The logits, and where the gradient of the margin is not zero; None where there is none."""
    with torch.enable_grad():
        z = x.clone().requires_grad_()
        logits = model(z)
        if not isinstance(logits, Tensor) or not logits.requires_grad:
            return logits, None
        own = y.unsqueeze(1)
        margin = logits.gather(1, own).squeeze(1) - logits.scatter(1, own, -torch.inf).amax(1)
        try:
            (gradient,) = torch.autograd.grad(margin.sum(), z, materialize_grads=True)
        except RuntimeError:  # an operation without a derivative, as floor division and those on quantised tensors
            return logits.detach(), None
    return logits.detach(), (gradient.nan_to_num(nan=0.0) != 0).flatten(1).any(1)
