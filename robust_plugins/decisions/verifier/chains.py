"""`chain`: a network as matrices with elementwise functions between them, in double precision, for a box of inputs."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robust_plugins.intervals.interval import Interval
from robust_plugins.intervals.layers import Reshape, Scale, Shift
from robust_plugins.intervals.network.graph import Network
from robust_plugins.intervals.rules.elementwise import Activation, activation_of
from robust_plugins.intervals.rules.structure import IDENTITIES

_KEEPING = (*IDENTITIES, nn.Flatten, nn.Unflatten, Reshape)
"""Layers that change at most the shape."""


@dataclass(frozen=True, eq=False)
class Layer:
    """An affine function of a vector, and what is applied to each of its entries then."""

    weight: Float[Tensor, "outputs inputs"]
    bias: Float[Tensor, " outputs"]
    size: Float[Tensor, " outputs"]
    """The sum of the absolute values of what `bias` was computed from."""
    function: Activation | None = None
    """None: nothing is."""
    bends: bool = False
    """Whether `function` is ReLU."""


@dataclass(frozen=True, eq=False)
class Chain:
    """Layer after layer from the inputs that are not fixed to the outputs; the last one has no function."""

    layers: tuple[Layer, ...]
    lower: Float[Tensor, " inputs"]
    upper: Float[Tensor, " inputs"]
    free: Tensor
    """The places of those inputs among all, flattened."""
    whole: Float[Tensor, " features"]
    """All inputs, with the fixed ones where they are."""

    @property
    def bends(self) -> bool:
        """Whether all functions are ReLUs."""
        return all(layer.bends or layer.function is None for layer in self.layers)

    def input_at(self, x: Float[Tensor, " inputs"]) -> Float[Tensor, " features"]:
        """All inputs where those that are not fixed are `x`."""
        return self.whole.index_copy(0, self.free, x)


def chain(
    network: Network, lower: Float[Tensor, "1 *features"], upper: Float[Tensor, "1 *features"], most: int = 2**31
) -> Chain | None:
    """The chain of a traced network over one box; None where it is none, or has more than `most` inputs that vary.

    Covered are linear layers of vectors, constants added and multiplied, changes of shape, and elementwise functions
    that are defined everywhere and have lines below and above.
    """
    low, up = lower.detach().cpu().double().flatten(), upper.detach().cpu().double().flatten()
    free = (up > low).nonzero().flatten()
    if not 0 < len(free) <= most:
        return None
    shape: tuple[int, ...] = tuple(lower.shape[1:])
    layers: list[Layer] = []
    for index, node in enumerate(network.nodes):
        if index and node.inputs != (index - 1,):
            return None
        layer, parameters = network.layers[index], network.parameters[index]
        if not index:
            continue
        if isinstance(layer, _KEEPING):
            with torch.no_grad():
                shape = tuple(layer(torch.empty((1, *shape))).shape[1:])
        elif isinstance(layer, nn.Linear | Shift | Scale):
            found = _affine(layer, shape, parameters)
            if found is None:
                return None
            shape = (len(found.bias),) if isinstance(layer, nn.Linear) else shape
            layers.append(found)
        else:
            function = activation_of(layer)
            if function is None or parameters or function.defined is not None or not function.relaxable or not layers:
                return None
            if layers[-1].function is not None:
                layers.append(_scaled(torch.ones(prod(shape), dtype=torch.float64)))
            last = layers[-1]
            bends = network.rules[index].layer is nn.ReLU
            layers[-1] = Layer(last.weight, last.bias, last.size, function, bends)
    if len(shape) != 1 or not layers:
        return None
    if layers[-1].function is not None:
        layers.append(_scaled(torch.ones(shape, dtype=torch.float64)))
    first, fixed = layers[0], torch.ones_like(low, dtype=torch.bool)
    fixed[free] = False
    at = first.weight[:, fixed]
    layers[0] = Layer(
        first.weight[:, free], first.bias + at @ low[fixed], first.size + at.abs() @ low[fixed].abs(),
        first.function, first.bends,
    )  # fmt: skip
    return Chain(tuple(layers), low[free], up[free], free, low)


def _affine(
    layer: nn.Linear | Shift | Scale, shape: tuple[int, ...], parameters: dict[str, Interval | None]
) -> Layer | None:
    given = {name: value.lower.detach().cpu().double() for name, value in parameters.items() if value is not None}
    if isinstance(layer, nn.Linear):
        weight = given["weight"]
        bias = given.get("bias", weight.new_zeros(len(weight)))
        return Layer(weight, bias, bias.abs()) if len(shape) == 1 else None
    value = given["value"]
    if value.dim() > len(shape):
        value = value.squeeze(0) if len(value) == 1 else value
    if torch.broadcast_shapes(value.shape, shape) != shape or prod(shape) > 4096:
        return None
    value = value.expand(shape).flatten()
    if isinstance(layer, Scale):
        return _scaled(1 / value if layer.divide else value)
    return Layer(torch.eye(len(value), dtype=value.dtype), layer.sign * value, value.abs())


def _scaled(by: Tensor) -> Layer:
    none = torch.zeros_like(by)
    return Layer(torch.diag(by), none, none)
