"""Recipes of random models: a list of steps, each drawn from its own seed, and the source code that they give.

The source stands alone, so that a failing model can be printed and pasted. A step chooses what fits the shape so far:
one that is left out leaves the others as they are, where they still fit, and a failing recipe can be shrunk.
"""

from __future__ import annotations

import linecache
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from random import Random
from typing import Any
from zlib import crc32

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Recipe:
    """What a model is made from."""

    features: tuple[int, ...]
    classes: int
    steps: tuple[tuple[str, int], ...]
    """Names of steps, each with its seed."""
    head: tuple[str, int]
    double: bool

    @property
    def dtype(self) -> torch.dtype:
        return torch.float64 if self.double else torch.float32


@dataclass
class Draft:
    """A model in writing: lines of `__init__` and of `forward`, which computes `h` from `h`."""

    shape: tuple[int, ...]
    classes: int = 3
    init: list[str] = field(default_factory=list)
    forward: list[str] = field(default_factory=list)
    flags: set[str] = field(default_factory=set)
    """`batch`: a row depends on the others; `chance`: on random numbers; `first`: nothing has been computed yet."""
    names: count[int] = field(default_factory=count)

    def keep(self, value: str) -> str:
        """An attribute of the model with this value, by its name."""
        name = f"self.a{next(self.names)}"
        self.init.append(f"{name} = {value}")
        return name

    def layer(self, random: Random, code: str) -> str:
        """A module with parameters of a random size, by its name."""
        name = self.keep(code)
        if random.random() < 0.4:
            factor = random.choice((0.003, 0.3, 2.0, 2.0, 4.0))
            self.init.append(f"for p in {name}.parameters(): p.data.mul_({factor})")
        if ("Linear(" in code or "Conv" in code) and "bias=False" not in code and random.random() < 0.15:
            self.init.append(f"{name}.bias.data[::2].add_({random.choice((-20.0, -3.0, 0.7, 20.0))})")
        return name

    def run(self, line: str) -> None:
        self.forward.append(line)

    @property
    def size(self) -> int:
        return int(torch.tensor(self.shape).prod())


StepFunction = Callable[[Draft, Random], bool | None]
"""Writes a step, or returns False where it does not fit the shape."""


@dataclass(frozen=True)
class Kind:
    """A step of the grammar."""

    write: StepFunction
    ranks: tuple[int, ...]
    """Of the samples that it fits: 1 vectors, 2 sequences, 3 images."""
    weight: float
    rare: bool
    """Few certifiers accept it, so that few models should have it."""


KINDS: dict[str, Kind] = {}
HEADS: dict[str, Kind] = {}


def step(*ranks: int, weight: float = 1.0, rare: bool = False) -> Callable[[StepFunction], StepFunction]:
    """Registers a step for samples of these ranks, or of all."""

    def decorate(write: StepFunction) -> StepFunction:
        KINDS[write.__name__] = Kind(write, ranks or (1, 2, 3), weight, rare)
        return write

    return decorate


def head(weight: float = 1.0, *, rare: bool = False) -> Callable[[StepFunction], StepFunction]:
    """Registers what may end a model."""

    def decorate(write: StepFunction) -> StepFunction:
        HEADS[write.__name__] = Kind(write, (1, 2, 3), weight, rare)
        return write

    return decorate


@dataclass(frozen=True)
class Written:
    """The code of a recipe's model."""

    text: str
    flags: frozenset[str]

    def model(self) -> nn.Module:
        """A model in evaluation mode, with the same weights every time."""
        name = f"<fuzzed {crc32(self.text.encode()):08x}>"
        linecache.cache[name] = (len(self.text), None, self.text.splitlines(keepends=True), name)
        names: dict[str, Any] = {"torch": torch, "nn": nn, "F": F, "Tensor": Tensor, "__name__": "fuzzed"}
        with torch.random.fork_rng(devices=[]):
            exec(compile(self.text, name, "exec"), names)
            model: nn.Module = names["Model"]()
        return model.eval()


def written(recipe: Recipe) -> Written:
    """The source of `recipe`. Steps that do not fit are left out."""
    draft = Draft(recipe.features, recipe.classes)
    draft.flags.add("first")
    for kinds, (name, seed) in (*((KINDS, s) for s in recipe.steps), (HEADS, recipe.head)):
        kind, random = kinds[name], Random(seed)
        if len(draft.shape) not in kind.ranks:
            continue
        before = len(draft.init), len(draft.forward), draft.shape, set(draft.flags)
        draft.init.append(f"torch.manual_seed({seed})")
        if kind.write(draft, random) is False:
            del draft.init[before[0] :], draft.forward[before[1] :]
            draft.shape, draft.flags = before[2], before[3]
            continue
        if len(draft.init) == before[0] + 1:
            draft.init.pop()
        draft.flags.discard("first")
    body = ["super().__init__()", *draft.init]
    lines = ["class Model(nn.Module):", "    def __init__(self):", *(f"        {line}" for line in body)]
    if recipe.double:
        lines.append("        self.double()")
    lines += ["", "    def forward(self, h):", *(f"        {line}" for line in draft.forward), "        return h", ""]
    return Written("\n".join(lines), frozenset(draft.flags - {"first"}))
