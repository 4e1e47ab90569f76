"""ART's attacks on training data: with clean labels, inside the budget, by the gradients of a network that has learned.

All of them move features only and leave the labels, so that whoever looks at the data sees nothing. ART computes in
float32; its samples are brought back into the budget in the dtype of the data.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from robust_plugins.adapters.art.silence import silent
from robust_plugins.errors import ArgumentError, ComponentError
from robust_plugins.poisoning.attacks.backdoors import Backdoor, check_size, drawn, patches
from robust_plugins.poisoning.attacks.goals import aim, check_clean_labels, features_of
from robust_plugins.poisoning.attacks.interface import Case, PoisoningAttack, sample_outputs
from robust_plugins.poisoning.budget import PoisoningBudget
from robust_plugins.poisoning.concrete.batches import PoisonedBatch
from robust_plugins.poisoning.concrete.trainings import Trainings

SCHEDULE = (0.1, 0.01, 0.001, 0.0001)
MILESTONES = (0.4, 0.6, 0.8, 0.88)
"""ART's steps, and the parts of all epochs after which each of them ends."""


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
        _check_steps(self.steps)
        if not 0 < self.similarity < float("inf"):
            raise ArgumentError("similarity", repr(self.similarity), accepted="a finite number above 0",
                                hint="Less moves samples farther.")  # fmt: skip

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

        estimator = _surrogate(trainings, case.budget, x, featured=True)
        with silent():
            attack = FeatureCollisionAttack(
                estimator, target=_array(goal_x[:1]), feature_layer=0, max_iter=self.steps,
                similarity_coeff=self.similarity, verbose=False,
            )  # fmt: skip
            found, _ = attack.poison(_array(x[chosen]))
        return _brought_back(case.budget, x, y, chosen, found)


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
        _check_steps(self.steps)
        _check_steps(self.restarts, "restarts")

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

        estimator = _surrogate(trainings, case.budget, x)
        rows = (y == goal_y[0]).nonzero().flatten()
        with silent(), _in_this_process():
            attack = GradientMatchingAttack(
                estimator, percent_poison=min((len(chosen) + 0.5) / len(rows), 1.0), epsilon=_radius(case.budget),
                max_trials=self.restarts, max_epochs=self.steps, learning_rate_schedule=_schedule(self.steps),
                clip_values=tuple(estimator.clip_values.tolist()), verbose=0,
            )  # fmt: skip
            found, _ = attack.poison(_array(goal_x), goal_y.cpu().numpy(), _array(x[rows]), y[rows].cpu().numpy())
        return _brought_back(case.budget, x, y, rows, found)


@dataclass(frozen=True, kw_only=True)
class CleanLabelBackdoor(Backdoor):
    """Sets a trigger in samples of its own class, made hard by an adversarial search, so that the trigger is learned.

    Turner et al. 2018, "Clean-label backdoor attacks", section 4.2, by ART: PGD within half of the budget's radius,
    then the trigger of `StaticBackdoor` as far as the budget reaches. `size` and `value` are its; `steps` >= 1.
    """

    size: int = 2
    steps: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        check_size(self.size)
        _check_steps(self.steps)

    @property
    def name(self) -> str:  # noqa: D102 (inherited)
        return "clean-label backdoor"

    def place(self, x: Float[Tensor, "samples *features"]) -> Tensor:  # noqa: D102 (inherited)
        return patches(x, self.size, None)

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
            return _array(self.trigger(torch.from_numpy(samples)))

        estimator = _surrogate(trainings, case.budget, x)
        labels = np.eye(estimator.nb_classes, dtype=np.float32)
        eps = _radius(case.budget) / 2
        with silent():
            attack = PoisoningAttackCleanLabelBackdoor(
                PoisoningAttackBackdoor(triggered), estimator, target=labels[self.target], pp_poison=0.5, eps=eps,
                eps_step=2.5 * eps / self.steps, max_iter=self.steps,
            )  # fmt: skip
            # ART draws which samples it poisons, with repetition; its two parts are run one after the other instead.
            harder = attack.attack.generate(_array(x[chosen]), labels[y[chosen].cpu().numpy()])
            found, _ = attack.backdoor.poison(harder, labels[self.target], broadcast=True)
        return _brought_back(case.budget, x, y, chosen, found)


