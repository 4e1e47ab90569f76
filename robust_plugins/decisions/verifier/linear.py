"""Domains on which every unit has a sign: there the network is linear, and what is asked is a linear programme.

Its solution is used in two ways, and believed in none: its minimiser is an input for the model to judge, and its
multipliers are duals to be evaluated as those of any other domain.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from robust_plugins.decisions.verifier.domains import Domains, Rows
from robust_plugins.intervals.methods.compact import Compact


def solvable() -> bool:
    """Whether scipy, whose HiGHS solves linear programmes, is installed."""
    try:
        import scipy.optimize  # noqa: F401
    except ImportError:
        return False
    return True


def solved(
    compact: Compact, asked: Rows, domain: Domains, member: Float[Tensor, " rows"]
) -> tuple[Domains, Float[Tensor, "inputs 1"] | None]:
    """The domain with the programme's multipliers, and the input at which the largest row of the conjunction is least.

    All in float64, for one domain. None where the signs contradict each other: the multipliers prove that then, with
    any rows.
    """
    n = compact.inputs
    state = torch.zeros((compact.size, n + 1), dtype=torch.float64)
    state[:n, :n] = torch.eye(n, dtype=torch.float64)
    signs = domain.signs[:, 0].double()
    on = torch.where(compact.free[:, 0] > 0, signs.clamp(min=0), compact.most[:, 0]).unsqueeze(1)
    inputs = torch.zeros((len(signs), n + 1), dtype=torch.float64)
    for block in compact.blocks:
        at = slice(block.first - n, block.last - n)
        z = block.matrix.to_dense() @ state[block.start : block.start + block.matrix.shape[1]]
        z[:, n] += compact.offset[at, 0]
        inputs[at], state[block.first : block.last] = z, z * on[at]
    rows = asked.rows.t() @ state
    rows[:, n] += asked.const
    chosen = member.nonzero().flatten()
    known = signs.nonzero().flatten()
    below = torch.cat([rows[chosen], -signs[known].unsqueeze(1) * inputs[known]])
    loose = torch.zeros(len(below), dtype=torch.float64)
    loose[: len(chosen)] = 1
    found = _programme(below, loose)
    weights = torch.zeros_like(member, dtype=torch.float64)
    if found.status == 0:
        duals = -torch.tensor(found.ineqlin.marginals)
        point = torch.tensor(found.x[:n]).unsqueeze(1)
    else:  # no input has these signs: the least violation shows it
        found = _programme(below[len(chosen) :], torch.ones_like(loose[len(chosen) :]))
        duals = -torch.tensor(found.ineqlin.marginals) if found.status == 0 else loose[len(chosen) :]
        least = float(found.fun) if found.status == 0 else 0.0
        duals = duals * (2 * float(rows[chosen].abs().sum(1).max()) / max(least, 1e-9))
        duals = torch.cat([torch.full((len(chosen),), 1.0 / len(chosen), dtype=torch.float64), duals])
        point = None
    weights[chosen] = duals[: len(chosen)].clamp(min=0)
    multipliers = torch.zeros_like(signs)
    multipliers[known] = duals[len(chosen) :].clamp(min=0)
    return replace(domain, multipliers=multipliers.unsqueeze(1), weights=weights.unsqueeze(1)), point


def _programme(below: Tensor, loose: Tensor) -> Any:
    """The least t with `below x <= loose t` for x in [-1, 1]; the last column of `below` is constant."""
    from scipy.optimize import linprog

    n = below.shape[1] - 1
    cost = [0.0] * n + [1.0]
    matrix = torch.cat([below[:, :n], -loose.unsqueeze(1)], 1).numpy()
    return linprog(cost, A_ub=matrix, b_ub=-below[:, n].numpy(), bounds=[(-1, 1)] * n + [(None, None)], method="highs")
