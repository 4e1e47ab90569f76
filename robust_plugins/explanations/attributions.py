"""Explanations that are computed from gradients, in Captum's words, each with proved bounds: `rp.explain`.

    explanation = rp.explain.IntegratedGradients(model, n_steps=20)
    explanation.attribute(inputs, target=y)                                 # the attribution, with Captum's value
    explanation.certify(inputs, target=y, ball=rp.Linf(eps=0.01, clip=(0, 1)))   # its interval over the ball

Inputs have the shape (batch, *features); `target` is the class whose logit is explained, one for all samples or one for
each, shape (batch,). The model maps a batch to logits of shape (batch, classes); it is evaluated in evaluation mode and
left as found. Inference mode, autocasting, `no_grad` and the default dtype change nothing.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from robust_plugins.balls import Ball, Box, Linf
from robust_plugins.balls.box_arguments import flat_numbers
from robust_plugins.errors import ArgumentError
from robust_plugins.explanations import ExplanationCertifier, explanation_certifier
from robust_plugins.explanations.band import ULPS, with_room
from robust_plugins.explanations.explained import explained_by
from robust_plugins.explanations.quadrature import Method, quadrature
from robust_plugins.harness.call import calling, ordinary
from robust_plugins.harness.component import check_final, chunks
from robust_plugins.harness.wrappers import Model
from robust_plugins.intervals import Interval

__all__ = ["Attribution", "InputXGradient", "IntegratedGradients", "Saliency", "SmoothGrad"]

Target = int | Int[Tensor, " batch"]
Values = Callable[[Tensor], Tensor]
"""From points, (n, batch, *features), to the gradients of the samples' logits there, of the same shape."""
Bounds = Callable[[Tensor, Ball], Interval]
"""From points, (n, batch, *features), and the ball around each, to bounds on the gradients over these balls."""


@dataclass(frozen=True, eq=False)
class Attribution(ABC):
    """An explanation of `model` that is computed from gradients of logits with respect to inputs.

    To write one, implement `value` and `bounds`.
    """

    model: Model

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        check_final(cls)

    @final
    def attribute(
        self,
        inputs: Float[Tensor, "batch *features"],
        target: Target,
        *,
        abs: bool | None = None,
        internal_batch_size: int | None = None,
    ) -> Float[Tensor, "batch *features"]:
        """The attribution of every feature, shaped like `inputs`. Raises ArgumentError for unusable arguments.

        - `abs`: of `Saliency`, in the place of its own; None is its own.
        - `internal_batch_size`: so many points, at most, go through the model at a time; None: all of them.
        """
        if abs is not None:
            if not isinstance(self, Saliency):
                raise ArgumentError(
                    "abs", abs, accepted=f"nothing for {type(self).__name__}",
                    hint="It is an option of Saliency: leave it out, or take the absolute value of the attribution.",
                )  # fmt: skip
            return replace(self, abs=abs).attribute(inputs, target, internal_batch_size=internal_batch_size)
        if internal_batch_size is not None and internal_batch_size < 1:
            raise ArgumentError(
                "internal_batch_size", internal_batch_size, accepted="an integer of at least 1, or None",
                hint="None takes all points at once.",
            )  # fmt: skip
        with calling(self.model, inputs, Linf(eps=0.0, clip=None)) as call:
            x = call.x.detach()
            model, explained = explained_by(call.model, x, ordinary(classes_of(inputs, target)), "logit")

            def gradients(points: Tensor) -> Tensor:
                flat, whole = points.flatten(0, 1), explained.repeated(len(points))
                parts = [whole[part].gradient(model, flat[part]) for part in chunks(len(flat), internal_batch_size)]
                return torch.cat([flat[:0], *parts]).view_as(points)  # there may be none

            return self.value(x, gradients)

    @final
    def certify(
        self,
        inputs: Float[Tensor, "batch *features"],
        target: Target,
        *,
        ball: Ball,
        certifier: str | ExplanationCertifier = "interval:relaxed",
        radius: float = 0.0,
    ) -> Interval:
        """Bounds on the attribution over the ball around each of `inputs`, shaped like them; without autograd history.

        They hold the attribution at `inputs` itself, and have room for rounding.

        `certifier` bounds the gradients, by name or itself, under the assumptions that it states; with `radius` > 0
        the bounds hold for every model whose parameters differ by at most this relative amount, too. Raises
        ArgumentError for unusable arguments, UnsupportedModelError for a model that cannot be bounded.
        """
        chosen = explanation_certifier(certifier) if isinstance(certifier, str) else certifier
        with torch.no_grad(), calling(self.model, inputs, ball) as call:
            x, model = call.x.detach(), call.model
            value = self.attribute(x, target)
            y = ordinary(classes_of(inputs, target))

            def gradients(points: Tensor, around: Ball) -> Interval:
                flat = points.flatten(0, 1)
                found = chosen.bounds(model, flat, y.repeat(len(points)), around, of="logit", radius=radius)
                return found.map(lambda t: t.view_as(points))

            return with_room(self.bounds(x, ball, gradients), value)

    @abstractmethod
    def value(self, x: Float[Tensor, "batch *features"], gradients: Values) -> Float[Tensor, "batch *features"]:
        """The attribution at `x`, computed from gradients."""

    @abstractmethod
    def bounds(self, x: Float[Tensor, "batch *features"], ball: Ball, gradients: Bounds) -> Interval:
        """The interval of `value` over the ball, computed from bounds on gradients."""


