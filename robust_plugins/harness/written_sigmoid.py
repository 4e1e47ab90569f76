"""The logit behind a probability that a model computes by a formula of its own, such as 1 / (1 + exp(-z))."""

from __future__ import annotations

from contextlib import suppress
from copy import copy
from typing import Any

import torch
from torch import Tensor, fx, nn

_NEAR = 1e-5
_FAR = 30.0
"""Logits up to here are looked at: the probability is nearly 0 or 1 there, and exp(30) is no overflow in float32."""


def before_written_sigmoid(model: nn.Module, x: Tensor, out: Tensor) -> nn.Module | None:
    """The module that computes z where `model` computes g(z), each number by itself; None where it finds none.

    `out`, in [0, 1], are the outputs at `x`. g has to grow (or fall: -z is returned then) from nearly 0 to nearly 1,
    and to pass 1/2 where z passes 0, so that both decide alike: a logistic function, a clamped one, (1 + tanh(z)) / 2,
    a hard sigmoid. That is seen by values of g from -30 to 30, and g is what the graph of `model` does behind z.
    """
    with suppress(Exception):  # a model that cannot be traced is taken as it is
        root = copy(model)
        graph = fx.Tracer().trace(root)
        values = _Recorded(fx.GraphModule(root, graph))
        values.run(x.clone())
        nodes = list(graph.nodes)
        for node in reversed(nodes[:-1]):
            value = values.seen.get(node)
            if isinstance(value, Tensor) and value.shape[:1] == out.shape[:1] and value.numel() == out.numel():
                sign = _sign(root, nodes, node, value, out)
                if sign:
                    return _cut(root, graph, node, sign, training=model.training)
    return None


class _Recorded(fx.Interpreter):
    """An interpreter that keeps the value of every node."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.seen: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.seen[n] = value.clone() if isinstance(value, Tensor) else value  # later calls may change it in place
        return value


def _sign(root: nn.Module, nodes: list[fx.Node], node: fx.Node, value: Tensor, out: Tensor) -> int:
    """1 where the outputs decide as the value of `node` does, -1 where they decide as its negative does, else 0."""
    rest = _after(root, nodes, node)
    if rest is None:
        return 0
    grid = torch.linspace(-_FAR, _FAR, 1201, dtype=value.dtype, device=value.device)
    z = grid.view(-1, *(1,) * (value.dim() - 1)).expand(-1, *value.shape[1:]).contiguous()
    g = rest(z).reshape(len(grid), -1)
    rising = 1 if bool((g[-1] > g[0]).all()) else -1
    g = g if rising > 0 else g.flip(0)
    fits = (
        (g >= 0).all()
        and (g <= 1).all()
        and (g.diff(dim=0) >= -1e-6).all()
        and (g[0] < 0.01).all()
        and (g[-1] > 0.99).all()
        and ((g[600] - 0.5).abs() < _NEAR).all()
        and (g[599] < 0.5 - _NEAR).all()
        and (g[601] > 0.5 + _NEAR).all()
    )
    return rising if fits and _each_by_itself(rest, value) and torch.allclose(rest(value), out) else 0


def _each_by_itself(rest: fx.GraphModule, value: Tensor) -> bool:
    """Whether every output depends on the one number in its place: values beside it change nothing."""
    count = value[0].numel()
    places = torch.arange(count, device=value.device)
    noise = torch.randn(count, count, generator=torch.Generator().manual_seed(0), dtype=value.dtype).to(value.device)
    alone = noise.new_full((count, count), 0.7)
    noise[places, places] = 0.7
    many, one = (rest(z.reshape(count, *value.shape[1:])).reshape(count, -1) for z in (noise, alone))
    return torch.allclose(many[places, places], one[places, places])


def _after(root: nn.Module, nodes: list[fx.Node], node: fx.Node) -> fx.GraphModule | None:
    """The part of the graph from `node` to the output, as a function of the value of `node`."""
    graph = fx.Graph()
    copies = {node: graph.placeholder("z")}
    needed = _needed(nodes[-1], node)
    if any(other.op == "placeholder" for other in needed):
        return None
    for other in nodes:
        if other in needed:
            copies[other] = graph.node_copy(other, lambda n: copies[n])
    return fx.GraphModule(root, graph)


def _needed(output: fx.Node, node: fx.Node) -> set[fx.Node]:
    """The nodes that the output depends on, without looking behind `node`."""
    found, waiting = set(), [output]
    while waiting:
        other = waiting.pop()
        if other is not node and other not in found:
            found.add(other)
            waiting.extend(other.all_input_nodes)
    return found


def _cut(root: nn.Module, graph: fx.Graph, node: fx.Node, sign: int, *, training: bool) -> nn.Module:
    """The part of the graph from the inputs to `node`, or to its negative."""
    behind = {node}
    for other in graph.nodes:  # in the order of computing; what does not depend on `node` may change others in place
        if behind.intersection(other.all_input_nodes):
            behind.add(other)
    for other in reversed(graph.nodes):
        if other is not node and other in behind:
            graph.erase_node(other)
    graph.output(node if sign > 0 else graph.call_function(torch.neg, (node,)))
    found = fx.GraphModule(root, graph)
    found.training = training  # its alone: the modules inside are the model's own
    return found
