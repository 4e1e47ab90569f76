"""Questions about a network over a box: whether some input reaches an unsafe set of outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from robust_plugins.errors import ArgumentError

Word = Literal["unsat", "sat", "unknown", "timeout"]


class Halfspaces(NamedTuple):
    """The outputs z with `weights z + offsets <= 0` in every row: a conjunction of linear constraints.

    - `weights`: one row for each constraint.
    - `offsets`: one number for each.
    """

    weights: Float[Tensor, "rows outputs"]
    offsets: Float[Tensor, " rows"]


class Answer(NamedTuple):
    """The answer to whether some input of a box reaches the unsafe set.

    - `answer`: the word, explained below.
    - `witness`: the input that reaches the unsafe set; None for all other answers.

    `unsat`: none does, proved in real arithmetic. `sat`: `witness` does, as the model computes it. `unknown` or
    `timeout`: nothing was found either way.
    """

    answer: Word
    witness: Float[Tensor, "*features"] | None


class Unsafe:
    """A union of conjunctions, as one stack of rows; `member[k, r]` says whether row r belongs to conjunction k."""

    def __init__(self, parts: Sequence[Halfspaces], outputs: int) -> None:
        if not parts:
            raise ArgumentError(
                "unsafe", "empty", accepted="at least one conjunction", hint="No input reaches an empty set."
            )
        for k, (weights, offsets) in enumerate(parts):
            fits = weights.dim() == 2 and weights.shape[1] == outputs and offsets.shape == weights.shape[:1]
            if not fits or not len(weights):
                raise ArgumentError(
                    f"unsafe[{k}]", f"of shapes {tuple(weights.shape)} and {tuple(offsets.shape)}",
                    accepted=f"weights of shape (rows, {outputs}) and offsets of shape (rows,), with a row or more",
                    hint="Each row is one constraint `weights z + offsets <= 0`.",
                )  # fmt: skip
            if not bool(weights.isfinite().all() & offsets.isfinite().all()):
                raise ArgumentError(f"unsafe[{k}]", "not finite", accepted="finite numbers", hint="Leave the row out.")
        self.weights = torch.cat([w.detach().to("cpu", torch.float64) for w, _ in parts])
        self.offsets = torch.cat([o.detach().to("cpu", torch.float64) for _, o in parts])
        counts = torch.tensor([len(o) for _, o in parts])
        owner = torch.arange(len(parts)).repeat_interleave(counts)
        self.member = (owner == torch.arange(len(parts)).unsqueeze(1)).double()
        self.parts = torch.arange(len(parts))
        """Which of the conjunctions that were asked about these are."""

    def select(self, parts: Tensor) -> Unsafe:
        """The union of some of the conjunctions."""
        found = Unsafe.__new__(Unsafe)
        rows = self.member[parts].any(0).nonzero().flatten()
        found.weights, found.offsets = self.weights[rows], self.offsets[rows]
        found.member, found.parts = self.member[parts][:, rows], self.parts[parts]
        return found

    def excess(self, rows: Float[Tensor, "points rows"]) -> Float[Tensor, "points conjunctions"]:
        """From values of the rows, the largest of each conjunction: it is reached where that is not above zero."""
        outside = (1 - self.member).to(rows) * torch.finfo(rows.dtype).max
        return (rows.unsqueeze(1) * self.member.to(rows) - outside).amax(2)

    def values(self, outputs: Float[Tensor, "points outputs"]) -> Float[Tensor, "points rows"]:
        """The left sides of all rows."""
        return outputs @ self.weights.t().to(outputs) + self.offsets.to(outputs)
