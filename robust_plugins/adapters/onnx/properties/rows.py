"""The constraints of a case as tensors, for searches; and exactly, for what they find."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robust_plugins.adapters.onnx.properties.formulas import LARGEST, Row
from robust_plugins.adapters.onnx.properties.property import Case
from robust_plugins.decisions.verifier import Halfspaces


class WithInput(nn.Module):
    """A model whose outputs are followed by its inputs, for constraints on both."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Any) -> Any:  # noqa: D102 (traced with symbols too)
        return torch.cat([self.model(x).flatten(1), x.flatten(1)], 1)


def needs_input(case: Case) -> bool:
    """Whether some constraint of the case is on inputs too."""
    return any(name[0] == "X" for rows in case.unsafe for row in rows for name, _ in row.weights)


def halfspaces(case: Case, outputs: int) -> list[Halfspaces]:
    """The conjunctions of a case in double precision, inputs after the outputs where one `needs_input`.

    Each row is scaled to whole numbers where doubles hold these, and its offset is rounded down: the conjunction here
    holds wherever the exact one does. Weights of more digits than a double has are rounded to the nearest,
    which is within the rounding errors that verifiers take off.
    """
    size = outputs + (len(case.lower) if needs_input(case) else 0)
    found = []
    for rows in case.unsafe:
        weights, offsets = torch.zeros(len(rows), size, dtype=torch.float64), []
        for i, row in enumerate(rows):
            factor = math.lcm(*(weight.denominator for _, weight in row.weights))
            largest = max(abs(weight) for _, weight in row.weights) * factor
            if largest > 2**53 or abs(row.offset * factor) > LARGEST:
                factor = 1
            for name, weight in row.weights:
                weights[i, int(name[2:]) + (outputs if name[0] == "X" else 0)] = float(weight * factor)
            offsets.append(_down(row.offset * factor))
        found.append(Halfspaces(weights, torch.tensor(offsets, dtype=torch.float64)))
    return found


def box(case: Case, dtype: torch.dtype, *, outward: bool) -> tuple[Float[Tensor, " inputs"], Float[Tensor, " inputs"]]:
    """The ends of a case's box in the numbers of `dtype`, rounded to the outside, or to the nearest."""
    lower, upper = (torch.tensor([float(v) for v in side], dtype=dtype) for side in (case.lower, case.upper))
    if outward:
        for side, exact, towards in ((lower, case.lower, -math.inf), (upper, case.upper, math.inf)):
            inside = [Fraction(have) > want if towards < 0 else Fraction(have) < want
                      for have, want in zip(side.tolist(), exact, strict=True)]  # fmt: skip
            moved = torch.nextafter(side, torch.full_like(side, towards))
            side[:] = torch.where(torch.tensor(inside), moved, side)
    return lower, upper


def holds(rows: Sequence[Row], x: Sequence[Fraction], y: Sequence[Fraction]) -> bool:
    """Whether inputs and outputs satisfy all rows, exactly."""
    values = [value(row, x, y) for row in rows]
    return all(v < 0 or (v == 0 and not row.strict) for v, row in zip(values, rows, strict=True))


def value(row: Row, x: Sequence[Fraction], y: Sequence[Fraction]) -> Fraction:
    """The left side of a row."""
    terms = (weight * (x if name[0] == "X" else y)[int(name[2:])] for name, weight in row.weights)
    return sum(terms, row.offset)


def _down(number: Fraction) -> float:
    found = float(number)
    return found if Fraction(found) <= number else math.nextafter(found, -math.inf)
