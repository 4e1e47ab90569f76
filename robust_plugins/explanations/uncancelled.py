"""`lost_in_softmax`: what gradients lose where the softmax of a model is saturated, an ulp of terms that cancel."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from robust_plugins.explanations.explained import Explained

SOFTMAX = (torch.softmax, Tensor.softmax, F.softmax, torch.special.softmax)


def lost_in_softmax(
    model: nn.Module, x: Float[Tensor, "batch *features"], explained: Explained
) -> Float[Tensor, " batch"]:
    """The size of the rounding error of the gradients at `x` that comes from every softmax inside `model`, in all.

    A softmax hands on `p_i (g_i - sum_j p_j g_j)` of the gradients g that reach it. Where one probability is nearly 1
    both terms agree, and what is left of them is rounding; it may be 0 in one precision and in another, so that
    comparing precisions says nothing of it. Measured is the gradient with `p_i g_i` alone, times four ulps of 1.
    """

    def uncancelled(z: Tensor) -> Any:
        with _Uncancelled():
            return model(z)

    terms = explained.gradient(uncancelled, x).flatten(1).abs().amax(1)
    return terms.nan_to_num(nan=0.0, posinf=0.0) * (4 * torch.finfo(x.dtype).eps)


class _Uncancelled(TorchFunctionMode):
    """Inside it, a softmax has the values that it has, and the slopes p_i alone."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func not in SOFTMAX:
            return found
        scores = args[0] if args else kwargs["input"]
        # Scores of -inf, as masks set them, have no slope.
        return found.detach() + found.detach() * (scores - scores.detach()).nan_to_num(0.0)
