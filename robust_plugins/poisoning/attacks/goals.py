"""Poison with clean labels that aims at single samples: what it needs to know, and the bullseye polytope."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Integer, Shaped
from torch import Tensor, nn

from robust_plugins.errors import ArgumentError, UnsupportedModelError
from robust_plugins.harness.parameters import check_count
from robust_plugins.poisoning.attacks.backdoors import drawn
from robust_plugins.poisoning.attacks.interface import Case, PoisoningAttack
from robust_plugins.poisoning.budget import PoisoningBudget
from robust_plugins.poisoning.concrete.batches import PoisonedBatch
from robust_plugins.poisoning.concrete.trainings import Trainings


@dataclass(frozen=True, kw_only=True)
class BullseyePolytope(PoisoningAttack):
    """Moves samples of the goal's class so that the mean of their features is that of the sample aimed at.

    Aghakhani et al. 2021, "Bullseye polytope", equation 2; the features are the inputs of the last linear layer. With
    several samples in the goal, it aims at the mean of their features (section 4.2 there). `steps` >= 1 of projected
    descent by the sign of the gradient, shrinking to nothing.
    """

    steps: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("steps", self.steps)

    @property
    def name(self) -> str:  # noqa: D102 (inherited)
        return "bullseye polytope"

    def poison(  # noqa: D102 (inherited)
        self,
        case: Case,
        trainings: Trainings,
        x: Float[Tensor, "samples *features"],
        y: Shaped[Tensor, "samples *labels"],
    ) -> PoisonedBatch:
        budget = case.budget
        check_clean_labels(budget, y)
        goal_x, goal_y = aim(case, trainings, x, y)
        chosen = drawn(y == goal_y[:1], budget.points, case.generator)
        if not len(chosen):
            return PoisonedBatch.whole(x, y)
        model = trainings.trained()
        with torch.no_grad():
            centre = features_of(model, goal_x).mean(0)
        base = x[chosen]
        z, best, least = base.clone(), base, torch.inf
        radius = budget.radius(base)
        for step in range(self.steps + 1):
            z = z.detach().requires_grad_()
            distance = (features_of(model, z).mean(0) - centre).square().sum()
            if distance.item() < least:
                best, least = z.detach(), distance.item()
            (gradient,) = torch.autograd.grad(distance, z)
            size = radius * (0.5 * (1 - step / (self.steps + 1)))
            z = budget.project(z.detach() - size * gradient.sign(), base)
        return PoisonedBatch.whole(x.index_copy(0, chosen, best), y)


def aim(
    case: Case, trainings: Trainings, x: Float[Tensor, "samples *features"], y: Integer[Tensor, " samples"]
) -> tuple[Float[Tensor, "aimed *features"], Integer[Tensor, " aimed"]]:
    """The samples aimed at and the classes that are wanted for them.

    Without a goal in `case`: the first validation sample, or the batch's first, and the class that is likeliest for it
    after its own. Raises ArgumentError for goals of several classes, where an attack moves samples of one.
    """
    if case.goal is not None:
        goal_x, goal_y = case.goal
        if len(goal_y.unique()) != 1:
            raise ArgumentError("goal", f"with {len(goal_y.unique())} classes", accepted="samples for which one class "
                                "is wanted", hint="Poison for one class at a time.")  # fmt: skip
        return goal_x.to(x), goal_y.to(y)
    seen_x, seen_y = case.validation or (x, y)
    if not len(seen_x):
        return x[:0], y[:0]
    scores = trainings.outputs(seen_x[:1])[0]
    return seen_x[:1], scores.scatter(1, seen_y[:1].long().unsqueeze(1), -torch.inf).argmax(1).to(y)


def check_clean_labels(budget: PoisoningBudget, y: Shaped[Tensor, "samples *labels"]) -> None:
    """Raises ArgumentError for budgets that move no features, and for labels that are no classes."""
    if y.is_floating_point() or y.dim() != 1:
        raise ArgumentError("batches", f"labels of type {y.dtype} and shape {tuple(y.shape)}", accepted="classes, and "
                            "a loss over them", hint="The attack moves samples of one class.")  # fmt: skip
    if not budget.nothing and not budget.points:
        raise ArgumentError("budget", budget, accepted="one with points and eps: the attack moves features and "
                            "leaves the labels", hint="As PoisoningBudget(points=9, eps=0.1).")  # fmt: skip


def features_of(model: nn.Module, x: Float[Tensor, "samples *features"]) -> Float[Tensor, "samples hidden"]:
    """The inputs of the last linear layer that `x` reaches, differentiable in `x`.

    Raises UnsupportedModelError for a model without one.
    """
    seen: list[Tensor] = []
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        for module in model.modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        model(x)
    finally:
        for hook in hooks:
            hook.remove()
    if not seen:
        raise UnsupportedModelError("the model has no nn.Linear, whose inputs would be its features")
    return seen[-1].flatten(1)
