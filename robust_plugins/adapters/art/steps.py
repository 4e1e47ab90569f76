"""ART's projected gradient ascent, one step at a time: quick through its private methods, or by its public ones.

The quick way runs ART's own `ProjectedGradientDescentPyTorch`, without what its L-infinity steps do not need: weight
gradients, a float64 tensor of eps at every step, masks for NaN, walks over all modules, and predictions for a log
line. The iterates are ART's to the bit. It depends on private methods, so it is taken only for the releases of ART
for which that is tested; others go through the public `FastGradientMethod`, several times slower.

Imports ART: import this module inside functions only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import art
import numpy as np
import torch
import torch.nn.functional as F
from art.attacks.evasion import FastGradientMethod
from art.attacks.evasion.projected_gradient_descent.projected_gradient_descent_pytorch import (
    ProjectedGradientDescentPyTorch,
)
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from robust_plugins.adapters.art.estimator import classes_of, estimator_for, one_hot
from robust_plugins.balls import Ball, Box, Linf
from robust_plugins.decisions.attacks.objectives import Loss, objective
from robust_plugins.errors import ArgumentError

Radius = float | tuple[float, ...]
"""A length in input units, the same for all samples or one for each."""

Step = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From an iterate to the next one, with the model's logits on the former.

The next iterate's memory is used again by the second step after it: copy what is to last.
"""

TESTED = ((1, 19), (1, 21))
"""The releases of ART, from and below, whose private methods are known to be as used here."""


def ascent(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    *,
    step_size: Radius,
    targeted: bool,
    loss: Loss = "cross_entropy",
) -> Step:
    """One step of ART's projected gradient ascent around `x`, in x's dtype and on its device.

    `loss` is what it raises for labels `y`, and lowers for targets. Raises ArgumentError where the model's logits are
    not differentiable in its input, and for another loss than cross-entropy in a release of ART that is not tested.
    """
    release = tuple(int(part) for part in art.__version__.split(".")[:2])
    if isinstance(ball, Box):
        return _boxed(model, x, y.long(), ball, step_size, targeted, loss)
    build = _private if TESTED[0] <= release < TESTED[1] else _public
    return build(model, x, y.long(), ball, step_size, targeted, loss)


class _Gradients(PyTorchClassifier):  # type: ignore[misc] # ART is untyped
    """Gradients of the input alone, by a direct call of the model; keeps the logits that are computed on the way."""

    direct: nn.Module
    raised: Callable[[Tensor, Tensor], Tensor]
    logits: Tensor

    def loss_gradient(self, x: Tensor, y: Tensor, **kwargs: Any) -> Tensor:
        z = x.detach().requires_grad_()
        logits = _differentiable(self.direct(z))
        self.logits = logits.detach()
        (gradient,) = torch.autograd.grad(self.raised(logits, y), z)
        return gradient


class _Ascent(ProjectedGradientDescentPyTorch):  # type: ignore[misc] # ART is untyped
    """ART's steps; those of L-infinity without temporary tensors, whose allocation costs more than the arithmetic."""

    spare: Tensor
    """Where the next iterate goes."""

    def _compute_pytorch(
        self,
        x: Tensor,
        x_init: Tensor,
        y: Tensor,
        mask: None,
        eps: Any,
        eps_step: Any,
        random_init: bool,
        momentum: None,
    ) -> Tensor:
        if self.norm != math.inf:
            return cast(Tensor, super()._compute_pytorch(x, x_init, y, mask, eps, eps_step, random_init, momentum))
        gradient = self.estimator.loss_gradient(x=x, y=y)
        z = torch.sign(gradient, out=self.spare)  # of NaN it is 0, as in ART
        z.mul_(-eps_step if self.targeted else eps_step).add_(x)
        if self.estimator.clip_values is not None:
            z.clamp_(*self.limits)
        return z.sub_(x_init).clamp_(-eps, eps).add_(x_init)