@dataclass(frozen=True, kw_only=True)
class SleeperAgent(Backdoor):
    """Moves samples of the trigger's class by gradient matching, so that a trigger works that is in none of them.

    Souri et al. 2022, "Sleeper agent", algorithm 1, by ART, without its retraining of the surrogate.
    Triggers are set in validation samples (without those in training samples) of the class `source`, None: of the most
    frequent other class. `size` and `value` are as in `StaticBackdoor`; `steps` >= 1.
    """

    size: int = 2
    source: int | None = None
    steps: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        check_size(self.size)
        _check_steps(self.steps)

    @property
    def name(self) -> str:  # noqa: D102 (inherited)
        return "sleeper agent"

    def place(self, x: Float[Tensor, "samples *features"]) -> Tensor:  # noqa: D102 (inherited)
        return patches(x, self.size, None)

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

        estimator = _surrogate(trainings, case.budget, x)
        labels = np.eye(estimator.nb_classes, dtype=np.float32)
        low, high = estimator.clip_values.tolist()
        with silent(), _in_this_process():
            attack = Triggered(
                estimator, percent_poison=min((count + 0.5) / len(rows), 1.0), patch=np.zeros((1, 1, 1)),
                indices_target=np.arange(len(rows)),
                epsilon=_radius(case.budget) / (high - low), max_trials=1, max_epochs=self.steps,
                learning_rate_schedule=_schedule(self.steps), clip_values=(low, high), verbose=0,
                selection_strategy="max-norm", class_source=source,
                class_target=self.target, device_name=str(estimator.device),
            )  # fmt: skip
            aimed = np.repeat(labels[[self.target]], len(triggers), axis=0)
            found, _ = attack.poison(
                _array(self.trigger(triggers)), aimed, _array(x[rows]), labels[y[rows].cpu().numpy()],
                _array(seen_x), labels[seen_y.cpu().numpy()],
            )  # fmt: skip
        return _brought_back(case.budget, x, y, rows, found)


def _bases(case: Case, trainings: Trainings, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The samples of the goal's class that move, and the goal."""
    check_clean_labels(case.budget, y)
    goal_x, goal_y = aim(case, trainings, x, y)
    return drawn(y == goal_y[:1], case.budget.points, case.generator), goal_x, goal_y


def _surrogate(trainings: Trainings, budget: PoisoningBudget, x: Tensor, *, featured: bool = False) -> Any:
    """An estimator of ART around a copy of the trained network, in float32."""
    from art.estimators.classification import PyTorchClassifier

    class Featured(PyTorchClassifier):  # type: ignore[misc] # ART is untyped
        """Its activations are the inputs of the last linear layer, whatever the layer is called."""

        def get_activations(self, x: Any, layer: object = None, batch_size: int = 128, framework: bool = False) -> Any:
            given = torch.as_tensor(x, device=self.device)
            found = features_of(self.model, given)
            return found if framework else found.detach().cpu().numpy()

    model: nn.Module = trainings.trained().float().eval().requires_grad_()
    low, high = budget.clip or (x.min().item(), x.max().item())
    cuda = torch.cuda.is_available()  # ART's gradient matching asks this, and nothing else, where to compute
    with silent():
        return (Featured if featured else PyTorchClassifier)(
            model=model.cuda() if cuda else model.cpu(), loss=nn.CrossEntropyLoss(), input_shape=tuple(x.shape[1:]),
            nb_classes=sample_outputs(trainings, x), clip_values=(low, max(high, low + 1e-6)),
            preprocessing=(0.0, 1.0), device_type="gpu" if cuda else "cpu",
        )  # fmt: skip


def _brought_back(budget: PoisoningBudget, x: Tensor, y: Tensor, chosen: Tensor, found: np.ndarray) -> PoisonedBatch:
    """The batch with the chosen samples as ART has moved them, as far as the budget allows."""
    z = torch.from_numpy(np.asarray(found)).to(x)
    if z.shape != x[chosen].shape:
        raise ComponentError(f"ART returned poison of shape {tuple(z.shape)}; expected {tuple(x[chosen].shape)}")
    same = z == x[chosen].float().to(x)  # what float32 alone has moved is left
    z = torch.where(same | ~z.isfinite(), x[chosen], budget.project(z, x[chosen]))
    return PoisonedBatch.whole(x.index_copy(0, chosen, z), y)


@contextmanager
def _in_this_process() -> Iterator[None]:
    """Inside, torch's loaders start no workers, as ART's gradient matching has them do in every epoch."""
    loader = torch.utils.data.DataLoader

    @functools.wraps(loader, updated=())
    def alone(*args: Any, **kwargs: Any) -> Any:
        return loader(*args, **{**kwargs, "num_workers": 0})

    torch.utils.data.DataLoader = alone  # type: ignore[assignment, misc]
    try:
        yield
    finally:
        torch.utils.data.DataLoader = loader  # type: ignore[misc]


def _schedule(steps: int) -> tuple[list[float], list[int]]:
    return list(SCHEDULE), [max(round(part * steps), 1) for part in MILESTONES]


def _radius(budget: PoisoningBudget) -> float:
    """The largest radius, within which ART searches; the budget then cuts what has its own limits."""
    return float(budget.largest)


def _array(x: Tensor) -> np.ndarray:
    found: np.ndarray = x.detach().cpu().numpy().astype(np.float32)
    return found.copy()


def _check_steps(value: object, name: str = "steps") -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ArgumentError(
            name, repr(value), accepted="an integer of at least 1", hint="More is stronger, and slower."
        )


def _check_target(target: int, trainings: Trainings, x: Tensor) -> None:
    classes = sample_outputs(trainings, x)
    if len(x) and target >= classes:
        raise ArgumentError("target", target, accepted=f"a class of the model, below {classes}",
                            hint="A backdoor means one class.")  # fmt: skip
