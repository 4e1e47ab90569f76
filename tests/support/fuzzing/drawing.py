"""Draws of recipes, inputs and balls from a seed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

import torch
from torch import Tensor, nn

import robust_plugins as rp
from support.fuzzing import branches, elementwise, layers, memory, shapes  # noqa: F401 (they register their steps)
from support.fuzzing.source import HEADS, KINDS, Recipe, Written, written

SHAPES = ((2,), (3,), (4,), (6,), (1, 4, 4), (2, 4, 4), (2, 5, 5), (3, 3, 5), (2, 5))


@dataclass(frozen=True)
class Case:
    """A model and where it is bounded."""

    recipe: Recipe
    written: Written
    x: Tensor
    y: Tensor
    """The classes that the model predicts."""
    ball: rp.Ball
    classes: int
    seed: int

    @property
    def spec(self) -> Tensor:
        """Two random rows, and the margins of `y`."""
        draw = torch.Generator().manual_seed(self.seed)
        rows = torch.randn((len(self.x), 2, self.classes), generator=draw, dtype=torch.float64).to(self.x.dtype)
        return torch.cat((rows, rp.margin_spec(self.y, self.classes, dtype=self.x.dtype)), 1)

    def report(self) -> str:
        """Code that gives the case."""
        x = f"torch.tensor({self.x.tolist()}, dtype={self.x.dtype})"
        return f"{self.written.text}\nmodel = Model().eval()\nx = {x}\nball = rp.{self.ball}"


def outputs(model: nn.Module, x: Tensor) -> Tensor:
    """The logits; for a model of one output z those that the package gives it, (-z, z) / 2, whose margin is z."""
    z: Tensor = model(x.clone())
    if z.dim() == 1 or z.shape[1] == 1:
        z = z.reshape(-1, 1)
        return torch.cat((-z, z), 1) / 2
    return z


def draw_recipe(seed: int, *, likely: dict[str, float] | None = None, rare: bool = False) -> Recipe:
    """A recipe. Each draw leaves some of the steps out, so that others come often together; `likely` are factors.

    With `rare`, every recipe may have the steps that few certifiers accept.
    """
    random = Random(seed)
    kinds = random.choices(("plain", "usual", "rare"), (5, 3, 2))[0]
    kinds = "rare" if rare else kinds
    weights = {name: kind.weight * (likely or {}).get(name, 1.0) for name, kind in KINDS.items()}
    for name, kind in KINDS.items():
        if (kind.rare and kinds != "rare") or (kinds == "plain" and kind.weight < 1):
            weights[name] = 0.0
        elif random.random() < 0.4:
            weights[name] *= 0.0 if kind.weight < 4 else 0.5
    for name in random.sample(sorted(weights), 3):
        weights[name] *= 8
    features = random.choice(SHAPES[:-1] if kinds == "plain" else SHAPES)
    names = random.choices(list(weights), list(weights.values()), k=random.choice((1, 2, 3, 4, 5, 6, 7, 9)))
    heads = {name: kind.weight for name, kind in HEADS.items()}
    (last,) = random.choices(list(heads), list(heads.values()))
    return Recipe(
        features, random.choice((2, 3, 3, 4)), tuple((name, random.getrandbits(20)) for name in names),
        (last, random.getrandbits(20)), random.random() < 0.6,
    )  # fmt: skip


def draw_case(recipe: Recipe, seed: int, *, batch: int = 3) -> Case | None:
    """The recipe's model with inputs and a ball of this seed; None where the model is of no use."""
    random, draw = Random(seed), torch.Generator().manual_seed(seed)
    code = written(recipe)
    clip = random.choice((None, (0.0, 1.0), (0.0, 1.0), (-1.0, 1.0)))
    low, high = clip or random.choice(((-2.0, 2.0), (0.0, 1.0)))
    x = low + (high - low) * torch.rand((batch, *recipe.features), generator=draw, dtype=torch.float64)
    if random.random() < 0.3:  # on the border, on values at which activations have their kinks, and on the same value
        at = torch.rand(x.shape, generator=draw) < random.choice((0.2, 0.9))
        x = torch.where(at, torch.tensor([low, high, 0.5, low])[torch.randint(4, x.shape, generator=draw)].double(), x)
        if random.random() < 0.3:
            x = torch.full_like(x, random.choice((0.1, 0.5, 1.0))).clamp(low, high)
    eps = [10 ** random.uniform(-4, 0) for _ in range(batch)]
    ball = random.choice((rp.Linf, rp.Linf, rp.Linf, rp.L2, rp.L1))(
        eps=eps if random.random() < 0.25 else eps[0], clip=clip
    )
    x = x.to(recipe.dtype)
    if clip is not None:
        x = x.clamp(*clip)
    try:
        with torch.no_grad():
            value = outputs(code.model(), x)
            outputs(code.model().double(), x.double())  # where points are looked for
    except (RuntimeError, ValueError, TypeError, IndexError):
        return None  # steps that do not go together, a sample alone, or constants of one precision
    if value.shape[0] != batch or value.dim() != 2 or not 2 <= value.shape[1] <= 40:
        return None
    if not (value.isfinite().all() and value.abs().max() < 1e6):
        return None
    return Case(recipe, code, x, value.argmax(1), ball, value.shape[1], seed)


def without(recipe: Recipe, index: int) -> Recipe:
    """The recipe without one step."""
    return replace(recipe, steps=recipe.steps[:index] + recipe.steps[index + 1 :])
