"""ART's projected gradient ascent, one step at a time: quick through its private methods, or by its public ones.

The quick way runs ART's own `ProjectedGradientDescentPyTorch`, without what its L-infinity steps do not need: weight
gradients, a float64 tensor of eps at every step, masks for NaN, walks over all modules, and predictions for a log
line. The iterates are ART's to the bit. It depends on private methods, so it is taken only for the releases of ART
for which that is tested; others go through the public `FastGradientMethod`.

Imports ART: import this module inside functions only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
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

from robust_plugins.attacks._art import estimator_for, moved, one_hot
from robust_plugins.balls import Ball, Linf
from robust_plugins.errors import ArgumentError

Radius = float | tuple[float, ...]
"""A length in input units, the same for all samples or one for each."""

Step = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From an iterate to the next one, with the model's logits on the former."""

TESTED = ((1, 19), (1, 21))
"""The releases of ART, from and below, whose private methods are known to be as used here."""


def ascent(model: nn.Module, x: Tensor, y: Tensor, ball: Ball, *, step_size: Radius, targeted: bool) -> Step:
    """One step of ART's projected gradient ascent around `x`, in x's dtype and on its device.

    Raises ArgumentError where the model's logits are not differentiable in its input.
    """
    release = tuple(int(part) for part in art.__version__.split(".")[:2])
    build = _private if TESTED[0] <= release < TESTED[1] else _public
    return build(model, x, y.long(), ball, step_size, targeted)


class _Gradients(PyTorchClassifier):  # type: ignore[misc] # ART is untyped
    """Gradients of the input alone, by a direct call of the model; keeps the logits that are computed on the way."""

    direct: nn.Module
    logits: Tensor

    def loss_gradient(self, x: Tensor, y: Tensor, **kwargs: Any) -> Tensor:
        z = x.detach().requires_grad_()
        logits = self.direct(z)
        if not logits.requires_grad:
            raise ArgumentError(
                "model",
                "not differentiable in its input",
                accepted="a model through which gradients flow",
                hint="Remove detach() and no_grad() from its forward, or use an attack without gradients.",
            )
        self.logits = logits.detach()
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, y), z)
        return gradient


class _Ascent(ProjectedGradientDescentPyTorch):  # type: ignore[misc] # ART is untyped
    """ART's steps, with short versions of the three methods that take its time, for L-infinity."""

    def _compute_perturbation_pytorch(self, x: Tensor, y: Tensor, mask: None, momentum: None) -> Tensor:
        if self.norm != math.inf:
            return cast(Tensor, super()._compute_perturbation_pytorch(x, y, mask, momentum))
        gradient: Tensor = self.estimator.loss_gradient(x=x, y=y)
        # The sign of NaN is 0, as in ART.
        return gradient.neg().sign_() if self.targeted else gradient.sign()

    def _apply_perturbation_pytorch(self, x: Tensor, perturbation: Tensor, eps_step: Any) -> Tensor:
        if self.norm != math.inf:
            return cast(Tensor, super()._apply_perturbation_pytorch(x, perturbation, eps_step))
        z = perturbation.mul_(eps_step).add_(x)
        return z if self.estimator.clip_values is None else z.clamp_(*self.limits)

    @staticmethod
    def _projection(values: Tensor, eps: Any, norm_p: float, **kwargs: Any) -> Tensor:
        if norm_p != math.inf:
            return cast(Tensor, ProjectedGradientDescentPyTorch._projection(values, eps, norm_p, **kwargs))
        return values.clamp_(-eps, eps)


def _private(model: nn.Module, x: Tensor, y: Tensor, ball: Ball, step_size: Radius, targeted: bool) -> Step:
    estimator = estimator_for(model, x, ball, classifier=_Gradients)
    estimator.direct, estimator._device = model, x.device
    attack = _Ascent(estimator, norm=ball.norm, targeted=targeted, batch_size=len(x), verbose=False)
    attack.limits = ball.clip
    linf = isinstance(ball, Linf)
    eps, by = (_as_tensor(r, x) if linf else _as_array(r, x) for r in (ball.radii, step_size))

    def step(z: Tensor) -> tuple[Tensor, Tensor]:
        following = attack._compute_pytorch(z, x, y, None, eps, by, False, None)
        return following, estimator.logits

    return step


def _public(model: nn.Module, x: Tensor, y: Tensor, ball: Ball, step_size: Radius, targeted: bool) -> Step:
    estimator = estimator_for(model, x, ball)
    labels = one_hot(y, estimator.nb_classes)
    by = _as_array(step_size, x)
    by = np.maximum(by, np.finfo(np.float32).tiny) if isinstance(by, np.ndarray) else by  # ART wants steps above 0
    attack = FastGradientMethod(estimator, norm=ball.norm, eps=by, eps_step=by, targeted=targeted, batch_size=len(x))

    def step(z: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            logits = model(z)
        before = z.detach().cpu().numpy().astype(np.float32)
        return ball.project(moved(z, before, attack.generate(before, labels)), x), logits

    return step


def _as_tensor(radius: Radius, x: Tensor) -> float | Tensor:
    if not isinstance(radius, tuple):
        return radius
    return torch.tensor(radius, dtype=x.dtype, device=x.device).view(-1, *[1] * (x.dim() - 1))


def _as_array(radius: Radius, x: Tensor) -> float | np.ndarray:
    return np.reshape(radius, (-1, *[1] * (x.dim() - 1))) if isinstance(radius, tuple) else radius
