"""Components in a few lines: sound ones that must pass every check, and broken ones that must not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

import robust_plugins as rp


@dataclass(frozen=True, kw_only=True)
class SignStep(rp.Attack):
    """One step of size eps along the gradient's sign, projected."""

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, ball: rp.Ball, *, targeted: bool) -> Tensor:
        z = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(model(z), y, reduction="sum"), z)
        step = ball.eps_for(x) * gradient.sign()
        return ball.project(x - step if targeted else x + step, x)


@dataclass(frozen=True, kw_only=True)
class Boxes(rp.Certifier):
    """Interval propagation through the layers of the small networks of the conformance checks."""

    shrink: ClassVar[float] = 1.0

    def propagate(self, model: nn.Module, x: Tensor, ball: rp.Ball, spec: Tensor | None) -> rp.Interval:
        box = ball.box(x)
        center, radius = box.center, box.radius
        for layer in _layers(model):
            center, radius = _step(layer, center, radius)
        radius = radius * self.shrink
        return rp.apply_spec(rp.Interval(center - radius, center + radius), spec)


@dataclass(frozen=True, kw_only=True)
class TooTight(Boxes):
    """The planted fault: the last bounds lose one per cent of their width."""

    shrink: ClassVar[float] = 0.99


def _layers(model: nn.Module) -> list[nn.Module]:
    leaves = [m for m in model.modules() if not list(m.children())]
    for leaf in leaves:
        if not isinstance(
            leaf, nn.Linear | nn.Conv2d | nn.BatchNorm2d | nn.AvgPool2d | nn.Flatten | nn.ReLU | nn.Tanh | nn.Dropout
        ):
            raise rp.UnsupportedModelError(f"boxes: no rule for {type(leaf).__name__}")
    normalised = [m for m in model.modules() if hasattr(m, "mean")]
    return [*normalised, *leaves]


def _step(layer: nn.Module, center: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    if hasattr(layer, "mean"):
        return (center - layer.mean) / 0.5, radius / 0.5
    if isinstance(layer, nn.Linear):
        return layer(center), radius @ layer.weight.abs().T
    if isinstance(layer, nn.Conv2d):
        weight = layer.weight.abs()
        return layer(center), nn.functional.conv2d(radius, weight, stride=layer.stride, padding=layer.padding)
    if isinstance(layer, nn.BatchNorm2d):
        scale = (layer.weight / (layer.running_var + layer.eps).sqrt()).view(1, -1, 1, 1)
        return layer(center), radius * scale.abs()
    if isinstance(layer, nn.ReLU | nn.Tanh):
        low, up = layer(center - radius), layer(center + radius)
        return (low + up) / 2, (up - low) / 2
    return layer(center), layer(radius)


class Plugin:
    """Registers the toys."""

    @rp.hookimpl
    def register_attacks(self, register: object) -> None:
        register("toy:sign-step", SignStep)  # type: ignore[operator]

    @rp.hookimpl
    def register_certifiers(self, register: object) -> None:
        register("toy:boxes", Boxes)  # type: ignore[operator]


class Unbounded(nn.Module):
    """A layer that no certifier bounds: it leaves all as it is, by a function that has no rules anywhere."""

    def forward(self, h: Tensor) -> Tensor:
        return h + 0 * torch.special.bessel_j0(h.detach())
