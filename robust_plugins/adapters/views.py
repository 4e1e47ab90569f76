"""Other ways to write the same inputs, for libraries whose attacks suit one range, one shape or one dtype alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_plugins.balls import Ball, Box, Linf


@dataclass(frozen=True)
class View:
    """A model, inputs and a ball in other units or another shape, and the way back from what was found there."""

    model: nn.Module
    x: Tensor
    ball: Ball
    back: Callable[[Tensor], Tensor]


def stretched(model: nn.Module, x: Tensor, ball: Ball, span: tuple[float, float] = (0.0, 1.0)) -> View:
    """The view in which the ball's clip range is `span`; the same where there is none, or where it is already.

    Inputs that an attack leaves alone come back with every digit.
    """
    if ball.clip is None or ball.clip == span:
        return View(model, x, ball, lambda z: z)
    (low, high), (start, end) = ball.clip, span
    factor = (end - start) / (high - low)
    inside = (start + (x - low) * factor).clamp(start, end)
    if isinstance(ball, Box):  # for attacks that know no radius
        ball = Linf(eps=ball.radii, clip=ball.clip)
    view = replace(ball.scaled(factor), clip=span)
    return View(_Stretched(model, low, start, factor), inside, view, lambda z: x + (z - inside) / factor)


def single(model: nn.Module, x: Tensor, ball: Ball) -> View:
    """The view in float32; the same where the inputs are. What an attack leaves alone keeps every digit."""
    if x.dtype == torch.float32:
        return View(model, x, ball, lambda z: z)
    inside = x.float()
    return View(_Cast(model, x), inside, ball, lambda z: x + (z - inside).to(x))


def by_radius(ball: Ball, x: Tensor) -> Iterator[tuple[float, Tensor]]:
    """Each eps above zero with the indices of its samples."""
    values = ball.radii if isinstance(ball.radii, tuple) else (ball.radii,) * len(x)
    for eps in sorted(set(values) - {0.0}):
        yield eps, torch.tensor([i for i, value in enumerate(values) if value == eps], device=x.device)


def as_squares(model: nn.Module, x: Tensor, ball: Ball, side: Callable[[int], int]) -> View:
    """The view of shape (batch, channels, s, s): flat features are rows of one channel, and what lacks is padding.

    `side` gives s from the least that holds an input. The model does not see the padding.
    """
    shape = x.shape[1:]
    images = len(shape) == 3
    rows, columns = (shape[1], shape[2]) if images else (_root(shape.numel()),) * 2
    s = side(max(rows, columns))
    if images:
        padded = F.pad(x, (0, s - columns, 0, s - rows))

        def back(z: Tensor) -> Tensor:
            return z[:, :, :rows, :columns]

    else:
        flat = x.flatten(1)
        padded = F.pad(flat, (0, s * s - flat.shape[1])).view(len(x), 1, s, s)

        def back(z: Tensor) -> Tensor:
            return z.flatten(1)[:, : shape.numel()].view(len(z), *shape)

    return View(_Reshaped(model, back), padded, ball, back)


class Clamped(nn.Module):
    """A model that sees its inputs cut to a range, as they will be in the end: some attacks leave it on their way."""

    def __init__(self, model: nn.Module, span: tuple[float, float]) -> None:
        super().__init__()
        self.model, self.span = model, span

    def forward(self, z: Tensor) -> Tensor:
        """The logits at the nearest point of the range."""
        out: Tensor = self.model(z.clamp(*self.span))
        return out


class _Stretched(nn.Module):
    def __init__(self, model: nn.Module, low: float, start: float, factor: float) -> None:
        super().__init__()
        self.model, self.low, self.start, self.factor = model, low, start, factor

    def forward(self, z: Tensor) -> Tensor:
        out: Tensor = self.model(self.low + (z - self.start) / self.factor)
        return out


class _Cast(nn.Module):
    def __init__(self, model: nn.Module, like: Tensor) -> None:
        super().__init__()
        self.model, self.like = model, like.new_empty(0)

    def forward(self, z: Tensor) -> Tensor:
        out: Tensor = self.model(z.to(self.like))
        return out.to(z)


class _Reshaped(nn.Module):
    def __init__(self, model: nn.Module, back: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.back = model, back

    def forward(self, z: Tensor) -> Tensor:
        out: Tensor = self.model(self.back(z))
        return out


def _root(size: int) -> int:
    """The side of the least square that holds `size` features."""
    side = int(size**0.5)
    return side if side * side >= size else side + 1
