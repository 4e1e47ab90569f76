"""Looks, once per conversion and method, for points that lie outside the bounds: a net under the table of known faults.

Finding none proves nothing. It does find an operator that a release of auto_LiRPA misreads for the model at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from robust_plugins.adapters.lirpa.bounded import Bounded
from robust_plugins.adapters.lirpa.failures import inside_backend, out_of_memory
from robust_plugins.balls import Ball, Linf
from robust_plugins.errors import UnsupportedModelError
from robust_plugins.intervals import Interval

_RADII = (0.1, 0.5)
_ROWS = 3
_POINTS = 16
_STEPS = (1.0, 0.5, 0.25)
_TOLERANCE = 1e-4
"""Of the largest value at the points: the backend does not round outward."""
_TOLERANCE_OF_BOUNDS = 1e-5
"""Of the largest bound, which tells how large the values between may be."""

Bounds = Callable[[Bounded, nn.Module, Tensor, Ball, Tensor], Interval]


def refuse_violated(converted: Bounded, model: nn.Module, x: Tensor, method: str, bounds: Bounds) -> None:
    """Raises UnsupportedModelError where a point of a ball around the first samples of `x` lies outside `bounds`.

    For two radii and random combinations of the logits: corners, uniform points and a short gradient ascent. A ball
    that the backend fails on, or bounds by infinities, is passed over.
    """
    if method in converted.audited:
        return
    with torch.inference_mode(False), torch.no_grad():
        x = (x.clone() if x.is_inference() else x)[: converted.samples or 2]
        generator = torch.Generator().manual_seed(0)
        spec = torch.randn((len(x), _ROWS, converted.classes), generator=generator, dtype=x.dtype).to(x.device)
        for eps in _RADII:
            ball = Linf(eps=eps, clip=None)
            try:
                found = bounds(converted, model, x, ball, spec)
            except Exception as error:
                if out_of_memory(error) or not inside_backend(error):
                    raise
                continue
            excess, scale = _excess(model, x, ball, spec, found, generator)
            if excess > _TOLERANCE * scale + _TOLERANCE_OF_BOUNDS * _largest(found):
                version = ".".join(map(str, converted.backend.version))
                raise UnsupportedModelError(
                    f"auto_LiRPA {version} bounds {type(model).__name__} wrongly with {method}: at eps={eps} a point "
                    f"lies {excess:.3g} outside its bounds, of values up to {scale:.3g}; so it is refused"
                )
    converted.audited.add(method)


def _excess(
    model: nn.Module, x: Tensor, ball: Ball, spec: Tensor, found: Interval, generator: torch.Generator
) -> tuple[float, float]:
    """How far the worst point lies outside, and the largest magnitude of all points' values."""
    excess = scale = 0.0
    for z in _points(model, x, ball, spec, generator):
        value = (spec @ model(z).unsqueeze(2)).squeeze(2)
        outside = torch.maximum(found.lower - value, value - found.upper)
        excess = max(excess, float(outside.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).amax()))
        scale = max(scale, float(value.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).abs().amax()))
    return excess, scale


def _points(model: nn.Module, x: Tensor, ball: Ball, spec: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
    yield x
    yield from ball.sample(x, _POINTS, generator, draw="corner")
    yield from ball.sample(x, _POINTS, generator)
    for row in range(spec.shape[1]):
        for sign in (1.0, -1.0):
            z = x
            for step in _STEPS:
                with torch.enable_grad():
                    z = z.detach().requires_grad_()
                    value = (spec[:, row] * model(z)).sum()
                    if not value.requires_grad:  # a model that cuts its gradients
                        return
                    (gradient,) = torch.autograd.grad(value, z)
                z = ball.project(z.detach() + sign * step * ball.eps_for(x) * gradient.sign(), x)
            yield z.detach()


def _largest(found: Interval) -> float:
    both = torch.stack((found.lower, found.upper)).abs()
    return float(both.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).amax())
