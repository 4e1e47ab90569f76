"""`Pool`: the open domains, the one with the lowest bound first, within a budget of memory."""

from __future__ import annotations

import heapq

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robust_plugins.decisions.verifier.domains import Domains


class PoolFullError(Exception):
    """The open domains do not fit the memory."""


class Pool:
    """Open domains with their bounds, the conjunction that each is about, and the units to split them at."""

    def __init__(self, units: int, rows: int, choices: int, memory: int) -> None:
        sizes = {"signs": units, "slopes": units, "multipliers": units, "weights": rows}
        self._tables = {name: torch.empty((0, size), dtype=_KINDS[name]) for name, size in sizes.items()}
        self._about, self._units = torch.empty(0, dtype=torch.long), torch.empty((0, choices), dtype=torch.long)
        self._heap: list[tuple[float, int]] = []
        self._free: list[int] = []
        each = sum(t.shape[1] * t.element_size() for t in self._tables.values()) + 8 * (choices + 1)
        self._most = memory // (2 * max(1, each))  # growing holds the old table and the new one

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def worst(self) -> float:
        """The lowest bound; infinity where no domain is open."""
        return self._heap[0][0] if self._heap else torch.inf

    @property
    def open(self) -> Int[Tensor, " open"]:
        """The conjunctions of which some domain is open."""
        found: Tensor = self._about[[place for _, place in self._heap]].unique()
        return found

    def push(
        self, domains: Domains, bounds: Float[Tensor, " domains"], about: Int[Tensor, " domains"], units: Tensor
    ) -> None:
        """Adds domains. Raises PoolFullError where the budget does not hold them."""
        if not len(domains):
            return
        self._grow(len(domains))
        places = [self._free.pop() for _ in range(len(domains))]
        at = torch.tensor(places)
        for name, table in self._tables.items():
            table[at] = getattr(domains, name).t().to(table.dtype)
        self._about[at], self._units[at] = about, units
        for bound, place in zip(bounds.tolist(), places, strict=True):
            heapq.heappush(self._heap, (bound, place))

    def pop(self, count: int) -> tuple[Domains, Tensor, Tensor, Tensor]:
        """The domains with the lowest bounds: they, their bounds, conjunctions and units."""
        taken = [heapq.heappop(self._heap) for _ in range(min(count, len(self._heap)))]
        places = [place for _, place in taken]
        at, bounds = torch.tensor(places, dtype=torch.long), torch.tensor([bound for bound, _ in taken])
        self._free += reversed(places)
        columns = {name: table[at].t().float().contiguous() for name, table in self._tables.items()}
        return Domains(**columns), bounds, self._about[at], self._units[at]

    def _grow(self, count: int) -> None:
        if len(self._free) >= count:
            return
        had = len(self._about)
        more = min(max(256, had, count), self._most - had)
        if len(self._free) + more < count:
            raise PoolFullError("the open domains")
        for name, table in self._tables.items():
            self._tables[name] = torch.cat([table, table.new_empty((more, table.shape[1]))])
        self._about = torch.cat([self._about, self._about.new_empty(more)])
        self._units = torch.cat([self._units, self._units.new_empty((more, self._units.shape[1]))])
        self._free = list(range(had + more - 1, had - 1, -1)) + self._free


_KINDS = {"signs": torch.int8, "slopes": torch.float32, "multipliers": torch.float32, "weights": torch.float32}
