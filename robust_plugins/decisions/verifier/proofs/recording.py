"""`Notes`: what a search writes down for a proof while it runs.

The search itself is the usual one, on numbers that a proof can hold: slopes are rounded to 255ths before they are
evaluated, and intervals are wider, and bounds lower, by more than the rounding of whoever checks them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from robust_plugins.decisions.verifier.clock import Clock
from robust_plugins.decisions.verifier.domains import Domains
from robust_plugins.decisions.verifier.pool import PoolFullError
from robust_plugins.decisions.verifier.proofs.boxes import BoxNotes
from robust_plugins.decisions.verifier.proofs.trees import Leaves, coded, preorder
from robust_plugins.decisions.verifier.root import Duals, Root
from robust_plugins.decisions.verifier.search import Search
from robust_plugins.decisions.verifier.trees import Trees
from robust_plugins.intervals.interval import Interval
from robust_plugins.intervals.methods.columns import Columns
from robust_plugins.intervals.methods.compact import Compact
from robust_plugins.intervals.rules.elementwise import Activation

MARGIN = 1e-7
"""By what part of itself an interval is made wider."""
ROUNDINGS = 1e4
"""By how many times its own rounding error, besides: whoever checks it adds up longer sums."""
COPIES = 5
"""Of all leaves, while their trees are made and written."""


class Offer(NamedTuple):
    """Bounds of both ends of some entries of a node, all lower ends first, and the trees that prove them."""

    entries: np.ndarray
    values: np.ndarray
    leaves: Leaves
    owner: np.ndarray


@dataclass(eq=False)
class Notes:
    """All that the roots and searches of one verification found, in the order of their making."""

    roots: list[NotedRoot] = field(default_factory=list)
    searches: list[NotedSearch] = field(default_factory=list)
    boxes: BoxNotes = field(default_factory=BoxNotes)
    """Of the last search that halved boxes of inputs."""

    def afresh(self) -> BoxNotes:
        """Notes for a search that halves boxes."""
        self.boxes = BoxNotes()
        return self.boxes

    def root(self, *args: Any, **kwargs: Any) -> NotedRoot:
        """A root, as Root is made."""
        found = NotedRoot(*args, **kwargs)
        found.parent = next((root for root in self.roots if root.values is found.known), None)
        self.roots.append(found)
        return found

    def search(self, *args: Any, **kwargs: Any) -> NotedSearch:
        """A search, as Search is made."""
        found = NotedSearch(*args, **kwargs)
        self.searches.append(found)
        return found

    def proof(self, conjunctions: int) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
        """The parts and numbers of a proof that excludes so many conjunctions; None where some is missing."""
        boxes = self.boxes.arrays()
        if boxes is not None:
            return {}, boxes
        left, trees = set(range(conjunctions)), []
        for search in self.searches:
            for local, part in enumerate(search.unsafe.parts.tolist()):
                found = search.tree(local) if part in left else None
                if found is not None:
                    assert isinstance(search.root, NotedRoot)  # it was made here
                    left.discard(part)
                    trees.append((search.root, part, found))
        if left:
            return None
        used = [root for root in self.roots if any(root in owner.line() for owner, _, _ in trees)]
        arrays: dict[str, np.ndarray] = {}
        stages: list[dict[str, Any]] = []
        for s, root in enumerate(used):
            own = [(part, found) for owner, part, found in trees if owner is root]
            known = None if root.parent is None else used.index(root.parent)
            stages.append({"known": known, "proved": [part for part, _ in own]})
            arrays |= {f"{s}.{name}": array for name, array in root.arrays().items()}
            arrays |= {f"{s}.goal.{part}.{name}": a for part, found in own for name, a in found.items()}
        return {"stages": stages}, arrays


@dataclass(eq=False)
class NotedRoot(Root):
    """A root whose bounds are made of slopes in 255ths and kept with them."""

    parent: NotedRoot | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._units: dict[int, np.ndarray] = {}
        self._claims: dict[int, dict[str, np.ndarray]] = {}
        self._offers: list[Offer] = []
        if self.trees is not None:
            self.trees = NotedTrees(leaves=self.trees.leaves, start=self.trees.start, ascent=self.trees.ascent)
        super().__post_init__()

    def line(self) -> list[NotedRoot]:
        """The root itself and those that it rests on."""
        return [self] if self.parent is None else [self, *self.parent.line()]

    def arrays(self) -> dict[str, np.ndarray]:
        """The units of each node with a kink, and the claims on each node that such nodes read."""
        found = {f"{k}.units": units for k, units in self._units.items() if len(units)}
        return found | {f"{k}.{name}": a for k, claim in self._claims.items() for name, a in claim.items()}

    def evaluate(self, rows: Tensor, const: Tensor, duals: Duals) -> Tensor:  # noqa: D102 (inherited)
        slopes = coded(duals.slopes).double() / 255
        return super().evaluate(rows, const, Duals(slopes, duals.multipliers, duals.signs))

    def _elementwise(self, index: int, activation: Activation) -> Columns:
        self._index = index
        return super()._elementwise(index, activation)

    def _relus(self, z: Columns, units: Tensor, low: Tensor, up: Tensor, kink: float, change: float) -> Any:
        self._units[self._index] = units.nonzero().flatten().int().numpy()
        return super()._relus(z, units, low, up, kink, change)

    def _sharpen(self, index: int, readers: Sequence[nn.Module]) -> None:
        self._offers, before = [], self.values[index]
        super()._sharpen(index, readers)
        found = self.values[index]
        room = MARGIN * torch.maximum(found.lower.abs(), found.upper.abs()) + ROUNDINGS * self.slack[index]
        self.values[index] = Interval(found.lower - room, found.upper + room)
        self._claim(index, before, found)
        self._offers = []

    def _claim(self, index: int, before: Interval, found: Interval) -> None:
        """Keeps the trees of the bounds that made the interval of a node what it is."""
        ends = self.values[index].lower.flatten().numpy(), self.values[index].upper.flatten().numpy()
        better = np.stack([(found.lower > before.lower).flatten(), (found.upper < before.upper).flatten()])
        entries = np.flatnonzero(better.any(0))
        if not len(entries):
            return
        place = np.full(better.shape[1], -1)
        place[entries] = np.arange(len(entries))
        count, own = len(entries), better[:, entries].flatten()
        best, source = np.full(2 * count, -np.inf), np.full(2 * count, -1)
        first = 0
        for offer in self._offers:
            at = np.concatenate(
                [place[offer.entries], np.where(place[offer.entries] < 0, -1, place[offer.entries] + count)]
            )
            better_rows = np.flatnonzero((at >= 0) & (offer.values > best[at]))
            best[at[better_rows]], source[at[better_rows]] = offer.values[better_rows], first + better_rows
            first += len(at)
        target = np.full(first, -1)
        target[source[own]] = np.arange(int(own.sum()))
        owners = [o.owner + start for o, start in zip(self._offers, self._starts(), strict=True)]
        parts, trees = [], []
        for offer, owner in zip(self._offers, owners, strict=True):
            kept = np.flatnonzero(target[owner] >= 0)
            parts.append(offer.leaves.select(kept))
            trees.append(target[owner[kept]])
        made = preorder(Leaves.cat(parts), np.concatenate(trees), int(own.sum()))
        assert made is not None  # trees are grown whole
        del made["weights"]
        claims = {"entries": entries.astype(np.int32), "low": ends[0][entries], "up": ends[1][entries]}
        self._claims[index] = claims | made | {"own": own.astype(np.uint8)}

    def _starts(self) -> np.ndarray:
        found: np.ndarray = np.cumsum([0, *(len(offer.values) for offer in self._offers)])[:-1]
        return found

    def _by_columns(self, index: int, entries: Tensor, kinks: Sequence[float]) -> tuple[Tensor, Tensor]:
        """Nothing: their lines are none that a slope stands for."""
        none = torch.full((len(entries),), torch.inf, dtype=torch.float64)
        return -none, none

    def _both_ends(
        self, index: int, entries: Tensor, slopes: Callable[[Tensor, Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        chosen: list[Tensor] = []

        def noting(rows: Tensor, const: Tensor) -> Tensor:
            chosen.append(coded(slopes(rows, const)))
            return chosen[-1].double() / 255

        below, above = super()._both_ends(index, entries, noting)
        lower, upper = (torch.cat([c.chunk(2, 1)[side] for c in chosen], 1).t() for side in (0, 1))
        codes, none = torch.cat([lower, upper]).contiguous().numpy(), np.zeros(0, np.int32)
        leaves = Leaves(codes, np.ones((len(codes), 1), np.float32), none, none, none.astype(bool), none.astype(float))
        self._offer(entries, below, above, leaves, np.arange(len(codes)))
        return below, above

    def _by_trees(self, index: int, entries: Tensor, kinks: Sequence[float]) -> tuple[Tensor, Tensor]:
        assert isinstance(self.trees, NotedTrees)
        self.trees.grown.clear()
        below, above = super()._by_trees(index, entries, kinks)
        parts, owners, start, count = [], [], 0, len(entries)
        for leaves, owner in self.trees.grown:
            half = (int(owner.max()) + 1) // 2
            parts.append(leaves)
            owners.append(np.where(owner < half, start + owner, count + start + owner - half))
            start += half
        self._offer(entries, below, above, Leaves.cat(parts), np.concatenate(owners))
        self.trees.grown.clear()
        return below, above

    def _offer(self, entries: Tensor, below: Tensor, above: Tensor, leaves: Leaves, owner: np.ndarray) -> None:
        self._offers.append(Offer(entries.numpy(), torch.cat([below, -above]).numpy(), leaves, owner))


@dataclass(frozen=True, kw_only=True)
class NotedTrees(Trees):
    """Trees that keep their leaves, and the row that each is of."""

    grown: list[tuple[Leaves, np.ndarray]] = field(default_factory=list)

    def grow(self, compact: Compact, rows: Tensor, const: Tensor, clock: Clock) -> tuple[Domains, Tensor]:  # noqa: D102
        leaves, about = super().grow(compact, rows, const, clock)
        self.grown.append((Leaves.of(leaves), about.numpy().copy()))
        return leaves, about


@dataclass(eq=False)
class NotedSearch(Search):
    """A search that keeps the domains that it closes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        size = self.exact.rows.abs().t() @ self.root.sizes + self.exact.const.abs()
        self.off = self.off + 1e-9 * size
        self._closed: list[Leaves] = []
        self._bytes = 0
        self._about: list[np.ndarray] = []

    def tree(self, conjunction: int) -> dict[str, np.ndarray] | None:
        """The tree of the closed domains of a conjunction; None where some of them are open still."""
        kept = [
            (leaves, np.flatnonzero(about == conjunction))
            for leaves, about in zip(self._closed, self._about, strict=True)
        ]
        leaves = (
            Leaves.cat([leaves.select(at) for leaves, at in kept if len(at)])
            if any(len(at) for _, at in kept)
            else None
        )
        found = None if leaves is None else preorder(leaves, np.zeros(len(leaves), int), 1)
        if found is not None:
            found["weights"] = found["weights"][:, self.unsafe.member[conjunction].numpy() > 0]
            if bool((found["weights"] == 1).all()):
                del found["weights"]
        return found

    def _proves(self, best: Tensor, domains: Domains, about: Tensor, start: bool) -> Tensor:
        closed = super()._proves(best, domains, about, start)
        at = closed.nonzero().flatten()
        if len(at):
            self._closed.append(Leaves.of(domains.select(at)))
            self._bytes += self._closed[-1].bytes
            if COPIES * self._bytes > self.memory:
                raise PoolFullError("the closed domains, which the proof needs,")
            self._about.append(about[at].numpy().copy())
        return closed