def _private(model: nn.Module, x: Tensor, y: Tensor, ball: Ball, step_size: Radius, targeted: bool, loss: Loss) -> Step:
    # ART counts classes to convert labels to its form, which nothing here needs.
    estimator = estimator_for(model, x, ball, classes=2, classifier=_Gradients)
    estimator.direct, estimator.raised, estimator._device = model, _mean(loss, targeted), x.device
    attack = _Ascent(estimator, norm=ball.norm, targeted=targeted, batch_size=len(x), verbose=False)
    attack.limits = ball.clip
    buffers = [torch.empty_like(x), torch.empty_like(x)]
    linf = isinstance(ball, Linf)
    eps, by = (_as_tensor(r, x) if linf else _as_array(r, x) for r in (ball.radii, step_size))

    def step(z: Tensor) -> tuple[Tensor, Tensor]:
        attack.spare = buffers[0] if z is not buffers[0] else buffers[1]
        following = attack._compute_pytorch(z, x, y, None, eps, by, False, None)
        return following, estimator.logits

    return step


def _public(model: nn.Module, x: Tensor, y: Tensor, ball: Ball, step_size: Radius, targeted: bool, loss: Loss) -> Step:
    if loss != "cross_entropy":
        raise ArgumentError(
            "loss", f"{loss!r} with ART {art.__version__}", accepted="'cross_entropy', which is what ART itself raises",
            hint=f"Take rp:pgd(loss={loss!r}), or an ART of which this is tested: 1.19 or 1.20.",
        )  # fmt: skip
    # A step of size one gives the direction; ART's float32 would round a small step away.
    estimator = estimator_for(model, x, replace(ball, clip=None), classes=classes_of(model, x))
    attack = FastGradientMethod(estimator, norm=ball.norm, eps=1.0, eps_step=1.0, targeted=targeted, batch_size=len(x))
    labels, by = one_hot(y, estimator.nb_classes), _as_tensor(step_size, x)

    def step(z: Tensor) -> tuple[Tensor, Tensor]:
        logits = _differentiable(model(z.detach().requires_grad_())).detach()
        before = z.detach().cpu().numpy().astype(np.float32)
        direction = torch.from_numpy(attack.generate(before, labels) - before).to(x)
        following = z + by * direction
        return ball.project(following if ball.clip is None else following.clamp(*ball.clip), x), logits

    return step


def _boxed(model: nn.Module, x: Tensor, y: Tensor, ball: Box, step_size: Radius, targeted: bool, loss: Loss) -> Step:
    """Steps along ART's gradient that take each feature as far, in units of its own radius."""
    estimator = estimator_for(model, x, ball, classes=2, classifier=_Gradients)
    estimator.direct, estimator.raised = model, _mean(loss, targeted)
    eps = _as_tensor(ball.radii, x)
    share = _as_tensor(step_size, x) / torch.where(torch.as_tensor(eps > 0), eps, 1)

    def step(z: Tensor) -> tuple[Tensor, Tensor]:
        gradient = estimator.loss_gradient(x=z, y=y)
        return ball.project(z + share * ball.steepest(-gradient if targeted else gradient), x), estimator.logits

    return step


def _mean(loss: Loss, targeted: bool) -> Callable[[Tensor, Tensor], Tensor]:
    """From logits and labels to what ART raises, or lowers where they are targets; its own to the bit by default."""
    if loss == "cross_entropy":
        return F.cross_entropy
    sign = -1 if targeted else 1
    return lambda logits, y: sign * objective(loss, y, targeted=targeted)(logits).mean()


def _differentiable(logits: Tensor) -> Tensor:
    if not logits.requires_grad:
        raise ArgumentError(
            "model",
            "not differentiable in its input",
            accepted="a model through which gradients flow",
            hint="Remove detach() and no_grad() from its forward, or use an attack without gradients.",
        )
    return logits


def _as_tensor(radius: Radius, x: Tensor) -> float | Tensor:
    if not isinstance(radius, tuple):
        return radius
    return torch.tensor(radius, dtype=x.dtype, device=x.device).view(-1, *[1] * (x.dim() - 1))


def _as_array(radius: Radius, x: Tensor) -> float | np.ndarray:
    return np.reshape(radius, (-1, *[1] * (x.dim() - 1))) if isinstance(radius, tuple) else radius
