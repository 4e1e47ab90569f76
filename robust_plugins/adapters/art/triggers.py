"""ART's backdoors with clean labels, inside the budget: a trigger is learned, and no label is changed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from robust_plugins.adapters.art.silence import silent
from robust_plugins.adapters.art.surrogate import array, brought_back, in_this_process, radius, schedule, surrogate
from robust_plugins.errors import ArgumentError
from robust_plugins.harness.parameters import check_count
from robust_plugins.poisoning.attacks.backdoors import StaticBackdoor, drawn
from robust_plugins.poisoning.attacks.goals import check_clean_labels
from robust_plugins.poisoning.attacks.interface import Case, sample_outputs
from robust_plugins.poisoning.concrete.batches import PoisonedBatch
from robust_plugins.poisoning.concrete.trainings import Trainings


@dataclass(frozen=True, kw_only=True)
class CleanLabelBackdoor(StaticBackdoor):
    """Sets a trigger in samples of its own class, made hard by an adversarial search, so that the trigger is learned.

    Turner et al. 2018, "Clean-label backdoor attacks", section 4.2, by ART: PGD within half of the budget's radius,
    then the trigger of `StaticBackdoor`, with its `size`, as far as the budget reaches. `steps` >= 1.
    """

    steps: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("steps", self.steps)

    @property
    def name(self) -> str:  # noqa: D102 (inherited)
        return "clean-label backdoor"

    def poison(  # noqa: D102 (inherited)
        self,
        case: Case,
        trainings: Trainings,
        x: Float[Tensor, "samples *features"],
        y: Shaped[Tensor, "samples *labels"],
    ) -> PoisonedBatch:
        check_clean_labels(case.budget, y)
        _check_target(self.target, trainings, x)
        chosen = drawn(y == self.target, case.budget.points, case.generator)
        if not len(chosen):
            return PoisonedBatch.whole(x, y)
        from art.attacks.poisoning import PoisoningAttackBackdoor, PoisoningAttackCleanLabelBackdoor

        def triggered(samples: np.ndarray) -> np.ndarray:
            return array(self.trigger(torch.from_numpy(samples)))

        estimator = surrogate(trainings, case.budget, x)
        labels = np.eye(estimator.nb_classes, dtype=np.float32)
        eps = radius(case.budget) / 2
        with silent():
            attack = PoisoningAttackCleanLabelBackdoor(
                PoisoningAttackBackdoor(triggered), estimator, target=labels[self.target], pp_poison=0.5, eps=eps,
                eps_step=2.5 * eps / self.steps, max_iter=self.steps,
            )  # fmt: skip
            # ART draws which samples it poisons, with repetition; its two parts are run one after the other instead.
            harder = attack.attack.generate(array(x[chosen]), labels[y[chosen].cpu().numpy()])
            found, _ = attack.backdoor.poison(harder, labels[self.target], broadcast=True)
        return brought_back(case.budget, x, y, chosen, found)


@dataclass(frozen=True, kw_only=True)
class SleeperAgent(StaticBackdoor):
    """Moves samples of the trigger's class by gradient matching, so that a trigger works that is in none of them.

    Souri et al. 2022, "Sleeper agent", algorithm 1, by ART, without its retraining of the surrogate.
    Triggers are set in validation samples (without those in training samples) of the class `source`, None: of the most
    frequent other class. `size` and `value` are as in `StaticBackdoor`; `steps` >= 1.
    """

    source: int | None = None
    steps: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("steps", self.steps)

    @property
    def name(self) -> str:  # noqa: D102 (inherited)
        return "sleeper agent"

    def poison(  # noqa: D102 (inherited)
        self,
        case: Case,
        trainings: Trainings,
        x: Float[Tensor, "samples *features"],
        y: Shaped[Tensor, "samples *labels"],
    ) -> PoisonedBatch:
        check_clean_labels(case.budget, y)
        _check_target(self.target, trainings, x)
        rows = (y == self.target).nonzero().flatten()
        seen_x, seen_y = case.validation or (x, y)
        others = seen_y[seen_y != self.target]
        count = min(case.budget.points, len(rows))
        if not count or not len(others):
            return PoisonedBatch.whole(x, y)
        source = int(others.mode().values) if self.source is None else self.source
        triggers = seen_x[seen_y == source]
        if not len(triggers) or source == self.target:
            raise ArgumentError("source", source, accepted="another class than target, with samples", hint="Or None.")
        from art.attacks.poisoning import SleeperAgentAttack

        class Triggered(SleeperAgentAttack):  # type: ignore[misc] # ART is untyped
            """ART's own trigger is a square of an image; ours is in the samples already."""

            def _apply_trigger_patch(self, x_trigger: np.ndarray) -> np.ndarray:
                return x_trigger

        estimator = surrogate(trainings, case.budget, x)
        labels = np.eye(estimator.nb_classes, dtype=np.float32)
        low, high = estimator.clip_values.tolist()
        with silent(), in_this_process():
            attack = Triggered(
                estimator, percent_poison=min((count + 0.5) / len(rows), 1.0), patch=np.zeros((1, 1, 1)),
                indices_target=np.arange(len(rows)),
                epsilon=radius(case.budget) / (high - low), max_trials=1, max_epochs=self.steps,
                learning_rate_schedule=schedule(self.steps), clip_values=(low, high), verbose=0,
                selection_strategy="max-norm", class_source=source,
                class_target=self.target, device_name=str(estimator.device),
            )  # fmt: skip
            aimed = np.repeat(labels[[self.target]], len(triggers), axis=0)
            found, _ = attack.poison(
                array(self.trigger(triggers)), aimed, array(x[rows]), labels[y[rows].cpu().numpy()],
                array(seen_x), labels[seen_y.cpu().numpy()],
            )  # fmt: skip
        return brought_back(case.budget, x, y, rows, found)


def _check_target(target: int, trainings: Trainings, x: Tensor) -> None:
    classes = sample_outputs(trainings, x)
    if len(x) and target >= classes:
        raise ArgumentError("target", target, accepted=f"a class of the model, below {classes}",
                            hint="A backdoor means one class.")  # fmt: skip
