"""A network over a box, reduced to what is not linear there; linear bounds on it and their gradient.

Over a box every ReLU whose input cannot change its sign is linear. What is left of a network of any architecture is

    z_j = M_j s_j + b_j,    h_j = relu(z_j)        for its blocks j,

where the state s = (x, h_1, h_2, ...) holds the inputs, scaled to [-1, 1], and the outputs of the *units*: the unstable
ReLUs, and `s_j` is the part of it before block j. Other nonlinear layers are units too: with lines `A <= y <= B` they
are `y = A + h`, `0 <= h <= z = B - A`.

Each unit has lines `slope z <= h <= chord z + intercept`, where the slope of a ReLU may be any number of [0, 1].
Sending the coefficients c of a combination of the state back to x, with `a` those of a unit when it is reached,

    p = D a,  a_before += M^T p,    D = slope where a >= 0, else chord,

gives the lower bound `g = const + sum b p + sum_{a < 0} a intercept - |a_x|_1`, for any slopes in their range. Its
minimiser is `x = -sign(a_x)`. Between kinks g is linear in p, so that its derivative by p is the value z which the
minimiser takes when it is sent *forward through the chosen lines*: dg/dslope = max(a, 0) z, for one linear forward
pass.

Dual bounds of this kind: Salman et al. 2019, "A convex relaxation barrier to tight robustness verification".
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from robust_plugins.intervals import rounding
from robust_plugins.intervals.methods.ascent import Dual, Gradient

SPARSE = 0.12
"""Matrices with a smaller share of entries that are not zero are stored sparsely, as those of first convolutions."""


@dataclass(frozen=True, eq=False)
class Block:
    """Units that one layer opened: their inputs as affine functions of the state entries from `start` on."""

    start: int
    first: int
    """The place of its first unit in the state."""
    last: int
    """The place after its last unit."""
    matrix: Tensor
    transposed: Tensor


class Bound(NamedTuple):
    """Lower bounds of some rows, with what their gradient needs; tensors are (units, rows)."""

    value: Tensor
    """(rows,)"""
    coefficients: Tensor
    """Of the whole state, as they were when each entry was reached: (state, rows)."""
    slopes: Tensor
    """Of the line chosen for each unit, D."""
    intercepts: Tensor
    """Of that line."""

    def select(self, keep: Tensor) -> Bound:
        """The same for some of the rows, by index."""
        return Bound(self.value[keep], self.coefficients[:, keep], self.slopes[:, keep], self.intercepts[:, keep])


class Scratch:
    """Memory that is used again, by name, for tensors of loops: fresh pages cost as much as the products in them."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def take(self, name: str, like: Tensor) -> Tensor:
        """A tensor shaped like `like`, of any values; what was taken under that name before is lost."""
        held = self._held.get(name)
        if held is None or held.numel() < like.numel() or held.dtype != like.dtype or held.device != like.device:
            held = self._held[name] = like.new_empty(like.numel())
        return held[: like.numel()].view(like.shape)


class Reach:
    """The set of the state's inputs: the box [-1, 1]^n, or in subclasses a part of it."""

    def least(self, a: Float[Tensor, "inputs rows"]) -> Float[Tensor, " rows"]:
        """A lower bound of the product of each column and any point of the set."""
        return -a.abs().sum(0)

    def lowest(self, a: Float[Tensor, "inputs rows"]) -> Float[Tensor, "inputs rows"]:
        """Where that is taken, for each column."""
        return -a.sign()