@dataclass(frozen=True, eq=False)
class Saliency(Attribution):
    """The gradient of the logit: its absolute value, or with `abs=False` itself.

    Simonyan et al. 2014, "Deep inside convolutional networks", section 3.

    - `model`: the model whose logits are explained.
    - `abs`: whether the absolute value is taken, as Captum does.
    """

    abs: bool = True

    def value(self, x: Float[Tensor, "batch *features"], gradients: Values) -> Float[Tensor, "batch *features"]:  # noqa: D102 (inherited)
        found = gradients(x.unsqueeze(0))[0]
        return found.abs() if self.abs else found

    def bounds(self, x: Float[Tensor, "batch *features"], ball: Ball, gradients: Bounds) -> Interval:  # noqa: D102 (inherited)
        found = gradients(x.unsqueeze(0), ball)[0]
        if not self.abs:
            return found
        return Interval(torch.maximum(found.lower, -found.upper).clamp(min=0), found.magnitude)


@dataclass(frozen=True, eq=False)
class InputXGradient(Attribution):
    """The input times the gradient of the logit. Bounds: the product of the intervals of both.

    - `model`: the model whose logits are explained.
    """

    def value(self, x: Float[Tensor, "batch *features"], gradients: Values) -> Float[Tensor, "batch *features"]:  # noqa: D102 (inherited)
        return x * gradients(x.unsqueeze(0))[0]

    def bounds(self, x: Float[Tensor, "batch *features"], ball: Ball, gradients: Bounds) -> Interval:  # noqa: D102 (inherited)
        return ball.box(x) * gradients(x.unsqueeze(0), ball)[0]


