"""`Places`: rows that belong to samples, as a list and as a table with as many rows for every sample."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Places:
    """Where each row of a list, sorted by sample, stands in the table; rows that a sample lacks are zero there."""

    def __init__(self, sample: Int[Tensor, " rows"], samples: int) -> None:
        counts = sample.bincount(minlength=samples)
        self.samples, self.width = samples, int(counts.max())
        self.sample = sample
        self.slot = torch.arange(len(sample), device=sample.device) - (counts.cumsum(0) - counts)[sample]
        self._full = self.width * samples == len(sample)

    def table(self, rows: Float[Tensor, "rows *shape"] | Int[Tensor, "rows *shape"]) -> Tensor:
        """The rows as (samples, width, *shape)."""
        if self._full:
            return rows.view(self.samples, self.width, *rows.shape[1:])
        empty = rows.new_zeros((self.samples, self.width, *rows.shape[1:]))
        return empty.index_put((self.sample, self.slot), rows)

    def flat(self, table: Float[Tensor, "samples width"]) -> Float[Tensor, " rows"]:
        """The numbers of a table as a list."""
        return table.reshape(-1) if self._full else table[self.sample, self.slot]
