"""`relu_form`: the same network with ReLU-like units as its only nonlinear layers, in float64.

Maxima, absolute values and clamps are sums of ReLUs, so that one kind of split makes a whole network linear. Layers
that are not piecewise linear are refused by name.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from math import prod

import torch
from torch import Tensor, nn

from robust_plugins.errors import UnsupportedModelError
from robust_plugins.intervals.interval import Interval
from robust_plugins.intervals.layers import Add, Clamp, Extreme, Moved, Scale
from robust_plugins.intervals.methods.piecewise import piecewise_linear
from robust_plugins.intervals.network.graph import Network, Node
from robust_plugins.intervals.rules.registry import Rules, rules_for
from robust_plugins.intervals.rules.selection import window_entries

_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)


def relu_form(network: Network, shapes: list[tuple[int, ...]]) -> Network:
    """The network whose nonlinear layers have one kink each; on the CPU, in float64, weights exactly the same.

    `shapes` are those of each node's output, without the batch. Raises UnsupportedModelError, naming the layer, where
    one is not piecewise linear.
    """
    form = _Form(network)
    for index, node in enumerate(network.nodes):
        form.add(index, node, shapes)
    return Network.from_parts(network.model, form.nodes, form.layers, form.rules, form.parameters)


class _Form:
    """The network under construction; `place` says where each old node's output is."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.nodes: list[Node] = []
        self.layers: list[nn.Module] = []
        self.rules: list[Rules] = []
        self.parameters: list[dict[str, Interval | None]] = []
        self.place: list[int] = []

    def add(self, index: int, node: Node, shapes: list[tuple[int, ...]]) -> None:
        layer, rules = self.network.layers[index], self.network.rules[index]
        inputs = [self.place[j] for j in node.inputs]
        parameters = {name: _double(value) for name, value in self.network.parameters[index].items()}
        function = piecewise_linear(layer)
        if not index or rules.affine:
            self.place.append(self._put(_in_double(layer, rules), *inputs, name=node.name, **parameters))
        elif function is not None and len(function.kinks) <= 1:
            self.place.append(self._put(layer, *inputs, name=node.name))
        elif function is not None:
            low, high = (kink for kink, _ in function.kinks)
            above = self._put(Clamp(low, None), *inputs, name=node.name)
            self.place.append(self._put(Clamp(None, high), above, name=node.name))
        elif rules.layer is Extreme and isinstance(layer, Extreme):
            self.place.append(self._larger(*inputs, least=layer.least, name=node.name))
        elif rules.layer is nn.PReLU:
            weight = parameters["weight"]
            assert weight is not None  # every PReLU has one
            self.place.append(self._prelu(inputs[0], weight.lower, len(shapes[index]), node.name))
        elif rules.layer in _POOLS:
            self.place.append(self._pool(layer, inputs[0], shapes[node.inputs[0]], shapes[index], node.name))
        else:
            raise UnsupportedModelError(
                f"layer {node.name!r} ({type(layer).__name__}) is not piecewise linear, so that branch and bound over "
                "its pieces has no end; use interval:crown or interval:alpha-crown for this model"
            )

    def _put(self, layer: nn.Module, *inputs: int, name: str, **parameters: Interval | None) -> int:
        rules = rules_for(layer)
        assert rules is not None  # a layer of the engine, or of the network itself
        self.nodes.append(Node(name, tuple(inputs), layer, {}))
        self.layers.append(layer)
        self.rules.append(rules)
        self.parameters.append(parameters)
        return len(self.nodes) - 1

    def _larger(self, x: int, y: int, *, name: str, least: bool = False) -> int:
        """`max(x, y) = y + relu(x - y)`, and `min(x, y) = x - relu(x - y)`."""
        gap = self._put(nn.ReLU(), self._put(Add(-1), x, y, name=name), name=name)
        return self._put(Add(-1), x, gap, name=name) if least else self._put(Add(), y, gap, name=name)

    def _prelu(self, x: int, weight: Tensor, dims: int, name: str) -> int:
        """`w z + (1 - w) relu(z)`, w for each channel."""
        weight = weight.view(-1, *[1] * (dims - 1)) if weight.numel() > 1 else weight.view(())
        line = self._put(Scale(), x, name=name, value=Interval.point(weight))
        bend = self._put(Scale(), self._put(nn.ReLU(), x, name=name), name=name, value=Interval.point(1 - weight))
        return self._put(Add(), line, bend, name=name)

    def _pool(self, layer: nn.Module, x: int, before: tuple[int, ...], after: tuple[int, ...], name: str) -> int:
        """The largest of the entries of each window, two by two."""
        assert isinstance(layer, _POOLS)
        entries, size = window_entries(layer, Interval.point(torch.empty((1, *before), dtype=torch.float64)))
        outside = entries == size  # padding, in whose place another entry of the window does no harm
        first = torch.where(outside, size, entries).amin(1, keepdim=True)
        entries = torch.where(outside, first, entries)
        found = [self._put(Moved(_picking(at, before, after)), x, name=name) for at in entries.unbind(1)]
        while len(found) > 1:
            pairs = [self._larger(a, b, name=name) for a, b in zip(found[::2], found[1::2], strict=False)]
            found = pairs + (found[-1:] if len(found) % 2 else [])
        return found[0]


def _picking(at: Tensor, before: tuple[int, ...], after: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    channels = before[0]
    return lambda x: x.reshape(len(x), channels, prod(before[1:]))[:, :, at].reshape(len(x), *after)


def _double(value: Interval | None) -> Interval | None:
    if value is None:
        return None
    tensor = value.lower.detach().to("cpu", torch.float64)
    return Interval.point(tensor)


def _in_double(layer: nn.Module, rules: Rules) -> nn.Module:
    """The layer itself where its rules are given all its numbers; else a copy in float64, on the CPU."""
    named = [name for name, _ in (*layer.named_parameters(), *layer.named_buffers())]
    held = [t for t in vars(layer).values() if isinstance(t, Tensor)]
    if not held and set(named) <= set(rules.parameters):
        return layer
    twin = copy.deepcopy(layer).to("cpu", torch.float64)
    for name, t in list(vars(twin).items()):
        if isinstance(t, Tensor):
            setattr(twin, name, t.detach().to("cpu", torch.float64) if t.is_floating_point() else t.cpu())
    return twin
