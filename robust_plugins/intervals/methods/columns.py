"""`Columns`: a node's output as an affine function of a compact network's state, and how far it may be from that."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from robust_plugins.intervals import rounding
from robust_plugins.intervals.methods.compact import Compact

MAGNIFIED = 2.0**20
"""By how much columns are enlarged on their way: layers add their constant parts, which are taken away again, and the
rounding error of that then counts a millionth."""


class Columns(NamedTuple):
    """A node's output as an affine function of the state: `sum_i coefficients_i s_(start + i) / scale + offset`."""

    start: int
    coefficients: Tensor
    """(entries, *shape)"""
    offset: Tensor
    """(1, *shape)"""

    scale: float
    """A power of two, by which the coefficients are too large."""

    error: Tensor | None = None
    """With outward rounding: how far the output, exact or computed, may be from that, (1, *shape)."""

    def flat(self, at: Tensor | None = None) -> Tensor:
        """The coefficients themselves, (entries, outputs), or those of some of the outputs."""
        found = self.coefficients.reshape(len(self.coefficients), self.offset.numel())
        return (found if at is None else found[:, at]) / self.scale

    def size(self, compact: Compact) -> Tensor:
        """The sum of the absolute values of all terms of each output: (1, *shape)."""
        with torch.no_grad():
            largest = compact.largest[self.start : self.start + len(self.coefficients), 0] / self.scale
            flat = self.coefficients.reshape(len(largest), self.offset.numel()).abs().t() @ largest
            return flat.view(self.offset.shape) + self.offset.abs()

    def room(self, compact: Compact) -> Tensor:
        """The error of an output, in sums of outputs times coefficients of 1: (outputs,)."""
        assert self.error is not None
        size = self.size(compact)
        terms = size.numel() + len(self.coefficients)
        return (self.error + rounding.once(terms, size.dtype) * (size + self.error)).flatten()

    def rows(self, compact: Compact, *, at: Tensor | None = None, spec: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Coefficients of the whole state, (state, rows), and constants: of some outputs, or of `spec` times all."""
        flat, offset = self.flat(at), self.offset.flatten()
        if at is not None:
            offset = offset[at]
        if spec is not None:
            flat, offset = flat @ spec.t(), spec @ offset
        after = compact.size - self.start - len(flat)
        return torch.nn.functional.pad(flat, (0, 0, self.start, after)), offset


def padded(columns: Columns, start: int, stop: int) -> Tensor:
    """The columns' coefficients of the state's entries from `start` to `stop`."""
    c = columns.coefficients
    before, after = columns.start - start, stop - columns.start - len(c)
    if not before and not after:
        return c
    return torch.cat([c.new_zeros((before, *c.shape[1:])), c, c.new_zeros((after, *c.shape[1:]))])
