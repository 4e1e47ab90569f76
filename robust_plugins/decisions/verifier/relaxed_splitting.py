"""`split_relaxed`: any network that linear relaxation covers is decided by halving boxes of its inputs.

For networks that are neither piecewise linear nor a chain: slow, and complete for few inputs alone.
"""

from __future__ import annotations

import copy
import heapq
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robust_plugins.decisions.verifier.attack import Confirm
from robust_plugins.decisions.verifier.clock import Clock
from robust_plugins.decisions.verifier.properties import Unsafe
from robust_plugins.decisions.verifier.search import Found
from robust_plugins.intervals import Interval, rounding, trace
from robust_plugins.intervals.methods.crown import crown

BATCH = 64
"""Boxes that are bounded at once."""


def split_relaxed(
    model: nn.Module,
    lower: Float[Tensor, "1 *features"],
    upper: Float[Tensor, "1 *features"],
    unsafe: Unsafe,
    confirm: Confirm,
    clock: Clock,
    *,
    most: int,
    tell: Callable[[int, int, float], None] = lambda domains, open_domains, bound: None,
) -> Found:
    """Whether the model maps some input of the box into the unsafe set; boxes of more than `most` inputs stay whole.

    `unsat` holds in real arithmetic: bounds are computed in double precision and rounded outward. Raises
    UnsupportedModelError where a layer has no such bounds.
    """
    layer = nn.Linear(unsafe.weights.shape[1], len(unsafe.weights), dtype=torch.float64)
    layer.weight, layer.bias = nn.Parameter(unsafe.weights), nn.Parameter(unsafe.offsets)
    exact = copy.deepcopy(model).cpu().double().eval()
    network = nn.Sequential(exact, nn.Flatten(), layer).eval().requires_grad_(False)
    low, up = lower.detach().cpu().double(), upper.detach().cpu().double()
    nothing = torch.full((len(unsafe.member),), -torch.inf, dtype=torch.float64)
    heap: list[tuple[float, int, Tensor, Tensor, Tensor]] = [(0.0, 0, low, up, nothing)]
    made, count, splittable = 1, 0, int((up > low).sum()) <= most
    while heap:
        if clock.left <= 0:
            return Found("timeout", None, _least(heap), count, "the time is used up")
        batch = [heapq.heappop(heap) for _ in range(min(BATCH, len(heap)))]
        low, up = torch.cat([b[2] for b in batch]), torch.cat([b[3] for b in batch])
        count += len(low)
        centre = low + (up - low) / 2
        with torch.no_grad(), rounding.outward():
            rows = network(centre.clone())
            for i in (unsafe.excess(rows).amin(1) <= 0).nonzero().flatten().tolist()[:4]:
                if confirm(centre[i : i + 1]):
                    return Found("sat", centre[i : i + 1], nothing, count)
            bounds = crown(trace(network, low), Interval(low, up))[-1]
        proved = torch.maximum(unsafe.excess(bounds.lower), torch.stack([b[4] for b in batch]))
        for i in (~(proved.amin(1) > 0)).nonzero().flatten().tolist():
            one, two = low[i : i + 1], up[i : i + 1]
            children = _halves(network, one, two) if splittable else [(one, two)]
            for child in children:
                heapq.heappush(heap, (float(proved[i].amin().nan_to_num(nan=-torch.inf)), made, *child, proved[i]))
                made += 1
        tell(count, len(heap), heap[0][0] if heap else 0.0)
        if heap and not splittable:
            message = f"the bounds prove nothing, and boxes of more than {most} inputs are not halved"
            return Found("unknown", None, _least(heap), count, message)
    return Found("unsat", None, torch.zeros_like(nothing), count)


def _least(heap: list[tuple[float, int, Tensor, Tensor, Tensor]]) -> Tensor:
    """The bound proved for every conjunction while these boxes are open."""
    return torch.stack([box[4] for box in heap]).amin(0).clamp(max=0)


def _halves(network: nn.Module, low: Tensor, up: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Both halves along the input whose width, times the slope there, is the largest.

    Along the widest where layers in place have left no slope.
    """
    width, middles = up - low, low + (up - low) / 2
    slope = torch.zeros_like(width)
    with torch.enable_grad():
        centre = middles.clone().requires_grad_()
        try:
            (slope,) = torch.autograd.grad(network(centre.clone()).abs().sum(), centre)
        except RuntimeError as error:
            if "place" not in str(error):
                raise
    score = width * (slope.abs() + 1e-3 * slope.abs().amax() + 1e-12)
    place = int(score.flatten().argmax())
    middle = float(middles.flatten()[place])
    left, right = up.clone(), low.clone()
    left.view(-1)[place] = right.view(-1)[place] = middle
    return [(low, left), (right, up)]
