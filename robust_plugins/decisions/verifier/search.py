"""`Search`: branch and bound over the signs of units, until every domain is closed, a witness is found or time ends.

Every domain is a part of the box on which the inputs of some units have given signs, for one conjunction of the unsafe
set. It is closed when some combination of the conjunction's rows is above zero on it. Bounds are searched for in
float32; a domain counts as closed only when the duals that were found, evaluated once more in float64 with every
rounding error taken off, prove it. The rest is split in two and goes back to the pool.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from robust_plugins.decisions.verifier.attack import Confirm
from robust_plugins.decisions.verifier.branching import BestChild, Branching, Seen
from robust_plugins.decisions.verifier.clock import Clock, OutOfTimeError
from robust_plugins.decisions.verifier.domains import Domains, DualAscent, Rows, lower_bound
from robust_plugins.decisions.verifier.linear import solvable, solved
from robust_plugins.decisions.verifier.pool import Pool, PoolFullError
from robust_plugins.decisions.verifier.properties import Unsafe, Word
from robust_plugins.decisions.verifier.root import Duals, Root
from robust_plugins.intervals.methods.compact import Scratch

TARGET = 64
"""While fewer domains are open, each is split at several units at once, so that batches are worth their cost."""
CHOICES = 4
WORK = 3e9
"""Multiplications of one round at most, some tenths of a second: between rounds the clock is looked at."""
RESERVE = 0.05
"""Of the time, at most, that is kept for proving bounds of open domains at its end; and may be exceeded by."""
LONG = 60
"""Steps for a domain in which nothing is left to split."""


@dataclass(frozen=True, eq=False)
class Found:
    """The end of a search. `bounds` are proved below some combination of each conjunction's rows."""

    answer: Word
    witness: Tensor | None
    bounds: Tensor
    domains: int
    message: str = ""


