"""ART's attacks on training data that aim at single samples: with clean labels, inside the budget.

They move features only and leave the labels, so that whoever looks at the data sees nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Shaped
from torch import Tensor

from robust_plugins.adapters.art.silence import silent
from robust_plugins.adapters.art.surrogate import array, brought_back, in_this_process, radius, schedule, surrogate
from robust_plugins.harness.parameters import check_count, check_length
from robust_plugins.poisoning.attacks.backdoors import drawn
from robust_plugins.poisoning.attacks.goals import aim, check_clean_labels
from robust_plugins.poisoning.attacks.interface import Case, PoisoningAttack
from robust_plugins.poisoning.concrete.batches import PoisonedBatch
from robust_plugins.poisoning.concrete.trainings import Trainings


@dataclass(frozen=True, kw_only=True)
class FeatureCollision(PoisoningAttack):
    """Moves samples of the goal's class so that their features are those of the sample aimed at.

    Shafahi et al. 2018, "Poison frogs", algorithm 1, by ART; the features are the inputs of the last linear layer. It
    aims at the first sample of the goal alone. `steps` >= 1; `similarity` > 0 weighs how near the samples stay to
    themselves, where the budget keeps them near as well.
    """

    steps: int = 120
    similarity: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("steps", self.steps)
        check_length(
            "similarity", self.similarity, unit="weights of a squared distance", hint="Less moves samples farther."
        )

    @property
    def name(self) -> str:  # noqa: D102 (inherited)
        return "feature collision"

    def poison(  # noqa: D102 (inherited)
        self,
        case: Case,
        trainings: Trainings,
        x: Float[Tensor, "samples *features"],
        y: Shaped[Tensor, "samples *labels"],
    ) -> PoisonedBatch:
        chosen, goal_x, _ = _bases(case, trainings, x, y)
        if not len(chosen):
            return PoisonedBatch.whole(x, y)
        from art.attacks.poisoning import FeatureCollisionAttack

        estimator = surrogate(trainings, case.budget, x, featured=True)
        with silent():
            attack = FeatureCollisionAttack(
                estimator, target=array(goal_x[:1]), feature_layer=0, max_iter=self.steps,
                similarity_coeff=self.similarity, verbose=False,
            )  # fmt: skip
            found, _ = attack.poison(array(x[chosen]))
        return brought_back(case.budget, x, y, chosen, found)


@dataclass(frozen=True, kw_only=True)
class GradientMatching(PoisoningAttack):
    """Moves samples of the goal's class so that training on them is training for the goal.

    Geiping et al. 2021, "Witches' brew", algorithm 1, by ART: the cosine between the gradient of the poisoned samples'
    loss and that of the goal. `steps` >= 1 of each of `restarts` >= 1 draws of samples.
    """

    steps: int = 100
    restarts: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("steps", self.steps)
        check_count("restarts", self.restarts)

    @property
    def name(self) -> str:  # noqa: D102 (inherited)
        return "gradient matching"

    def poison(  # noqa: D102 (inherited)
        self,
        case: Case,
        trainings: Trainings,
        x: Float[Tensor, "samples *features"],
        y: Shaped[Tensor, "samples *labels"],
    ) -> PoisonedBatch:
        chosen, goal_x, goal_y = _bases(case, trainings, x, y)
        if not len(chosen):
            return PoisonedBatch.whole(x, y)
        from art.attacks.poisoning import GradientMatchingAttack

        estimator = surrogate(trainings, case.budget, x)
        rows = (y == goal_y[0]).nonzero().flatten()
        with silent(), in_this_process():
            attack = GradientMatchingAttack(
                estimator, percent_poison=min((len(chosen) + 0.5) / len(rows), 1.0), epsilon=radius(case.budget),
                max_trials=self.restarts, max_epochs=self.steps, learning_rate_schedule=schedule(self.steps),
                clip_values=tuple(estimator.clip_values.tolist()), verbose=0,
            )  # fmt: skip
            found, _ = attack.poison(array(goal_x), goal_y.cpu().numpy(), array(x[rows]), y[rows].cpu().numpy())
        return brought_back(case.budget, x, y, rows, found)


def _bases(case: Case, trainings: Trainings, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The samples of the goal's class that move, and the goal."""
    check_clean_labels(case.budget, y)
    goal_x, goal_y = aim(case, trainings, x, y)
    return drawn(y == goal_y[:1], case.budget.points, case.generator), goal_x, goal_y
