"""`Adjoint`: the backward pass of a network as a network of its own, so that whatever bounds networks bounds gradients.

The gradient with respect to a node's output is the sum, over the layers that take it, of their transposes applied to
the gradients of *their* outputs. Affine layers stay affine: forward and backward rule change places. An activation
becomes a gate, the product of the gradient with a slope that lies in an interval.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from robust_plugins.intervals import Interval, Network, Node, rounding
from robust_plugins.intervals.layers import Add, Input
from robust_plugins.intervals.network.graph import place_of, unsupported
from robust_plugins.intervals.rules.elementwise import activation_of
from robust_plugins.intervals.rules.registry import LinearBound, Rules, WindowRules, rules_for


class Adjoint(Network):
    """A network from dL/d output to dL/d input, for inputs (and weights) of which `values` are the bounds.

    `values` are the intervals of the outputs of the network's nodes, sound for every sample of the batch that will be
    sent through. What it computes from a point is one of the gradients of the box; bounds on its output that hold for
    all slopes in their intervals, as those of `crown` and `Relaxation`, hold for all of them. Build it with `of`.
    """

    gates: dict[int, int]
    """For each node that is a gate of an activation, the index of that activation in the network."""
    slopes: dict[int, Interval]
    """For each such gate, the slopes of the activation over the box."""

    @classmethod
    def of(cls, network: Network, values: Sequence[Interval]) -> Adjoint:
        """The adjoint of `network` for these bounds.

        Raises UnsupportedModelError where the model's gradients are not those of its graph.
        """
        network.check_gradients()
        built = _Builder(network, values)
        found = cls.from_parts(network.model, built.nodes, built.layers, built.rules, built.parameters)
        found.gates, found.slopes = built.gates, built.slopes
        return found


class _Builder:
    """The parts of an adjoint, node by node."""

    def __init__(self, network: Network, values: Sequence[Interval]) -> None:
        self.nodes: list[Node] = []
        self.layers: list[nn.Module] = []
        self.rules: list[Rules] = []
        self.parameters: list[dict[str, Interval | None]] = []
        self.gates: dict[int, int] = {}
        self.slopes: dict[int, Interval] = {}
        reaching: list[list[int]] = [[] for _ in network.nodes]
        reaching[-1].append(self._plain(Input(), ()))
        for index in range(len(network.nodes) - 1, 0, -1):
            if reaching[index]:
                above = self._sum(reaching[index])
                for slot, source in enumerate(network.nodes[index].inputs):
                    reaching[source].append(self._transposed(network, index, slot, values, above))
        self._sum(reaching[0])

    def _sum(self, terms: list[int]) -> int:
        found = terms[0]
        for term in terms[1:]:
            found = self._plain(Add(), (found, term))
        return found

    def _plain(self, layer: nn.Module, inputs: tuple[int, ...]) -> int:
        rules = rules_for(layer)
        assert rules is not None  # layers of the engine's own
        return self._append(type(layer).__name__, layer, inputs, rules, {})

    def _transposed(self, network: Network, index: int, slot: int, values: Sequence[Interval], above: int) -> int:
        """Adds what layer `index` makes of the gradient `above`, for one of its inputs."""
        layer, rules = network.layers[index], network.rules[index]
        inputs = [values[j] for j in network.nodes[index].inputs]
        place = f"the gradient of {place_of(network.nodes[index], layer)}"
        if rules.slopes is not None and all(i.shape[1:] == inputs[0].shape[1:] for i in inputs):
            slopes = network.applied(index, rules.slopes, *inputs)[slot]
            found = self._append(network.nodes[index].name, layer, (above,), gate(slopes), {}, place)
            if activation_of(layer) is not None:
                self.gates[found], self.slopes[found] = index, slopes
            return found
        if rules.backward is None:
            raise unsupported(network.nodes[index].name, layer, "has no rule for its gradient")
        exchanged = turned(rules, layer, slot, inputs)
        return self._append(network.nodes[index].name, layer, (above,), exchanged, network.parameters[index], place)

    def _append(
        self,
        name: str,
        layer: nn.Module,
        inputs: tuple[int, ...],
        rules: Rules,
        parameters: dict[str, Interval | None],
        place: str = "",
    ) -> int:
        self.nodes.append(Node(f"{name} (gradient {len(self.nodes)})", inputs, layer, {}, place))
        self.layers.append(layer)
        self.rules.append(rules)
        self.parameters.append(parameters)
        return len(self.nodes) - 1


def gate(slopes: Interval) -> Rules:
    """The product of a gradient g with slopes d of an interval.

    For each g the product is largest at `max(dl g, du g)`, convex in g, and smallest at the mirrored minimum, concave:
    their chords over the interval of g are the relaxation.
    """

    def forward(layer: nn.Module, grad: Interval) -> Interval:
        return grad * slopes

    def backward(layer: nn.Module, grad: Interval, above: Interval) -> Interval:
        return above * slopes

    def relaxation(layer: nn.Module, grad: Interval) -> tuple[LinearBound, LinearBound]:
        first, last = grad.lower, grad.upper
        with rounding.outward(False):
            at_first, at_last = Interval.point(first) * slopes, Interval.point(last) * slopes
        wide = last > first

        def chord(begin: Tensor, end: Tensor) -> Tensor:
            found = torch.where(wide, (end - begin) / torch.where(wide, last - first, 1), slopes.center)
            return torch.minimum(torch.maximum(found, slopes.lower), slopes.upper)

        low, up = chord(at_first.lower, at_last.lower), chord(at_first.upper, at_last.upper)
        # Whatever its slope, the line through the end that lies further out bounds a convex function.
        below = torch.minimum(at_first.lower - low * first, at_last.lower - low * last)
        above = torch.maximum(at_first.upper - up * first, at_last.upper - up * last)
        # Of the products with slopes, of the library and of coefficients, and of the ends.
        below, above = rounding.widened(below, above, ulps=16, scale=slopes.magnitude * grad.magnitude)
        return _line(low, below), _line(up, above)

    return Rules(nn.Module, forward=forward, backward=backward, relaxation=relaxation, outward=True)


def turned(rules: Rules, layer: nn.Module, slot: int, inputs: Sequence[Interval]) -> Rules:
    """The layer's rules with forward and backward exchanged, for one of its inputs."""
    vjp = rules.backward
    assert vjp is not None

    def forward(_: nn.Module, grad: Interval, **parameters: Interval | None) -> Interval:
        below = vjp(layer, *inputs, grad, **parameters)
        return below[slot] if isinstance(below, tuple) else below

    def terms(_: nn.Module, grad: Interval, **parameters: Interval | None) -> tuple[int, int]:
        assert rules.terms is not None
        there, back = rules.terms(layer, *inputs, **parameters)
        return back, there

    def backward(_: nn.Module, grad: Interval, a: Interval, **parameters: Interval | None) -> Interval:
        if rules.layer in (nn.Linear, nn.Conv1d, nn.Conv2d):
            assert rules.forward is not None
            return rules.forward(layer, a, weight=parameters["weight"], bias=None)
        return a.map(lambda t: _transpose(lambda g: forward(layer, Interval.point(g), **parameters).lower, grad, t))

    return Rules(
        rules.layer,
        forward=forward,
        backward=backward,
        parameters=rules.parameters,
        affine=rules.affine,
        additive=rules.additive,
        terms=None if rules.terms is None else terms,
        windows=None if rules.windows is None else WindowRules(rules.windows.through, rules.windows.back),
    )


def _transpose(linear: Callable[[Tensor], Tensor], like: Interval, a: Tensor) -> Tensor:
    """The transpose of a linear function of tensors shaped like the samples of `like`, applied to `a`."""
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        zeros = a.new_zeros((len(a), *like.shape[1:])).requires_grad_()
        result = linear(zeros)
        if not result.requires_grad:  # of a constant
            return zeros.detach()
        (found,) = torch.autograd.grad(result, zeros, a, create_graph=differentiable)
    return found


def _line(slope: Tensor, offset: Tensor) -> LinearBound:
    return LinearBound.elementwise(slope, offset)
