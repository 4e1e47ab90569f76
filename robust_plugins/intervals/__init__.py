"""Interval arithmetic on tensors, and the engine that sends intervals forward and backward through a model.

`trace(model, x)` gives a `Network`; `network.forward` bounds every layer's output over a box of inputs (and of
weights), `network.backward` the derivatives with respect to inputs and weights, and `crown` bounds the outputs by
linear relaxation. Each type of layer has its rules; `robust_plugins.intervals.rules` says how to add one.
"""

# The rules register themselves on import.
from robust_plugins.intervals import activation_rules, linear_rules, selection_rules, structure_rules  # noqa: F401
from robust_plugins.intervals.graph import Gradients, Network, Node
from robust_plugins.intervals.interval import Interval
from robust_plugins.intervals.relaxation import Relaxation, crown
from robust_plugins.intervals.tracing import trace

__all__ = ["Gradients", "Interval", "Network", "Node", "Relaxation", "crown", "trace"]
