"""How fast a gradient may change: upper bounds of the Hessian's spectral norm over a box of inputs.

The Hessian is the Jacobian of the gradient, and the gradient is computed by a `GradientGraph`: interval
differentiation of that graph, one row at a time, bounds every entry.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from robust_plugins.explanations.bounds.curvature import smooth_of
from robust_plugins.explanations.bounds.gradient_graph import GradientGraph
from robust_plugins.explanations.bounds.mixing import mixes
from robust_plugins.explanations.explained import Of
from robust_plugins.intervals import Interval, Network

ALIVE = 32
"""About how many tensors of the size of all bounds a pass of one row takes."""


def hessian_norm(
    network: Network, values: Sequence[Interval], of: Of, coefficients: Tensor, *, memory: int
) -> Float[Tensor, " batch"]:
    """For each sample an upper bound of the spectral norm of the Hessian over the box `values[0]`, in float64.

    `|v(x') - v(x'')| <= norm |x' - x''|` for the gradient v at any two points of the box, Euclidean norms. Infinite
    where v may jump: where a kink of an activation may be inside the box, and for layers such as max-pooling. The
    arguments are those of `GradientGraph.of`; rows are taken together as long as they fit `memory` bytes.
    """
    found = torch.full((len(coefficients),), torch.inf, dtype=torch.float64, device=coefficients.device)
    box = values[0]
    size = box.lower[0].numel()
    bytes_of_row = ALIVE * sum(v.lower[0].numel() for v in values) * box.lower.element_size()
    at_once = max(1, memory // bytes_of_row)
    for sample in _without_jumps(network, values).nonzero().flatten().tolist():
        own = [v.map(lambda t: t[sample : sample + 1]) for v in values]  # noqa: B023 (used at once)
        rows = []
        for part in torch.eye(size, dtype=box.dtype, device=box.device).split(at_once):
            repeated = [v.map(lambda t: t.expand(len(part), *t.shape[1:])) for v in own]  # noqa: B023
            given = coefficients[sample].expand(len(part), -1)
            graph = GradientGraph.of(network, repeated, of, given)
            nodes = list(repeated)
            for index in range(len(repeated), len(graph.nodes)):
                nodes.append(graph.step(index, nodes))
            below = graph.backward(nodes, Interval.point(part.view(len(part), *box.shape[1:]))).input
            rows.append(below.map(lambda t: t.flatten(1).double()))
        matrix = Interval(torch.cat([r.lower for r in rows]), torch.cat([r.upper for r in rows]))
        found[sample] = _norm(matrix.agreeing(matrix.map(lambda t: t.mT)))
    return found


def _norm(matrix: Interval) -> Tensor:
    """`|C + D| <= |C| + | |D| |` for the centre C and every D within the radius."""
    ends = torch.stack((matrix.center, matrix.radius))
    if not bool(ends.isfinite().all()):
        return ends.new_full((), torch.inf)
    norms: Tensor = torch.linalg.matrix_norm(ends, ord=2).sum()
    return norms * (1 + 64 * len(matrix) * torch.finfo(torch.float64).eps)


def _without_jumps(network: Network, values: Sequence[Interval]) -> Tensor:
    """For each sample whether the gradient is differentiable over the box, with a derivative that is bounded here."""
    found = torch.ones(len(values[0]), dtype=torch.bool, device=values[0].device)
    for index in range(1, len(network.nodes)):
        layer, rules = network.layers[index], network.rules[index]
        inputs = [values[j] for j in network.nodes[index].inputs]
        if rules.affine or mixes(layer):
            continue
        if (smooth := smooth_of(layer, partly=True)) is not None:
            gaps = smooth.gaps(inputs[0])
            straight = gaps == 0 if isinstance(gaps, Tensor) else torch.ones_like(inputs[0].lower, dtype=torch.bool)
        elif rules.slopes is not None and all(i.shape[1:] == inputs[0].shape[1:] for i in inputs):
            ranges: tuple[Interval, ...] = rules.slopes(layer, *inputs, **network.parameters[index])
            straight = torch.stack([s.lower == s.upper for s in ranges]).all(0)
        else:
            return torch.zeros_like(found)
        found = found & straight.flatten(1).all(1)
    return found