class Compact(Dual):
    """The network of the units alone, grown block by block; rows of coefficients are the columns of tensors.

    Bounds hold in real arithmetic, for every input in [-1, 1] and every slope within `least` and `most`, where the
    lines of the units that were added do.
    """

    def __init__(self, inputs: int, like: Tensor) -> None:
        self.inputs = inputs
        self.blocks: list[Block] = []
        self.reach = Reach()
        none = like.new_zeros((0, 1))
        self.offset, self.least, self.most, self.chord, self.intercept = none, none, none, none, none
        self.error, self.terms = none, none
        """For outward rounding, of each unit: how far its input may be from `matrix s + offset`, and the sum of the
        absolute values of all terms of it."""
        self.largest = like.new_ones((inputs, 1))
        """For outward rounding, the largest absolute value of each entry of the state."""

    @property
    def size(self) -> int:
        """The number of the state's entries."""
        return self.inputs + len(self.offset)

    @property
    def free(self) -> Tensor:
        """Which units have a slope to choose, (units, 1)."""
        return (self.least < self.most).to(self.offset)

    def add(
        self,
        start: int,
        matrix: Float[Tensor, "units entries"],
        offset: Float[Tensor, " units"],
        *,
        least: Float[Tensor, " units"],
        most: Float[Tensor, " units"],
        chord: Float[Tensor, " units"],
        intercept: Float[Tensor, " units"],
        error: Float[Tensor, " units"] | None = None,
        largest: Float[Tensor, " units"] | None = None,
    ) -> None:
        """Adds a block of units with the inputs `matrix s[start:] + offset`.

        - `least z <= h <= chord z + intercept` and `most z <= h` hold for all that z can be; a slope is chosen between
          `least` and `most`
        - `matrix` may end before the state does
        - `error`, `largest`: with outward rounding, how far z may be from that, and the largest |h|; None: it is the
          largest |z|
        """
        if error is not None:
            with torch.no_grad():
                stop = start + matrix.shape[1]
                terms = matrix.abs() @ self.largest[start:stop, 0] + offset.abs() + error
                self.error = torch.cat([self.error, error.unsqueeze(1)])
                self.terms = torch.cat([self.terms, terms.unsqueeze(1)])
                top = terms * (1 + 2 * rounding.once(matrix.shape[1], terms.dtype)) if largest is None else largest
                self.largest = torch.cat([self.largest, top.unsqueeze(1)])
        first = self.size
        if not matrix.requires_grad:
            used = (matrix != 0).any(0).nonzero().flatten().tolist()
            low, high = (used[0], used[-1] + 1) if used else (0, 0)
            start, matrix = start + low, matrix[:, low:high].contiguous()
        transposed = matrix.t() if matrix.requires_grad else matrix.t().contiguous()
        if _sparse(matrix):
            matrix, transposed = _compressed(matrix), _compressed(transposed)
        self.blocks.append(Block(start, first, first + len(offset), matrix, transposed))
        for name, values in (
            ("offset", offset), ("least", least), ("most", most), ("chord", chord), ("intercept", intercept)
        ):  # fmt: skip
            setattr(self, name, torch.cat([getattr(self, name), values.unsqueeze(1)]))

    def work(self) -> list[int]:
        """The operations that one bound of one row takes for each block, about."""
        sizes = []
        for block in self.blocks:
            dense = block.matrix.layout == torch.strided
            entries = block.matrix.numel() if dense else block.matrix.values().numel()
            sizes.append(entries + 32 * (block.last - block.first + block.matrix.shape[1]))
        return sizes

    def usual_slopes(self) -> Float[Tensor, "units 1"]:
        """CROWN's choice, nearest to the function: for a ReLU 1 where its chord is steeper than 1/2, else 0."""
        return torch.where(self.chord > 0.5, self.most, self.least)

    @torch.no_grad()
    def bound(
        self,
        rows: Float[Tensor, "state rows"],
        const: Float[Tensor, " rows"],
        slopes: Float[Tensor, "units rows"],
        *,
        above: tuple[Tensor, Tensor] | None = None,
        pull: Float[Tensor, "units rows"] | None = None,
        scratch: Scratch | None = None,
    ) -> Bound:
        """The least that `rows^T s + const` can be, at least, with these slopes; without autograd history.

        `above` are other chords and intercepts, (units, rows), which hold where some of the units' signs are given.
        `pull` is taken away from what each unit sends to its input: a multiplier times the sign that z has for sure.
        The bound lies in `scratch` where that is given, until the next one does.
        """
        chord, intercept = (self.chord, self.intercept) if above is None else above
        take = (scratch or Scratch()).take
        n, coefficients = self.inputs, take("coefficients", rows).copy_(rows)
        chosen, signs, difference = (take(name, slopes) for name in ("chosen", "signs", "difference"))
        torch.sub(slopes, chord, out=difference)
        value = const.clone()
        for block in reversed(self.blocks):
            at = slice(block.first - n, block.last - n)
            a, sign = coefficients[block.first : block.last], signs[at]
            torch.sign(a, out=sign).clamp_(max=0)  # -1 where the coefficient is negative
            torch.addcmul(slopes[at], sign, difference[at], out=chosen[at])
            p = torch.mul(a, chosen[at], out=difference[at])
            if pull is not None:
                p.sub_(pull[at])
            value.add_(torch.mv(p.t(), self.offset[at, 0]))
            before = coefficients[block.start : block.start + len(block.transposed)]
            torch.addmm(before, block.transposed, p, out=before)
        intercepts = signs.mul_(intercept).neg_()
        paid = torch.mul(coefficients[n:], intercepts, out=difference).sum(0)
        value.add_(paid).add_(self.reach.least(coefficients[:n]))
        return Bound(value, coefficients, chosen, intercepts)

    @torch.no_grad()
    def minimiser(
        self, bound: Bound, scratch: Scratch | None = None
    ) -> tuple[Float[Tensor, "state rows"], Float[Tensor, "units rows"]]:
        """The state at the bound's minimiser, and the units' inputs z, sent forward through the chosen lines.

        `z` is the derivative of the bound by `p`, what a unit's coefficient sends to its input. Both lie in `scratch`
        where that is given, until the next ones do.
        """
        n, take = self.inputs, (scratch or Scratch()).take
        state, z = take("state", bound.coefficients), take("z", bound.slopes)
        state[:n] = self.reach.lowest(bound.coefficients[:n])
        for block in self.blocks:
            at = slice(block.first - n, block.last - n)
            before = state[block.start : block.start + block.matrix.shape[1]]
            torch.mm(block.matrix, before, out=z[at]).add_(self.offset[at])
            torch.addcmul(bound.intercepts[at], bound.slopes[at], z[at], out=state[block.first : block.last])
        return state, z

    def evaluate(  # noqa: D102 (inherited)
        self, rows: Float[Tensor, "state rows"], const: Float[Tensor, " rows"], slopes: Float[Tensor, "units rows"]
    ) -> tuple[Float[Tensor, " rows"], Gradient]:
        bound = self.bound(rows, const, slopes)
        return bound.value, lambda keep: self._gradient(bound if keep is None else bound.select(keep))

    @torch.no_grad()
    def _gradient(self, bound: Bound) -> Tensor:
        _, z = self.minimiser(bound)
        return bound.coefficients[self.inputs :].clamp(min=0).mul_(z).mul_(self.free)

    def differentiable_bound(
        self, rows: Float[Tensor, "state rows"], const: Float[Tensor, " rows"], slopes: Float[Tensor, "units rows"]
    ) -> Float[Tensor, " rows"]:
        """`bound(...).value`, differentiable in all that the units were made from and in the slopes."""
        n, coefficients, value = self.inputs, rows, const
        for block in reversed(self.blocks):
            at = slice(block.first - n, block.last - n)
            a = coefficients[block.first : block.last]
            positive, negative = a.clamp(min=0), a.clamp(max=0)
            p = positive * slopes[at] + negative * self.chord[at]
            value = value + (p * self.offset[at]).sum(0) + (negative * self.intercept[at]).sum(0)
            stop = block.start + len(block.transposed)
            changed = coefficients[block.start : stop] + block.transposed @ p
            coefficients = torch.cat([coefficients[: block.start], changed, coefficients[stop : block.first]])
        return value - coefficients.abs().sum(0)

    @torch.no_grad()
    def outward_bound(
        self, rows: Float[Tensor, "state rows"], const: Float[Tensor, " rows"], slopes: Float[Tensor, "units rows"]
    ) -> Float[Tensor, " rows"]:
        """`bound(...).value` less all rounding errors, where every unit was added with its `error`.

        With the products p as they are computed, the coefficients of state entries are off by
        `e = gamma (|rows| + |M|^T |p|)` at most, and these by themselves move the bound by `e largest`; a unit's input
        is off by its `error`; and the sums of the bound itself are off by gamma of the sum of their absolute values.
        """
        n, a, value, summed = self.inputs, rows.clone(), const.clone(), const.abs()
        once = rounding.once(2 * self.size + len(self.blocks), rows.dtype)
        paid = once * (rows.abs() * self.largest).sum(0)
        for block in reversed(self.blocks):
            at = slice(block.first - n, block.last - n)
            reached = a[block.first : block.last]
            p = reached * torch.where(reached >= 0, slopes[at], self.chord[at])
            size = p.abs().t()
            value.add_(torch.mv(p.t(), self.offset[at, 0]))
            summed = summed + torch.mv(size, self.offset[at, 0].abs())
            paid = paid + torch.mv(size, self.error[at, 0] + once * self.terms[at, 0])
            before = a[block.start : block.start + len(block.transposed)]
            torch.addmm(before, block.transposed, p, out=before)
        negative, inputs = a[n:].clamp(max=0), a[:n].abs().sum(0)
        value = value + (negative * self.intercept).sum(0) - inputs
        summed = summed + (negative.abs() * self.intercept.abs()).sum(0) + inputs
        floor = rounding.underflow(4 * self.size, rows.dtype) * (1 + self.largest.sum() + self.terms.sum())
        return rounding.lessened(value, (1 + 2 * once) * paid + 2 * once * summed + floor)


def _sparse(matrix: Tensor) -> bool:
    plain = not matrix.requires_grad and matrix.device.type == "cpu" and torch.backends.mkl.is_available()
    return plain and matrix.numel() > 2**14 and int(matrix.count_nonzero()) < SPARSE * matrix.numel()


def _compressed(matrix: Tensor) -> Tensor:
    with warnings.catch_warnings():  # that this layout is new; products are all that is used of it
        warnings.filterwarnings("ignore", message="Sparse CSR", category=UserWarning)
        return matrix.to_sparse_csr()
