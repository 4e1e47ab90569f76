"""`decide_by_splitting`: bounds by linear relaxation, and boxes halved until they are proved or too many."""

from __future__ import annotations

import copy
import heapq
import time
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robust_plugins.adapters.onnx.attack import excesses
from robust_plugins.decisions.verifier import Answer, Halfspaces
from robust_plugins.intervals import Interval, rounding, trace
from robust_plugins.intervals.methods.crown import crown

BATCH = 64
"""Boxes that are bounded at once."""
INPUTS = 24
"""With more inputs than that, whose box is no point, halving it once in each does not end."""


def decide_by_splitting(
    model: nn.Module,
    lower: Float[Tensor, "*features"],
    upper: Float[Tensor, "*features"],
    unsafe: Sequence[Halfspaces],
    *,
    timeout: float,
) -> Answer:
    """Whether some input of the box has an unsafe output: `unsat`, `sat` with the input, `unknown` or `timeout`.

    For networks with smooth activations, which branching over neurons does not cover. `unsat` holds in real arithmetic:
    bounds are computed in double precision and rounded outward. Raises UnsupportedModelError where a layer has no such
    bounds.
    """
    end = time.monotonic() + timeout
    rows = torch.cat([weights for weights, _ in unsafe])
    layer = nn.Linear(rows.shape[1], len(rows), dtype=torch.float64)
    layer.weight, layer.bias = nn.Parameter(rows), nn.Parameter(torch.cat([offsets for _, offsets in unsafe]))
    exact = copy.deepcopy(model).double().eval()
    network = nn.Sequential(exact, nn.Flatten(), layer).eval().requires_grad_(False)
    owner = torch.arange(len(unsafe)).repeat_interleave(torch.tensor([len(offsets) for _, offsets in unsafe]))
    low, up = lower.double().unsqueeze(0), upper.double().unsqueeze(0)
    heap: list[tuple[float, int, Tensor, Tensor]] = [(0.0, 0, low, up)]
    made, splittable = 1, int((up > low).sum()) <= INPUTS
    while heap:
        if time.monotonic() >= end:
            return Answer("timeout", None)
        batch = [heapq.heappop(heap) for _ in range(min(BATCH, len(heap)))]
        low, up = torch.cat([b[2] for b in batch]), torch.cat([b[3] for b in batch])
        centre = low + (up - low) / 2
        with torch.no_grad(), rounding.outward():
            hit = (excesses(exact, centre, unsafe).amin(1) <= 0).nonzero()
            if len(hit):
                return Answer("sat", centre[hit[0, 0]].to(lower.dtype))
            bounds = crown(trace(network, low), Interval(low, up))[-1]
        worst = torch.stack([bounds.lower[:, owner == k].amax(1) for k in range(len(unsafe))], 1).amin(1)
        for i in (~(worst > 0)).nonzero().flatten().tolist():
            if not splittable:
                return Answer("unknown", None)
            for child in _halves(network, low[i : i + 1], up[i : i + 1]):
                heapq.heappush(heap, (float(worst[i].nan_to_num(nan=-torch.inf)), made, *child))
                made += 1
    return Answer("unsat", None)


def _halves(network: nn.Module, low: Tensor, up: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Both halves along the input whose width, times the slope there, is the largest."""
    centre = (low + (up - low) / 2).requires_grad_()
    (gradient,) = torch.autograd.grad(network(centre).abs().sum(), centre)
    width = up - low
    score = width * (gradient.abs() + 1e-3 * gradient.abs().amax() + 1e-12)
    place = int(score.flatten().argmax())
    middle = float(centre.detach().flatten()[place])
    left, right = up.clone(), low.clone()
    left.view(-1)[place] = right.view(-1)[place] = middle
    return [(low, left), (right, up)]
