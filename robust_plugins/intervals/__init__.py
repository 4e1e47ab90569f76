"""Interval arithmetic on tensors, and the engine that sends intervals forward and backward through a model.

`trace(model, x)` gives a `Network`; `network.forward` bounds every layer's output over a box of inputs (and of
weights), `network.backward` the derivatives with respect to inputs and weights, and `crown` bounds the outputs by
linear relaxation. Each type of layer has its rules; `robust_plugins.intervals.rules.registry` says how to add one.
"""

# The rules, and the meanings of calls, register themselves on import.
from robust_plugins.intervals.interval import Interval
from robust_plugins.intervals.methods.crown import crown
from robust_plugins.intervals.methods.relaxation import Relaxation
from robust_plugins.intervals.network import (  # noqa: F401
    elementwise_calls,
    layer_calls,
    neighbour_calls,
    ordering_calls,
    product_calls,
    reducing_calls,
    refused_calls,
    structural_calls,
)
from robust_plugins.intervals.network.graph import Gradients, Network, Node
from robust_plugins.intervals.network.tracing import trace
from robust_plugins.intervals.rules import activations  # noqa: F401

__all__ = ["Gradients", "Interval", "Network", "Node", "Relaxation", "crown", "trace"]
