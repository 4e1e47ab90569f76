"""`GradientGraph`: a network and its backward pass as one network of the input.

The gradients of softmax, of the normalisations of a sample and of products of two activations are sums of products of
gradients with values of the forward pass. In an `Adjoint` such a value is an interval, and what the input does to it
is lost. Here it is a node: `p_i (g_i - sum_j p_j g_j)` is computed from the nodes of p and of g, both are linear
functions of the input up to terms of second order, and so is the gradient: linear relaxation leaves these terms alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from robust_plugins.explanations.bounds.adjoint import gate, turned
from robust_plugins.explanations.bounds.curvature import smooth_of
from robust_plugins.explanations.bounds.mixing import mixes
from robust_plugins.explanations.bounds.smooth_gates import SmoothGate, smooth_gate
from robust_plugins.explanations.explained import Of
from robust_plugins.intervals import Interval, Network, Node, Relaxation
from robust_plugins.intervals.layers import (
    Add,
    Multiply,
    Permute,
    Pointwise,
    Power,
    Product,
    Reduce,
    Reshape,
    Scale,
    Shift,
    WeightedMean,
)
from robust_plugins.intervals.methods.substitution import Support
from robust_plugins.intervals.network.graph import place_of, unsupported
from robust_plugins.intervals.rules.bilinear import matrix_product
from robust_plugins.intervals.rules.contractions import operands
from robust_plugins.intervals.rules.elementwise import activation_of
from robust_plugins.intervals.rules.registry import Rules, rules_for
from robust_plugins.intervals.rules.structure import IDENTITIES, REARRANGING

_MOVING = {*IDENTITIES, *REARRANGING}


class GradientGraph(Network):
    """From the input to the gradient of a number by it: first the network's own nodes, then those of its backward pass.

    Build it with `of`. Every sample of the batch for which it was built has a number of its own.
    """

    @classmethod
    def of(cls, network: Network, values: Sequence[Interval], of: Of, coefficients: Tensor) -> GradientGraph:
        """The graph for the gradient of `coefficients` times the output, (batch, outputs); or of the cross-entropy.

        `values` are bounds on the network's nodes for the samples. For the loss the coefficients are those of `-z_y`.
        Raises UnsupportedModelError where the model's gradients are not those of its graph.
        """
        network.check_gradients()
        built = _Builder(network, values, of, coefficients)
        return cls.from_parts(network.model, built.nodes, built.layers, built.rules, built.parameters)


def graph_interval(
    network: Network,
    values: Sequence[Interval],
    of: Of,
    coefficients: Tensor,
    *,
    memory: int,
    support: Support | None = None,
) -> Interval:
    """Bounds on the gradient; arguments are those of `GradientGraph.of`, `memory` and `support` of a `Relaxation`."""
    graph = GradientGraph.of(network, values, of, coefficients)
    found = list(values)
    relaxation = Relaxation(graph, found, memory=memory, support=support)
    last = len(graph.nodes) - 1
    bent = [index for index in range(1, last + 1) if not graph.rules[index].affine]
    wanted = {last}.union(*(graph.nodes[index].inputs for index in bent))
    # Of what activations take, only a part of the entries was bounded with care.
    read = (i for i in bent if i < len(values) and activation_of(graph.layers[i]) is None)
    tight = set().union(*(graph.nodes[index].inputs for index in read))
    for index in range(len(values), last + 1):
        found.append(graph.step(index, found))
        if graph.rules[index].layer in _MOVING and graph.nodes[index].inputs[0] in tight:
            tight.add(index)
        elif index in wanted and not found[index].is_point:
            found[index] = relaxation.sharpened(index)
            tight.add(index)
    return found[last]


class _Builder:
    """The parts of a graph, node by node."""

    def __init__(self, network: Network, values: Sequence[Interval], of: Of, coefficients: Tensor) -> None:
        self.network, self.values = network, values
        self.nodes, self.layers = list(network.nodes), list(network.layers)
        self.rules, self.parameters = list(network.rules), list(network.parameters)
        self.shapes = [tuple(v.shape[1:]) for v in values]
        self.place = "the gradient of the output"
        reaching: list[list[int]] = [[] for _ in network.nodes]
        reaching[-1].append(self._start(of, coefficients))
        for index in range(len(network.nodes) - 1, 0, -1):
            if reaching[index]:
                self.place = f"the gradient of {place_of(network.nodes[index], network.layers[index])}"
                above = self._sum(reaching[index])
                for slot, source in enumerate(network.nodes[index].inputs):
                    reaching[source].append(self._transposed(index, slot, above))
        if len(reaching[0]) == 1:  # the last node is the result
            self._plain(nn.Identity(), reaching[0][0], shape=self.shapes[0])
        self._sum(reaching[0])

    def _start(self, of: Of, coefficients: Tensor) -> int:
        """The derivative by the output: the coefficients; for the loss `p_m`, and for y minus the sum of the others.

        In place of `p_y - 1`, which loses its digits where p_y is about 1.
        """
        last = len(self.network.nodes) - 1
        shape = self.shapes[last]
        if of != "loss":
            return self._constant(coefficients, shape)
        p = self._plain(nn.Softmax(1), last, shape=shape)
        p = self._plain(Multiply(), p, self._constant(1 + coefficients, shape), shape=shape)
        total = self._plain(Reduce((1,), True, False), p, shape=(1,))
        own = self._plain(Multiply(), self._constant(coefficients, shape), total, shape=shape)
        return self._plain(Add(), p, own, shape=shape)

    def _constant(self, value: Tensor, shape: tuple[int, ...]) -> int:
        return self._append(nn.Identity(), (0,), Rules(nn.Identity, _Constant(value), _no_gradient), {}, shape)

    def _sum(self, terms: list[int]) -> int:
        found = terms[0]
        for term in terms[1:]:
            found = self._plain(Add(), found, term, shape=self.shapes[term])
        return found

    def _transposed(self, index: int, slot: int, above: int) -> int:
        """Adds what layer `index` makes of the gradient `above`, for one of its inputs."""
        layer, rules, inputs = self.network.layers[index], self.network.rules[index], self.network.nodes[index].inputs
        shape = self.shapes[inputs[slot]]
        values = [self.values[j] for j in inputs]
        if mixes(layer):
            return self._mixed(layer, index, slot, above)
        smooth = smooth_of(layer, partly=True)
        if smooth is not None:
            return self._append(SmoothGate(), (inputs[0], above), smooth_gate(smooth), {}, shape)
        if rules.slopes is not None and all(v.shape[1:] == values[0].shape[1:] for v in values):
            slopes = self.network.applied(index, rules.slopes, *values)[slot]
            return self._append(layer, (above,), gate(slopes), {}, shape)
        if rules.backward is None:
            raise unsupported(self.network.nodes[index].name, layer, "has no rule for its gradient")
        return self._append(layer, (above,), turned(rules, layer, slot, values), self.network.parameters[index], shape)

    def _mixed(self, layer: nn.Module, index: int, slot: int, above: int) -> int:
        inputs = self.network.nodes[index].inputs
        shape = self.shapes[inputs[slot]]
        if isinstance(layer, nn.Softmax | nn.LogSoftmax):
            return self._softmax(layer, index, above)
        if isinstance(layer, Multiply):
            found = self._plain(Multiply(), above, inputs[1 - slot], shape=self.shapes[index])
            return self._reduced(found, shape)
        if isinstance(layer, Product | WeightedMean):
            equation = layer.equation if isinstance(layer, Product) else matrix_product(len(shape) + 1)
            first, second, result = operands(equation)
            own, other = (first, second) if slot == 0 else (second, first)
            return self._plain(Product(f"{result},{other}->{own}"), above, inputs[1 - slot], shape=shape)
        return self._normalised(layer, index, above)

    def _softmax(self, layer: Any, index: int, above: int) -> int:
        """`p_i (g_i - sum_j p_j g_j)`; for the logarithm `g_i - p_i sum_j g_j`."""
        shape = self.shapes[index]
        axis = layer.dim % (len(shape) + 1)
        if isinstance(layer, nn.LogSoftmax):
            p = self._plain(nn.Softmax(axis), self.network.nodes[index].inputs[0], shape=shape)
            kept = tuple(1 if d == axis - 1 else size for d, size in enumerate(shape))
            total = self._plain(Reduce((axis,), True, False), above, shape=kept)
            product = self._plain(Multiply(), p, total, shape=shape)
            return self._plain(Add(-1), above, product, shape=shape)
        order = (*(d for d in range(len(shape) + 1) if d != axis), axis)
        back = tuple(order.index(d) for d in range(len(shape) + 1))
        moved = tuple(shape[d - 1] for d in order[1:])
        p, g = (self._plain(Permute(order), node, shape=moved) for node in (index, above))
        outer, n = moved[:-1], moved[-1]
        row = self._plain(Reshape((*outer, 1, n)), p, shape=(*outer, 1, n))
        column = self._plain(Reshape((*outer, n, 1)), g, shape=(*outer, n, 1))
        mean = self._plain(WeightedMean(), row, column, shape=(*outer, 1, 1))
        mean = self._plain(Reshape((*outer, 1)), mean, shape=(*outer, 1))
        away = self._plain(Add(-1), g, mean, shape=moved)
        product = self._plain(Multiply(), p, away, shape=moved)
        return self._plain(Permute(back), product, shape=shape)

    def _normalised(self, layer: Any, index: int, above: int) -> int:
        """`s (g - mean(g) - y mean(y g))` in groups, with g the gradient times the weight, y the normalised entries
        and s the inverse of their deviation; without `mean(g)` for RMSNorm.
        """
        shape, centred = self.shapes[index], not isinstance(layer, nn.RMSNorm)
        trailing = isinstance(layer, nn.LayerNorm | nn.RMSNorm)
        if trailing:
            groups = prod(shape[: len(shape) - len(layer.normalized_shape)])
        else:
            groups = layer.num_groups if isinstance(layer, nn.GroupNorm) else shape[0]
        n = prod(shape) // groups
        eps = torch.finfo(self.values[0].dtype).eps if layer.eps is None else layer.eps
        each, one = (groups, n), (groups, 1)
        x = self._plain(Reshape(each), self.network.nodes[index].inputs[0], shape=each)
        plain = nn.LayerNorm(n, eps, elementwise_affine=False) if centred else nn.RMSNorm(
            n, eps, elementwise_affine=False
        )  # fmt: skip
        y = self._plain(plain, x, shape=each, weight=None, **({"bias": None} if centred else {}))
        c = x
        if centred:
            c = self._plain(Add(-1), x, self._plain(Reduce((2,), True, True), x, shape=one), shape=each)
        spread = self._plain(Reduce((2,), True, True), self._plain(Power(2.0), c, shape=each), shape=one)
        size = Interval.point(torch.tensor(eps, dtype=self.values[0].dtype, device=self.values[0].device))
        s = self._plain(Pointwise("rsqrt"), self._plain(Shift(), spread, shape=one, value=size), shape=one)
        weight = self.network.parameters[index].get("weight")
        g = above
        if weight is not None:
            fitted = weight if trailing else weight.map(lambda t: t.view(-1, *[1] * (len(shape) - 1)))
            g = self._plain(Scale(), g, shape=shape, value=fitted)
        g = self._plain(Reshape(each), g, shape=each)
        mean = self._plain(Product("abc,abc->ab"), y, g, shape=(groups,))
        mean = self._plain(Scale(), mean, shape=(groups,), value=Interval.point(size.lower.new_tensor(1 / n)))
        mean = self._plain(Reshape(one), mean, shape=one)
        along = self._plain(Multiply(), y, mean, shape=each)
        if centred:
            g = self._plain(Add(-1), g, self._plain(Reduce((2,), True, True), g, shape=one), shape=each)
        found = self._plain(Multiply(), s, self._plain(Add(-1), g, along, shape=each), shape=each)
        return self._plain(Reshape(shape), found, shape=shape)

    def _reduced(self, node: int, shape: tuple[int, ...]) -> int:
        """The sum of a node's entries over the axes along which a value of `shape` was broadcast."""
        present = self.shapes[node]
        if present == shape:
            return node
        full = (*[1] * (len(present) - len(shape)), *shape)
        dims = tuple(d + 1 for d, (a, b) in enumerate(zip(present, full, strict=True)) if a != b)
        found = self._plain(Reduce(dims, True, False), node, shape=full)
        return self._plain(Reshape(shape), found, shape=shape)

    def _plain(self, layer: nn.Module, *inputs: int, shape: tuple[int, ...], **parameters: Interval | None) -> int:
        rules = rules_for(layer)
        assert rules is not None  # layers of the engine's own
        return self._append(layer, inputs, rules, parameters, shape)

    def _append(
        self,
        layer: nn.Module,
        inputs: tuple[int, ...],
        rules: Rules,
        parameters: dict[str, Interval | None],
        shape: tuple[int, ...],
    ) -> int:
        self.nodes.append(Node(f"gradient {len(self.nodes)} ({type(layer).__name__})", inputs, layer, {}, self.place))
        self.layers.append(layer)
        self.rules.append(rules)
        self.parameters.append(parameters)
        self.shapes.append(shape)
        return len(self.nodes) - 1


def _no_gradient(layer: nn.Module, x: Interval, grad: Interval) -> Interval:
    return Interval.point(torch.zeros_like(x.lower))


class _Constant:
    """The forward rule of a value that does not depend on the input, one for each sample."""

    def __init__(self, value: Tensor) -> None:
        self.value = value

    def __call__(self, layer: nn.Module, x: Interval) -> Interval:
        return Interval.point(self.value)
