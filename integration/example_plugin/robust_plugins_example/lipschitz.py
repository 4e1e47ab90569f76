"""`Lipschitz`: a certificate from the operator norms of the layers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import robust_plugins as rp


@dataclass(frozen=True, kw_only=True)
class Lipschitz(rp.Certifier):
    """The logits move by at most eps times the product of the layers' operator norms.

    For `nn.Sequential` (also nested) of linear layers, ReLU, tanh and flattening, on every ball: an l_p ball of radius
    r is mapped into one of radius `|W|_p * r`, which slopes in [0, 1] do not widen. Sound for real arithmetic; loose
    for deep networks. Szegedy et al. 2014, "Intriguing properties of neural networks", section 4.3.
    """

    def propagate(self, model: nn.Module, x: Tensor, ball: rp.Ball, spec: Tensor | None) -> rp.Interval:
        """Bounds on `spec @ logits`; raises UnsupportedModelError for any other layer."""
        radius = ball.eps_for(x).flatten(1) * _stretch(model, ball.norm)
        logits = model(x)
        return rp.apply_spec(rp.Interval(logits - radius, logits + radius), spec)


def _stretch(layer: nn.Module, norm: float) -> Tensor | float:
    """How many times longer a layer can make a distance, in that norm."""
    if type(layer) is nn.Sequential:  # a subclass may do something else with its parts
        return math.prod(_stretch(part, norm) for part in layer)
    if isinstance(layer, nn.Linear):
        return torch.linalg.matrix_norm(layer.weight, ord=norm)
    if isinstance(layer, nn.ReLU | nn.Tanh | nn.Flatten):
        return 1.0
    raise rp.UnsupportedModelError(f"lipschitz: no operator norm for {type(layer).__name__}")