@dataclass(eq=False)
class Search:
    """One search over one box. `tell` is called with the number of domains, those open, and the lowest bound."""

    root: Root
    unsafe: Unsafe
    confirm: Confirm
    clock: Clock
    branching: Branching = field(default_factory=BestChild)
    root_ascent: DualAscent = field(default_factory=lambda: DualAscent(steps=60))
    ascent: DualAscent = field(default_factory=lambda: DualAscent(steps=3))
    batch: int = 256
    memory: int = 2**30
    tell: Callable[[int, int, float], None] = lambda domains, open_domains, bound: None

    def __post_init__(self) -> None:
        rows, const, off = self.root.specified(self.unsafe.weights, self.unsafe.offsets)
        self.exact, self.asked = Rows(rows, const), Rows(rows.float(), const.float())
        size = rows.abs().t() @ self.root.sizes + const.abs()
        self.off = off + 1e-14 * len(const) * size  # of combining rows
        self.fast, self.scratch = self.root.fast, Scratch()
        self.member = self.unsafe.member.float()
        self.proved = torch.full((len(self.member),), -torch.inf, dtype=torch.float64)
        self.count, self.stuck, self.begun = 0, False, False
        self._in_hand: list[tuple[Domains, Tensor]] = []
        """Domains that are neither in the pool nor closed, and the conjunction that each is about."""
        self._price = 0.0
        """Seconds that proving the bound of one domain takes."""
        self.pool = Pool(len(self.fast.offset), len(const), CHOICES, self.memory)
        self.work = (1 + sum(self.fast.work())) * (4.0 * self.ascent.steps + 24)
        """Multiplications that a domain needs, about."""
        self.size = max(8, min(self.batch, int(WORK / self.work)))

    @property
    def progress(self) -> float:
        """How far the lowest bound has come from that of the whole box to zero; 1 at the end."""
        least = float(self.proved.min())
        return 1.0 if least >= 0 else 1 - min(0.0, self.pool.worst) / least

    @torch.no_grad()
    def run(self, limit: int | None = None) -> Found | None:
        """Searches until there is an answer; None where as many domains as `limit` were bounded before, to go on later.

        Raises nothing where time or memory end: that is an answer.
        """
        try:
            witness = None if self.begun else self._begin()
            while witness is None and len(self.pool):
                if limit is not None and self.count >= limit:
                    return None
                if self.clock.left <= min(RESERVE * self.clock.seconds, self._price * len(self.pool)):
                    raise OutOfTimeError
                witness = self._round()
                self.tell(self.count, len(self.pool), self.pool.worst)
        except OutOfTimeError:
            self._prove_open()
            return Found("timeout", None, self.proved, self.count, "the time is used up")
        except PoolFullError as error:
            self._prove_open()
            message = f"{error} do not fit the memory of {self.memory} bytes"
            return Found("timeout", None, self.proved, self.count, message)
        if witness is not None:
            return Found("sat", witness, self.proved, self.count)
        if self.stuck:
            message = "the margin is zero up to rounding: neither a proof nor a witness holds"
            return Found("unknown", None, self.proved, self.count, message)
        return Found("unsat", None, self.proved.clamp(min=0), self.count)

    def _begin(self) -> Tensor | None:
        self.begun = True
        units, conjunctions = len(self.fast.offset), len(self.member)
        none = torch.zeros((units, conjunctions))
        weights = (self.member / self.member.sum(1, keepdim=True)).t().contiguous()
        first = Domains(none, self.fast.usual_slopes().repeat(1, conjunctions), none, weights)
        about = torch.arange(conjunctions)
        self._in_hand = [(first, about)]
        witness = self._settle(first, torch.full((conjunctions,), -torch.inf), about, self.root_ascent, start=True)
        self._in_hand = []
        return witness

    def _round(self) -> Tensor | None:
        levels = 1
        while levels < CHOICES - 1 and len(self.pool) * 2 ** (levels + 1) <= TARGET:
            levels += 1
        domains, bounds, about, units = self.pool.pop(max(1, self.size >> levels))
        self._in_hand = [(domains, about)]
        for level in range(levels):
            at = (units[:, level] >= 0).nonzero().flatten()
            halves = domains.split(units[at, level], at)
            rest = (units[:, level] < 0).nonzero().flatten()
            domains = Domains.cat(domains.select(rest), halves)
            bounds, about, units = (torch.cat([t[rest], t[at], t[at]]) for t in (bounds, about, units))
        witness = self._settle(domains, bounds, about, self.ascent)
        self._in_hand = []
        return witness

    def _prove_open(self) -> None:
        """Proves what the open domains' duals are worth, where the time is enough for all of them."""
        if self.stuck or not self.begun:
            return
        least = torch.zeros_like(self.proved)
        taken: list[tuple[Domains, Tensor]] = self._in_hand
        while taken or len(self.pool):
            if not taken:
                domains, _, about, _ = self.pool.pop(self.size)
                taken = [(domains, about)]
            domains, about = taken.pop()
            value = torch.maximum(self._exactly(domains), self.proved[about])
            least.scatter_reduce_(0, about, value, "amin")
            if self.clock.left < -RESERVE * self.clock.seconds:
                return
        self.proved = torch.maximum(self.proved, least)

    def _settle(
        self, domains: Domains, bounds: Tensor, about: Tensor, ascent: DualAscent, *, start: bool = False
    ) -> Tensor | None:
        """Bounds domains, looks for a witness in those that stay open, and puts these into the pool."""
        self.count += len(domains)
        best, domains = ascent.maximise(self.fast, self.asked, domains, self.scratch)
        open_domains = ~self._proves(best, domains, about, start)
        if not bool(open_domains.any()):
            return None
        at = open_domains.nonzero().flatten()
        domains, bounds, about = domains.select(at), torch.maximum(best, bounds)[at], about[at]
        rows, const = self.asked.combined(domains.weights)
        bound = lower_bound(self.fast, rows, const, domains, self.scratch)
        state, z = self.fast.minimiser(bound, self.scratch)
        witness = self._witness(state[: self.fast.inputs], about)
        if witness is not None:
            return witness
        self.clock.check()
        units = self.branching.candidates(Seen(self.fast, domains, rows, const, bound, z), CHOICES)
        decided = units[:, 0] < 0
        if bool(decided.any()):
            witness = self._decided(domains.select(decided), about[decided])
            keep = (~decided).nonzero().flatten()
            domains, bounds, about, units = domains.select(keep), bounds[keep], about[keep], units[keep]
        self.pool.push(domains, bounds, about, units)
        return witness

    def _proves(self, best: Tensor, domains: Domains, about: Tensor, start: bool) -> Tensor:
        """Which domains are closed: those whose duals prove it in float64."""
        closed = best > 0
        at = torch.arange(len(best)) if start else closed.nonzero().flatten()
        if not len(at):
            return closed
        began = self.clock.spent
        value = self._exactly(domains.select(at))
        if len(at) >= TARGET or not self._price:
            self._price = (self.clock.spent - began) / len(at)
        if start:
            self.proved = torch.maximum(self.proved, value)
        closed[at] = value > 0
        return closed

    def _exactly(self, domains: Domains) -> Tensor:
        weights = domains.weights.double()
        rows, const = self.exact.combined(weights)
        duals = Duals(domains.slopes.double(), domains.multipliers.double(), domains.signs.double())
        return self.root.evaluate(rows, const, duals) - (self.off @ weights) * (1 + 1e-9)

    def _decided(self, domains: Domains, about: Tensor) -> Tensor | None:
        """Domains on which the network is linear: long ascent closes most, and linear programmes decide the others.

        What the multipliers of its programme do not prove, nothing does.
        """
        best, domains = DualAscent(steps=LONG, decay=0.97).maximise(self.fast, self.asked, domains)
        at = (~self._proves(best, domains, about, False)).nonzero().flatten()
        if not len(at):
            return None
        domains, about = domains.select(at), about[at]
        bound = lower_bound(self.fast, *self.asked.combined(domains.weights), domains)
        witness = self._witness(self.fast.minimiser(bound)[0][: self.fast.inputs], about)
        if witness is not None or not solvable():
            self.stuck = self.stuck or witness is None
            return witness
        for i in range(len(domains)):
            self.clock.check()
            one = domains.select(torch.tensor([i]))
            one, point = solved(self.root.compact, self.exact, one, self.member[about[i]])
            if bool(self._proves(torch.ones(1), one, about[i : i + 1], False)):
                continue
            x = None if point is None else self.root.input_at(point)
            if x is not None and self.confirm(x):
                return x
            self.stuck = True
        return None

    def _witness(self, points: Tensor, about: Tensor) -> Tensor | None:
        """An input that reaches the unsafe set, among those that minimise bounds, (inputs, points)."""
        values = self.asked.rows.t() @ self._states(points) + self.asked.const.unsqueeze(1)
        excess = self.unsafe.excess(values.t()).amin(1)
        least, at = excess.min(0)
        if float(least) > 0:
            return None
        x = self.root.input_at(points[:, at : at + 1].double())
        return x if self.confirm(x) else None

    def _states(self, points: Tensor) -> Tensor:
        """The state that the network itself takes at points of the input."""
        compact, n = self.fast, self.fast.inputs
        state = torch.empty((compact.size, points.shape[1]))
        state[:n] = points
        for block in compact.blocks:
            before = state[block.start : block.start + block.matrix.shape[1]]
            z = torch.mm(block.matrix, before).add_(compact.offset[block.first - n : block.last - n])
            state[block.first : block.last] = z.clamp_(min=0)
        return state
