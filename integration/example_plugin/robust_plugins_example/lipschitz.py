"""`Lipschitz`: a certificate from the operator norms of the layers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

import robust_plugins as rp


@dataclass(frozen=True, kw_only=True)
class Lipschitz(rp.Certifier):
    """The logits move by at most eps times the product of the layers' operator norms.

    For `nn.Sequential` of linear layers, ReLU, tanh and flattening, on every ball: an l_p ball of radius r is mapped
    into one of radius `|W|_p * r`, and activations with slopes in [0, 1] do not widen it. Sound for real arithmetic;
    loose for deep networks. Szegedy et al. 2014, "Intriguing properties of neural networks", section 4.3.
    """

    def propagate(self, model: nn.Module, x: Tensor, ball: rp.Ball, spec: Tensor | None) -> rp.Interval:
        """Bounds on `spec @ logits`; raises UnsupportedModelError for any other layer."""
        radius = ball.eps_for(x).flatten(1)
        for layer in model if isinstance(model, nn.Sequential) else [model]:
            if isinstance(layer, nn.Linear):
                radius = radius * torch.linalg.matrix_norm(layer.weight, ord=ball.norm)
            elif not isinstance(layer, nn.ReLU | nn.Tanh | nn.Flatten):
                raise rp.UnsupportedModelError(f"lipschitz: no operator norm for {type(layer).__name__}")
        logits = model(x)
        return rp.apply_spec(rp.Interval(logits - radius, logits + radius), spec)
