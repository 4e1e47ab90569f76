"""The base of attacks of libraries that know inputs in [0, 1], in float32, and one radius for a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from typing import ClassVar

import torch
from torch import Tensor, nn

from robust_plugins.adapters.checks import (
    check_clip,
    check_counts,
    check_norm,
    check_one_radius,
    check_positive,
    check_untargeted,
)
from robust_plugins.adapters.views import as_squares, by_radius, single, stretched
from robust_plugins.balls import Ball
from robust_plugins.decisions.attack import Attack
from robust_plugins.errors import ArgumentError

REFUSALS = (ArithmeticError, AssertionError, AttributeError, LookupError, NotImplementedError, TypeError, ValueError)
"""The errors that libraries raise for parameters and inputs that they cannot handle, on purpose or by stumbling."""


@dataclass(frozen=True, kw_only=True)
class Wrapped(Attack, ABC):
    """An attack of another library. What it returns is projected onto the ball, and judged by the common call.

    To add one, implement `generate` and set the class variables.
    """

    name: ClassVar[str]
    """The name that it is registered under."""
    norms: ClassVar[tuple[float, ...]]
    """The norms that it searches in."""
    targets: ClassVar[bool] = True
    """Whether it can be given a target."""
    images: ClassVar[bool] = False
    """Whether it takes square images alone; other inputs are padded to such ones."""

    @abstractmethod
    def generate(self, model: nn.Module, x: Tensor, y: Tensor, ball: Ball, *, targeted: bool, classes: int) -> Tensor:
        """The points that the library finds for inputs in [0, 1] and a ball of one radius above zero."""

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, ball: Ball, *, targeted: bool) -> Tensor:  # noqa: D102
        check_norm(self.name, ball, *self.norms)
        check_one_radius(self.name, ball)
        check_clip(self.name, ball, "its library moves inputs inside a range")
        if not self.targets:
            check_untargeted(self.name, targeted)
        with torch.no_grad():
            logits = model(x)
        spared = torch.zeros_like(y, dtype=torch.bool)
        if self.nearest:  # nothing is nearer than a sample that is a success already
            spared = (logits.argmax(1) == y) == targeted
        views = [single(model, x, ball)]
        views += [stretched(views[-1].model, views[-1].x, views[-1].ball)]
        if self.images:
            views += [as_squares(views[-1].model, views[-1].x, views[-1].ball, lambda side: side)]
        view = views[-1]
        hidden = _Hidden(view.model).eval()
        found = view.x.clone()
        for eps, group in by_radius(view.ball, view.x):
            part = group[~spared[group]]
            if not len(part):
                continue
            one = type(ball)(eps=eps, clip=(0.0, 1.0))
            try:
                with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
                    after = self.generate(
                        hidden, view.x[part], y[part].long(), one, targeted=targeted, classes=logits.shape[1]
                    )
            except REFUSALS as error:
                raise ArgumentError(
                    "attack",
                    f"{self}, which its library refuses: {type(error).__name__}: {error}",
                    accepted="an attack and parameters that it can run for this ball and these inputs",
                    hint="Its documentation says which shapes and values it takes.",
                ) from error
            found[part] = after.detach().to(found)
        for view in reversed(views):
            found = view.back(found)
        return ball.project(found, x)


@dataclass(frozen=True, kw_only=True)
class Stepped(Wrapped):
    """A wrapped attack by steps of one length: `steps` >= 1 and `relative_step` > 0, or None, are its parameters."""

    steps: int = 40
    relative_step: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(steps=self.steps)
        if self.relative_step is not None:
            check_positive(relative_step=self.relative_step)

    @property
    def length(self) -> float:
        """The length of a step in units of eps: 2.5 / steps where nothing else is asked for."""
        return 2.5 / self.steps if self.relative_step is None else self.relative_step


class _Hidden(nn.Module):
    """Calls a model that it does not own, so that a library can change neither its mode nor its flags."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._call = model.__call__  # a bound method is no submodule: to(), train() and zero_grad() do not see it

    def forward(self, z: Tensor) -> Tensor:
        out: Tensor = self._call(z)
        return out
