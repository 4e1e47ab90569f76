"""Batches as the trained part of a network takes them: clean features, and sets of moved ones."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from robust_plugins.intervals import Interval, Network, trace
from robust_plugins.poisoning.abstract.settings import Plan
from robust_plugins.poisoning.abstract.split import Split, split
from robust_plugins.poisoning.box import sample_gradients
from robust_plugins.poisoning.box.sample_gradients import Inputs


@dataclass(eq=False)
class Prepared:
    """One batch: its features where the trained part begins, clean and moved, and its labels."""

    x: Tensor
    y: Tensor
    clean: Inputs
    moved: Inputs | None


class Preparation:
    """Cuts the network where its trained part begins, and sends every batch through the fixed part, once.

    What was prepared is kept for the next epochs where batches come by index, and used while their data are the same.
    """

    def __init__(self, plan: Plan, model: nn.Module, names: list[str]) -> None:
        self.plan, self.model, self.names = plan, model, names
        self.kept: dict[int, Prepared] = {}
        self.parts: Split | None = None

    def __call__(
        self, index: int | None, x: Float[Tensor, "samples *features"], y: Shaped[Tensor, "samples *labels"]
    ) -> Prepared:
        """The batch, as a `Reader` gives it, number `index` of its epoch where that is known."""
        self.network(x)
        known = None if index is None else self.kept.get(index)
        if known is not None and torch.equal(known.x, x) and torch.equal(known.y, y):
            return known
        with torch.no_grad(), sample_gradients.arithmetic(self.plan.rounding):
            clean, moved = self._features(x)
        # Copies, in case the caller fills the same tensors with other data.
        batch = Prepared(x.clone(), y.clone(), clean, moved)
        if index is not None:
            self.kept[index] = batch
        return batch

    def network(self, x: Float[Tensor, "samples *features"]) -> Network:
        """The traced model for inputs like x, cut on the first call."""
        network = trace(self.model, x)
        if self.parts is None:
            self.parts = split(network, self.names)
        return network

    def _features(self, x: Tensor) -> tuple[Inputs, Inputs | None]:
        """The clean and the moved features where the trained part begins."""
        assert self.parts is not None
        fixed, trained = self.parts.features, self.parts.trained({})
        start = self._moved_inputs(x) if self.plan.budget.points else None
        if fixed is None:
            return Inputs(Interval.point(x)), None if start is None else self._relaxed(start, trained)
        clean = Inputs(fixed.forward(Interval.point(x))[-1])
        if start is None:
            return clean, None
        moved = Inputs(sample_gradients.forward(fixed, self._relaxed(start, fixed), differing=False).outputs)
        return clean, self._relaxed(moved, trained)

    def _moved_inputs(self, x: Tensor) -> Inputs:
        budget = self.plan.budget
        return Inputs(budget.box(x), "none", x, budget.radius(x), budget.norm)

    def _relaxed(self, inputs: Inputs, network: Network) -> Inputs:
        """The inputs with the relaxation that the plan has for a network."""
        kind = self.plan.relaxation
        if kind == "auto":
            kind = (
                sample_gradients.affordable(network, inputs.box.lower, inputs.form()[1].shape[1])
                if len(inputs.box)
                else "none"
            )
        return replace(inputs, relaxation=kind)
