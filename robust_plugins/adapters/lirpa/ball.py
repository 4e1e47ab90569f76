"""Balls in the form that auto_LiRPA takes: a tensor that carries its perturbation."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robust_plugins.adapters.lirpa.bounded import Bounded
from robust_plugins.adapters.lirpa.compat import LiRPA
from robust_plugins.adapters.lirpa.graph import linear_first
from robust_plugins.balls import Ball


def perturbed(converted: Bounded, x: Tensor, ball: Ball) -> Any:
    """`x` with the ball around it, inside `converted.using(...)`.

    The ball's `eps` is one number unless its norm is L-infinity.
    """
    backend = converted.backend
    box = ball.box(x)
    if math.isinf(ball.norm):
        x, one, other = (converted.folded(z) for z in (x, box.lower, box.upper))
        low, up = (torch.minimum(one, other), torch.maximum(one, other)) if converted.folded.steps else (one, other)
        ptb = backend.perturbation_class(eps=0.0, norm=math.inf, x_L=low, x_U=up)
    else:
        # auto_LiRPA's intervals remember a norm up to the first linear layer. Any other layer before it drops the
        # norm, and the centre alone would be propagated: there, the box around the ball is handed in instead.
        norm = ball.norm if linear_first(converted.module) else math.inf
        ptb = _in_box(backend)(ball.eps, ball.norm, norm, box.lower, box.upper)
    return backend.tensor_class(x, ptb)


@cache
def _in_box(backend: LiRPA) -> type[Any]:
    base: Any = backend.perturbation_class

    class BallInBox(base):  # type: ignore[misc]
        """An L2 or L1 ball cut to a box: linear bounds are the better of the two."""

        def __init__(self, eps: float, norm: float, seen: float, low: Tensor, up: Tensor) -> None:
            # `seen` is the norm that intervals see: the ball's own or, for the box alone, infinity.
            with np.errstate(divide="ignore"):  # the dual of norm 1 is 1 / 0
                super().__init__(eps=eps, norm=seen, x_L=low, x_U=up)
                self.parts = (base(eps=eps, norm=norm), base(eps=0.0, norm=math.inf, x_L=low, x_U=up))

        def concretize(self, x: Tensor, A: Any, sign: int = -1, *args: Any, **kwargs: Any) -> Any:  # noqa: N803
            bounds = [part.concretize(x, A, sign, *args, **kwargs) for part in self.parts]
            if bounds[0] is None:
                return None
            return torch.maximum(*bounds) if sign == -1 else torch.minimum(*bounds)

    return BallInBox
