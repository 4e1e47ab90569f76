"""`Tail`: the trained end of a network, one or two linear layers, and what the frozen part before it feeds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robust_plugins.errors import ArgumentError, UnsupportedModelError
from robust_plugins.intervals import Interval, Network, Relaxation, crown
from robust_plugins.poisoning.budget import PoisoningBudget
from robust_plugins.poisoning.zonotope.moves import Moves
from robust_plugins.poisoning.zonotope.set import Layout

_SUPPORTED = (
    "The zonotope domain follows the training of the last Linear layer, or of the last two with ReLU between them, "
    "weights and biases; everything before is frozen. Choose these parameters, or domain='box'."
)
_KEPT = (nn.Identity, nn.Dropout)


@dataclass(frozen=True)
class Layer:
    """A linear layer's names in the model; `bias` None where it has none."""

    weight: str
    bias: str | None

    @property
    def names(self) -> tuple[str, ...]:
        """Both names, or one."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    def row(self, parameters: Mapping[str, Tensor]) -> Float[Tensor, "outputs inputs"]:
        """Weight and bias side by side."""
        weight = parameters[self.weight]
        return weight if self.bias is None else torch.cat([weight, parameters[self.bias][:, None]], 1)

    def named(self, rows: Float[Tensor, "outputs inputs"]) -> dict[str, Tensor]:
        """The inverse of `row`."""
        return {self.weight: rows} if self.bias is None else {self.weight: rows[:, :-1], self.bias: rows[:, -1]}

    def append_one(self, x: Float[Tensor, "batch inputs"]) -> Float[Tensor, "batch inputs_with_one"]:
        """The input that `row` multiplies."""
        return x if self.bias is None else torch.cat([x, torch.ones_like(x[:, :1])], 1)


@dataclass(frozen=True)
class Tail:
    """The trained layers of `network`, and the node whose output they take; node 0 is the network's input."""

    network: Network
    node: int
    hidden: Layer | None
    last: Layer

    @classmethod
    def of(cls, network: Network, names: Sequence[str]) -> Tail:
        """The layers that hold the parameters `names`. Raises UnsupportedModelError for other ends of a network."""
        wanted = set(names)
        if unknown := wanted - {name for name, _ in network.model.named_parameters()}:
            raise ArgumentError("names", sorted(unknown), accepted="names of the model's parameters", hint=_SUPPORTED)
        node = _before(network, len(network.nodes) - 1)
        last = _linear(network, node, wanted)
        node = _before(network, network.nodes[node].inputs[0])
        if set(last.names) == wanted:
            return cls(network, node, None, last)
        if not isinstance(network.layers[node], nn.ReLU):
            raise UnsupportedModelError(f"{network.nodes[node].name!r} is no ReLU. {_SUPPORTED}")
        node = _before(network, network.nodes[node].inputs[0])
        hidden = _linear(network, node, wanted)
        if others := wanted - {*last.names, *hidden.names}:
            raise UnsupportedModelError(f"the parameters {sorted(others)} lie deeper. {_SUPPORTED}")
        return cls(network, _before(network, network.nodes[node].inputs[0]), hidden, last)

    @property
    def first(self) -> Layer:
        """The layer that takes the features."""
        return self.last if self.hidden is None else self.hidden

    def parameters(self) -> dict[str, Tensor]:
        """The trained parameters' present values."""
        parameters = dict(self.network.model.named_parameters())
        return {name: parameters[name].detach() for layer in self._layers for name in layer.names}

    @property
    def _layers(self) -> tuple[Layer, ...]:
        return (self.last,) if self.hidden is None else (self.hidden, self.last)

    def layout(self, outputs: int) -> Layout:
        """The parameters' places in one vector, with `outputs` rows in the last layer."""
        parameters = self.parameters()
        features = self.last.row(parameters).shape[1]
        if self.hidden is None:
            return Layout(0, 0, outputs, features)
        neurons, inputs = self.hidden.row(parameters).shape
        return Layout(neurons, inputs, outputs, features)

    def features(self, x: Float[Tensor, "batch *features"]) -> Float[Tensor, "batch inputs"]:
        """Returns what the trained layers take, in float64."""
        with torch.no_grad():
            return self.network.forward(Interval.point(x), until=self.node)[self.node].lower.double()

    def over(self, x: Interval) -> Interval:
        """Bounds on what the trained layers take for inputs in a box, in float64."""
        with torch.no_grad():
            if self.node == 0:
                return x.to(torch.float64)
            values = crown(self.network, x)
            bounds = Relaxation(self.network, values).bounds(self.node)
            return values[self.node].sharpened(bounds).to(torch.float64)

    def moves(self, x: Float[Tensor, "batch *features"], budget: PoisoningBudget) -> Moves | None:
        """How far a poisoner moves what the trained layers take; None where features stay."""
        if not budget.points:
            return None
        if self.node == 0:
            x = x.double()
            radius, box = budget.radius(x), budget.box(x)
            if budget.clip is None:
                lower, upper = -radius, radius
            else:
                lower, upper = box.lower - x, box.upper - x
            return Moves(lower, upper, budget.norm, None if budget.norm == "linf" else radius)
        features, box = self.features(x), self.over(budget.box(x))
        return Moves((box.lower - features).clamp(max=0), (box.upper - features).clamp(min=0))


def _before(network: Network, node: int) -> int:
    """The node itself, or the one before layers that change nothing in evaluation mode."""
    while isinstance(network.layers[node], _KEPT):
        node = network.nodes[node].inputs[0]
    return node


def _linear(network: Network, node: int, wanted: set[str]) -> Layer:
    """The linear layer at a node, whose parameters must be among those wanted, and used nowhere else."""
    layer, names = network.layers[node], network.names[node]
    if not isinstance(layer, nn.Linear) or len(network.parameters[node]["weight"].shape) != 2:  # type: ignore[union-attr]
        raise UnsupportedModelError(f"{network.nodes[node].name!r} ({type(layer).__name__}) is no Linear. {_SUPPORTED}")
    if not set(names.values()) <= wanted or "weight" not in names or (layer.bias is not None and "bias" not in names):
        raise UnsupportedModelError(f"{network.nodes[node].name!r} is trained in part. {_SUPPORTED}")
    for other, theirs in enumerate(network.names):
        if other != node and set(theirs.values()) & set(names.values()):
            raise UnsupportedModelError(f"{network.nodes[node].name!r} shares its parameters. {_SUPPORTED}")
    if sum(node in n.inputs for n in network.nodes) > 1:
        raise UnsupportedModelError(f"the output of {network.nodes[node].name!r} is used several times. {_SUPPORTED}")
    return Layer(names["weight"], names.get("bias"))