@dataclass(frozen=True, eq=False)
class IntegratedGradients(Attribution):
    """The way from a baseline to the input, times the mean gradient along it, by a fixed quadrature.

    `baselines`: a number, or a tensor that broadcasts against the inputs; it stays where it is while the input moves.
    `n_steps` and `method` are Captum's. Sundararajan et al. 2017, "Axiomatic attribution for deep networks", section 5.

    Bounds: where the input moves by at most eps, the point at alpha on the path moves by at most `alpha * eps`. So the
    weighted sum of the bounds over these balls holds the quadrature (not the integral that it stands for), and its
    product with the interval of the way is the interval. They take `n_steps` certificates, as one batch.

    - `model`: the model whose logits are explained.
    """

    baselines: float | Shaped[Tensor, "..."] = 0.0
    n_steps: int = 50
    method: Method = "gausslegendre"

    def __post_init__(self) -> None:
        quadrature(self.method, self.n_steps)  # both are checked there

    def value(self, x: Float[Tensor, "batch *features"], gradients: Values) -> Float[Tensor, "batch *features"]:  # noqa: D102 (inherited)
        alphas, steps = self._quadrature(x)
        baseline = _baseline(self.baselines, x)
        return (steps * gradients(baseline + alphas * (x - baseline))).sum(0) * (x - baseline)

    def bounds(self, x: Float[Tensor, "batch *features"], ball: Ball, gradients: Bounds) -> Interval:  # noqa: D102 (inherited)
        alphas, steps = self._quadrature(x)
        baseline = _baseline(self.baselines, x)
        path = baseline + alphas * (x - baseline)
        # A box has a range for each feature, and may have gaps.
        clip, around = (None if isinstance(ball, Box) else ball.clip), ball
        if clip is not None and bool(((baseline >= clip[0]) & (baseline <= clip[1])).all()):
            # Between two points of the valid range every point is valid; rounded, it may lie an ulp outside.
            path, around = path.clamp(*clip), replace(ball, clip=_wider(clip, x.dtype))
        else:
            around = ball.unclipped(x)
        room = _moved(around, x, baseline)
        eps = torch.where(alphas.flatten(1) == 0, 0.0, alphas.flatten(1) * ball.radii_for(x) + room).reshape(-1, 1)
        found = gradients(path, replace(around, eps=eps))
        return (ball.box(x) - baseline) * found.map(lambda t: (steps * t).sum(0))

    def _quadrature(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Points and weights, each of shape (n_steps, 1, ...) to broadcast against a stack of `x`."""
        points, weights = quadrature(self.method, self.n_steps)
        shape = (-1, *[1] * x.dim())
        return x.new_tensor(points).view(shape), x.new_tensor(weights).view(shape)


@dataclass(frozen=True, eq=False)
class SmoothGrad(Attribution):
    """The mean gradient at noisy copies of the input.

    The noise is normal with the standard deviation `stdevs` in input units, drawn once from `seed`, `nt_samples` times,
    and the same for every sample and every point of the ball, so that the explanation is a function of the input.
    Captum's `NoiseTunnel(Saliency(model))` draws it anew at each call, takes absolute values first unless told
    otherwise, and calls these two the same. Noise may leave the valid range of inputs. Smilkov et al. 2017,
    "SmoothGrad: removing noise by adding noise".

    Bounds: the mean of the bounds over the moved balls, `nt_samples` certificates in one batch.

    - `model`: the model whose logits are explained.
    """

    nt_samples: int = 5
    stdevs: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.nt_samples, int) or self.nt_samples < 1:
            raise ArgumentError("nt_samples", self.nt_samples, accepted="an integer of at least 1", hint="5 is usual.")
        if not self.stdevs >= 0:
            raise ArgumentError("stdevs", self.stdevs, accepted="a number >= 0", hint="It has the inputs' units.")

    def noise(self, x: Float[Tensor, "batch *features"]) -> Float[Tensor, "samples 1 *features"]:
        """The noise that is added to every sample of `x`."""
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.randn((self.nt_samples, 1, *x.shape[1:]), generator=generator, dtype=torch.float64)
        return (self.stdevs * drawn).to(x)

    def value(self, x: Float[Tensor, "batch *features"], gradients: Values) -> Float[Tensor, "batch *features"]:  # noqa: D102 (inherited)
        return gradients(x + self.noise(x)).mean(0)

    def bounds(self, x: Float[Tensor, "batch *features"], ball: Ball, gradients: Bounds) -> Interval:  # noqa: D102 (inherited)
        noise, around = self.noise(x), ball.unclipped(x)
        eps = (ball.radii_for(x) + _moved(around, x, *noise)).repeat(self.nt_samples).unsqueeze(1)
        found = gradients(x + noise, replace(around, eps=eps))
        return found.map(lambda t: t.mean(0))


def classes_of(inputs: Tensor, target: Target) -> Tensor:
    """The class of each sample, from one for all or one for each."""
    if isinstance(target, Tensor):
        return target
    return torch.full((len(inputs),), target, dtype=torch.long, device=inputs.device)


def _moved(ball: Ball, *points: Tensor) -> Float[Tensor, " batch"]:
    """By how much more than in real arithmetic the radius of a ball has to be, after its points were moved.

    The ends of a box are rounded, and so are the points that a model sees: a few units in the last place of the largest
    number. Where a kink lies between the two, bounds would miss the gradient on its other side. Of no radius there is
    none to add: nothing moves.
    """
    largest = torch.stack([p.flatten(1).abs().amax(1).expand(len(points[0])) for p in points]).amax(0)
    radii = ball.radii_for(points[0])
    widths = flat_numbers(ball.radius) if isinstance(ball, Box) else [1.0]
    least, most = min((w for w in widths if w > 0), default=1.0), max(widths)
    room = ULPS * torch.finfo(radii.dtype).eps * ((largest + radii * most) / least + radii)
    return torch.where(radii > 0, room, 0.0)


def _wider(clip: tuple[float, float], dtype: torch.dtype) -> tuple[float, float]:
    """The range with room for rounding at its ends; 0 has none, for a number less a part of it is never below."""
    low, high = clip
    room = ULPS * torch.finfo(dtype).eps * max((abs(end) for end in clip if math.isfinite(end)), default=0.0)
    return low - room * bool(low), high + room * bool(high)


def _baseline(baselines: float | Tensor, x: Tensor) -> Tensor:
    try:
        return torch.as_tensor(baselines, dtype=x.dtype, device=x.device).expand_as(x)
    except RuntimeError:
        raise ArgumentError(
            "baselines",
            f"of shape {tuple(torch.as_tensor(baselines).shape)}",
            accepted=f"a number, or a tensor that broadcasts against {tuple(x.shape)}",
            hint="For example 0.0, or the mean of the training inputs.",
        ) from None
