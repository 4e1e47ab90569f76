"""Layers whose gradient is a product with values of the forward pass: without kinks, and no gate of one activation."""

from __future__ import annotations

from torch import nn

from robust_plugins.intervals import Network
from robust_plugins.intervals.layers import Multiply, Product, WeightedMean
from robust_plugins.intervals.rules.normalisation import INSTANCE, KINDS
from robust_plugins.intervals.rules.registry import rules_for

_MIXING = (Multiply, Product, WeightedMean, nn.Softmax, nn.LogSoftmax, *KINDS)


def mixes(layer: nn.Module) -> bool:
    """Whether its gradient is a sum of products of gradients with values of several entries, and has no jumps."""
    rules = rules_for(layer)
    statistics = isinstance(layer, INSTANCE) and layer.running_mean is not None
    return rules is not None and rules.layer in _MIXING and not statistics


def is_mixing(network: Network) -> bool:
    """Whether some layer of the network is one of these."""
    return any(mixes(layer) for layer in network.layers)
