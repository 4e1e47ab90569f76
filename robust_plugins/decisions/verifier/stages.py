"""`Stages`: searches on ever tighter bounds of the layers, each as long as that pays.

A search begins on optimised bounds. Where it does not end soon, the bounds are refined by small trees, and where that
lifts the bound of the whole box by enough, the search begins again on the refined network; else the first one goes on.
Limits are numbers of operations, so that answers do not depend on the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from robust_plugins.decisions.verifier.attack import Attack, Confirm, MarginDescent
from robust_plugins.decisions.verifier.branching import BestChild, Branching
from robust_plugins.decisions.verifier.clock import Clock, OutOfTimeError
from robust_plugins.decisions.verifier.domains import DualAscent
from robust_plugins.decisions.verifier.properties import Unsafe
from robust_plugins.decisions.verifier.refinement import GrowingTrees, Plan, Refined, Refinement
from robust_plugins.decisions.verifier.root import Root
from robust_plugins.decisions.verifier.search import Found, Search
from robust_plugins.decisions.verifier.trees import Trees
from robust_plugins.intervals.interval import Interval
from robust_plugins.intervals.methods.ascent import Ascent
from robust_plugins.intervals.methods.unfolding import TooLargeError
from robust_plugins.intervals.network.graph import Network

MEMORY = 2**30
HALF = 0.5
"""Of the way to zero: from there on a search may end soon."""


@dataclass(frozen=True, kw_only=True)
class Engine:
    """The parts of a verification, each of which can be exchanged."""

    attack: Attack = field(default_factory=MarginDescent)
    branching: Branching = field(default_factory=BestChild)
    refinement: Refinement = field(default_factory=GrowingTrees)
    ascent: Ascent = field(default_factory=lambda: Ascent(steps=20, learning_rate=0.1, decay=0.98))
    """That of the slopes of intermediate bounds."""
    root_ascent: DualAscent = field(default_factory=lambda: DualAscent(steps=60))
    leaf_ascent: DualAscent = field(default_factory=lambda: DualAscent(steps=3))
    batch: int = 256
    memory: int = MEMORY
    few: int = 6
    """Where at most so many inputs vary, chains of ReLUs are decided by boxes of inputs instead."""
    root: Callable[..., Root] = Root
    search: Callable[..., Search] = Search
    """What makes these: subclasses that write down what they find."""


@dataclass(eq=False)
class Stages:
    """The verification of one box, once attacks have failed."""

    form: Network
    box: Interval
    unsafe: Unsafe
    confirm: Confirm
    clock: Clock
    engine: Engine
    tell: Callable[[int, int, float], None]

    def __post_init__(self) -> None:
        self.count = 0
        self.proved = torch.full((len(self.unsafe.member),), -torch.inf, dtype=torch.float64)

    def run(self) -> Found:
        """Searches in stages until there is an answer."""
        try:
            stage = self._stage(torch.arange(len(self.proved)), [self.box], None)
        except OutOfTimeError:
            return Found("timeout", None, self.proved, 0, "the time is used up before the whole box was bounded")
        except TooLargeError:
            message = f"the network unfolded over this box does not fit the memory of {self.engine.memory} bytes"
            return Found("unknown", None, self.proved, 0, message)
        made: list[Refined] = []
        known = stage.search.root.values
        while (plan := self._planned(stage, made)) is not None:
            found = self._run(stage, plan.search)
            if found is None and stage.search.progress > HALF:
                found = self._run(stage, plan.promising)
            if found is not None:
                return found
            still = stage.search.pool.open
            before = float(stage.search.proved[still].min())
            try:
                better = self._stage(stage.about[still], known, plan.trees)
            except OutOfTimeError:
                break
            known = better.search.root.values
            found = self._run(better, 0)
            if found is not None:
                return found
            made.append(Refined(plan.trees, before, float(better.search.proved.min())))
            if self.engine.refinement.keeps(made[-1]):
                stage = better
        found = self._run(stage, None)
        assert found is not None  # there was no limit
        return found

    def _planned(self, stage: _Stage, made: Sequence[Refined]) -> Plan | None:
        return self.engine.refinement.plan(stage.search.root.fast, made, self.clock.seconds)

    def _stage(self, about: Tensor, known: Sequence[Interval], trees: Trees | None) -> _Stage:
        engine = self.engine
        root = engine.root(self.form, known, engine.ascent, engine.memory, clock=self.clock, trees=trees)
        search = engine.search(
            root, self.unsafe.select(about), self.confirm, self.clock, engine.branching, engine.root_ascent,
            engine.leaf_ascent, engine.batch, engine.memory, self.tell,
        )  # fmt: skip
        return _Stage(about, search)

    def _run(self, stage: _Stage, work: float | None) -> Found | None:
        """Goes on with a stage; the end of the whole verification, or None after so many multiplications."""
        search = stage.search
        counted, limit = search.count, None if work is None else search.count + int(work / search.work)
        before = self.count - counted
        search.tell = lambda domains, open_domains, bound: self.tell(before + domains, open_domains, bound)
        found = search.run(limit)
        self.count += stage.search.count - counted
        self.proved[stage.about] = torch.maximum(self.proved[stage.about], stage.search.proved)
        if found is None:
            still = stage.about[stage.search.pool.open]
            closed = torch.ones_like(self.proved, dtype=torch.bool)
            closed[still] = False
            self.proved[closed] = self.proved[closed].clamp(min=0)
            return None
        if found.answer == "unsat":
            self.proved.clamp_(min=0)
        return Found(found.answer, found.witness, self.proved, self.count, found.message)


@dataclass(frozen=True, eq=False)
class _Stage:
    """A search, and which of the conjunctions it is about."""

    about: Tensor
    search: Search
