"""Regularisers and initialisation of certified training: Shi et al. 2021, and the L1 norm of the weights."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robust_plugins.errors import ArgumentError
from robust_plugins.harness.evaluation import evaluation_mode
from robust_plugins.intervals import Interval, trace
from robust_plugins.losses.batch import Batch


@dataclass(frozen=True, kw_only=True)
class Regulariser(ABC):
    """A term that is added to the mixed loss."""

    @abstractmethod
    def penalty(self, batch: Batch) -> Float[Tensor, ""]:
        """The term for one batch, a scalar with gradients."""


@dataclass(frozen=True, kw_only=True)
class L1Penalty(Regulariser):
    """`weight` times the sum of the absolute values of all weights; biases and batch-norm parameters are left out."""

    weight: float

    def __post_init__(self) -> None:
        _check_weight(self.weight)

    def penalty(self, batch: Batch) -> Float[Tensor, ""]:  # noqa: D102 (inherited)
        sizes = [p.abs().sum() for p in batch.model.parameters() if p.dim() > 1]
        return self.weight * torch.stack(sizes).sum() if sizes else batch.clean.new_zeros(())


@dataclass(frozen=True, kw_only=True)
class WarmUp(Regulariser):
    """`weight * (1 - eps / eps_max) * (L_tight + L_relu)`: keeps bounds from exploding and ReLUs from dying.

    Over the m inputs z of the ReLU layers, with intervals of centre c and radius r, and tau = `tolerance`:

    - L_tight is the mean of `relu(tau - mean(r_0) / mean(r)) / tau`, where r_0 is the input's radius;
    - L_relu the mean of `(relu(tau - a) + relu(tau - v)) / tau`, where a is the ratio (below one) between the sum of
      c over the active neurons (lower bound above 0) and minus that over the inactive ones, and v the ratio (below
      one) between the sums of `(c - mean(c))^2` over both. A layer without neurons of either kind is left out.

    `eps / eps_max` is the state of the loss's ramp; without one the term is zero. The intervals are those of
    `interval:ibp`, and cost a second propagation. Shi et al. 2021, "Fast certified robust training with short warmup".
    """

    weight: float = 0.5
    tolerance: float = 0.5

    def __post_init__(self) -> None:
        _check_weight(self.weight)
        if not 0 < self.tolerance < math.inf:
            raise ArgumentError("tolerance", self.tolerance, accepted="a finite number above 0", hint="Try 0.5.")

    def penalty(self, batch: Batch) -> Float[Tensor, ""]:  # noqa: D102 (inherited)
        strength = self.weight * (1 - batch.factor)
        if strength == 0 or batch.factor == 0:  # over, or a box of radius zero: nothing explodes
            return batch.clean.new_zeros(())
        box = batch.ball.box(batch.x)
        with evaluation_mode(batch.model), batch.bounding(history=True):
            network = trace(batch.model, batch.x)
            values = network.forward(box)
        inputs = [
            values[node.inputs[0]]
            for node, layer in zip(network.nodes, network.layers, strict=True)
            if isinstance(layer, nn.ReLU)
        ]
        if not inputs:
            raise ArgumentError(
                "model", "without ReLU", accepted="a network with ReLU layers", hint="Leave the regulariser out."
            )
        terms = [self._tight(z, box) + self._balance(z) for z in inputs]
        return strength * torch.stack(terms).mean()

    def _tight(self, z: Interval, box: Interval) -> Tensor:
        share = box.radius.mean() / z.radius.mean().clamp(min=torch.finfo(z.dtype).tiny)
        return (self.tolerance - share).relu() / self.tolerance

    def _balance(self, z: Interval) -> Tensor:
        c, active, inactive = z.center, z.lower > 0, z.upper < 0
        square = (c - c.mean()).square()
        above, below = (c * active).sum(), -(c * inactive).sum()
        around, about = (square * active).sum(), (square * inactive).sum()
        if not bool(active.any() & inactive.any() & (around > 0) & (about > 0)):
            return c.new_zeros(())
        ratios = torch.stack((above / below, around / about))
        return (self.tolerance - torch.minimum(ratios, 1 / ratios)).relu().sum() / self.tolerance


@torch.no_grad()
def ibp_initialisation(model: nn.Module) -> None:
    """Draws the weights of linear and convolutional layers from N(0, 2 pi / fan_in^2), except the last one's; in place.

    With these the boxes keep their width from layer to layer. Biases and other layers stay. The draws are from
    torch's random state; the last layer is the last one registered. Shi et al. 2021, section 4.1. Raises ArgumentError
    for a model without such layers.
    """
    layers: list[Any] = [m for m in model.modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)]
    if not layers:
        raise ArgumentError(
            "model", type(model).__name__, accepted="a network with linear or convolutional layers",
            hint="There is nothing to initialise in this one.",
        )  # fmt: skip
    for layer in layers[:-1]:
        # Transposed convolutions have their weights the other way round, in groups.
        transposed = isinstance(layer, nn.modules.conv._ConvTransposeNd)
        fan_in = layer.weight[:, 0].numel() // layer.groups if transposed else layer.weight[0].numel()
        layer.weight.normal_(0.0, math.sqrt(2 * math.pi) / fan_in)


def classes_of(batch: Batch, regulariser: Regulariser) -> Int[Tensor, " batch"]:
    """The labels of the batch; raises ArgumentError for numbers, of which no class is explained."""
    if batch.continuous:
        raise ArgumentError(
            "regularisers", f"{type(regulariser).__name__}, for regression", accepted="those that need no classes",
            hint="Leave it out: it explains the decision for a class.",
        )  # fmt: skip
    return batch.y


def _check_weight(weight: float) -> None:
    if not 0 <= weight < math.inf:
        raise ArgumentError("weight", weight, accepted="a finite number >= 0", hint="0 switches the term off.")
