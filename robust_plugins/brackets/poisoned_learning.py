"""`poison_and_train`: what an attack on a whole training set does to any learner, beside what votes certify."""

from __future__ import annotations

import copy
from dataclasses import dataclass, fields
from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn

from robust_plugins.brackets.crossing import Crossing, crossings
from robust_plugins.errors import ArgumentError, of_type
from robust_plugins.harness.bracket import Bracket
from robust_plugins.harness.evaluation import evaluation_mode
from robust_plugins.harness.pictures import Bar, bars
from robust_plugins.harness.result import Result
from robust_plugins.harness.stored import stored
from robust_plugins.harness.table import Table
from robust_plugins.harness.weights import Weights
from robust_plugins.poisoning.attacks.backdoors import Backdoor
from robust_plugins.poisoning.attacks.interface import Case, PoisoningAttack
from robust_plugins.poisoning.attacks.registered import poisoning_attack
from robust_plugins.poisoning.budget import PoisoningBudget
from robust_plugins.poisoning.concrete.batches import PoisonedBatch
from robust_plugins.poisoning.concrete.losses import objective
from robust_plugins.poisoning.concrete.optimizers import SGD
from robust_plugins.poisoning.concrete.parameters import trained_names
from robust_plugins.poisoning.concrete.reading import outputs_of
from robust_plugins.poisoning.concrete.trainings import Trainings
from robust_plugins.poisoning.partitions.division import By
from robust_plugins.poisoning.partitions.ensemble import PartitionCertificate, PartitionEnsemble, partition_aggregation
from robust_plugins.poisoning.partitions.learners import Train, check_learner, scores_of, trained

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Samples = tuple[Tensor, Tensor]


@stored
@dataclass(frozen=True)
class Damage:
    """How a model does on clean test samples, on triggers, and on the samples that the poisoner aims at.

    - `accuracy`: on clean test samples.
    - `backdoor`: the part of the test samples of other classes on which the trigger brings the decision to its
      class; None without a trigger, or without such samples.
    - `goal`: the part of the aimed-at samples for which the model decides on the poisoner's classes; None without any.
    """

    accuracy: float
    backdoor: float | None
    goal: float | None


@dataclass(frozen=True, eq=False, repr=False)
class PoisonedLearning(Result):
    """A learner's models with and without poison, the data that made the difference, and what is certified of it.

    - `attack`: the name of the attack.
    - `budget`: what it was allowed to change.
    - `clean`: what the model learnt from the given data does: accuracy, and how often a trigger is obeyed or a target
      reached.
    - `poisoned`: the same of the model that learnt from the poisoned data.
    - `data`: the poisoned training set, (x, y).
    - `changed`: which of the given samples are moved, relabelled or removed; added ones come after all of these in
      `data`.
    - `model`: the model that was trained on the poisoned data.
    - `votes`: the accuracy of the partitions' vote when it learns from the same poisoned data, and the one that no
      poison within the budget can pass; None without partitions.
    - `certificate`: of the partitions' vote; None without partitions.
    - `crossings`: where poison changes a decision of the vote that is proved to stay: one of the two is wrong.

    `save` keeps the weights of `model`, and `load(path, model)` puts them into a copy of a network like it. A model
    that is no network of torch is left out of the file, and None afterwards.
    """

    attack: str
    budget: PoisoningBudget
    clean: Damage
    poisoned: Damage
    data: Samples
    changed: Bool[Tensor, " samples"]
    model: Any
    votes: Bracket[float] | None
    certificate: PartitionCertificate | None
    crossings: tuple[Crossing, ...]

    def __str__(self) -> str:
        return "\n".join(map(str, self.parts()))

    def plot(self) -> Figure:
        """A picture: the scores with and without poison. Raises PluginError without matplotlib."""
        rows = []
        for damage, half in ((self.clean, "clean"), (self.poisoned, "attacked")):
            scores = {"accuracy": damage.accuracy, "trigger obeyed": damage.backdoor, "goal reached": damage.goal}
            rows += [Bar(name, half, value) for name, value in scores.items() if value is not None]  # type: ignore[arg-type]
        if self.votes is not None:
            rows.append(Bar("accuracy of votes", "attacked", self.votes.empirical))
            rows.append(Bar("accuracy of votes", "certified", self.votes.certified))
        return bars(rows, f"share of test samples, poison by {self.attack}")

    def state(self) -> dict[str, Any]:
        """Everything that `from_state` makes it of, for files."""
        model = Weights.of(self.model, tuple(self.data[0].shape[1:])) if isinstance(self.model, nn.Module) else None
        return {f.name: getattr(self, f.name) for f in fields(self)} | {"model": model}

    @classmethod
    def from_state(cls, values: dict[str, Any]) -> PoisonedLearning:
        """The inverse of `state`."""
        return cls(**values)

    def to_records(self) -> list[dict[str, Any]]:
        """For the clean and the poisoned training: accuracy, and where they are asked for, trigger and goal."""
        return [
            {"training data": label, "accuracy": damage.accuracy}
            | ({} if damage.backdoor is None else {"trigger obeyed": damage.backdoor})
            | ({} if damage.goal is None else {"goal reached": damage.goal})
            for label, damage in (("clean", self.clean), (self.attack, self.poisoned))
        ]

    def parts(self) -> list[Table | str]:
        """The table, and what the votes of partitions are worth."""
        records = self.to_records()
        rows = tuple(tuple(v if isinstance(v, str) else f"{v:.3f}" for v in record.values()) for record in records)
        lines = []
        if self.votes is not None:
            achieved, certified = self.votes
            lines.append(f"Votes of partitions: accuracy {achieved:.3f} on the poisoned data, at least {certified:.3f} "
                         "on any of the budget.")  # fmt: skip
        lines += [f"CONTRADICTION: {crossing}" for crossing in self.crossings]
        return [Table(tuple(records[0]), rows, words=1), *(["\n".join(lines)] if lines else [])]

    def __repr__(self) -> str:
        return (f"PoisonedLearning(attack={self.attack!r}, changed={int(self.changed.sum())}, accuracy from "
                f"{self.clean.accuracy:.3f} to {self.poisoned.accuracy:.3f})")  # fmt: skip


def poison_and_train(
    attack: str | PoisoningAttack,
    train: Train | Any,
    x: Float[Tensor, "samples *features"],
    y: Integer[Tensor, " samples"],
    budget: PoisoningBudget,
    *,
    test: Samples,
    surrogate: nn.Module | None = None,
    goal: Samples | None = None,
    partitions: int | None = None,
    by: By = "features",
    classes: int | None = None,
    seed: int = 0,
) -> PoisonedLearning:
    """Poisons a whole training set within the budget, trains on it, and says what that has done.

        rp.poison_and_train("poison:backdoor(target=3)", train, x, y, budget, test=(x_test, y_test))

    - `attack`: a registered name or an attack. Every one takes the whole set for one batch, so that `budget` counts
      samples of the set, and looks at `surrogate` once, before training. Backdoors are judged by their trigger too.
    - `train`: a function from samples and labels to a model, or a classifier with `fit`; it starts anew in every call.
      Random generators are seeded by `seed` for each training.
    - `test`: samples and classes, on which accuracy is measured. Attacks that use validation data see them: the
      poisoner knows what he is measured by.
    - `surrogate`: the network whose gradients the attack follows, in evaluation mode. None: the model that `train`
      makes of the clean data, where that is a network, else a linear one.
    - `goal`: samples and the classes that the poisoned model is to decide on for them.
    - `partitions`: with a number, `partition_aggregation(train, x, y, partitions=..., by=by)` learns from the clean and
      from the poisoned data too; `votes` then holds its accuracy and the certified one, and `crossings` what would
      contradict.
    - `classes`: their number; None, the largest label and 1.

    Label flips by loss are `"poison:loss-ascent"` with a budget of labels, flips by influence `"poison:alignment"` (the
    influence on the test loss, with the identity in the place of the inverse Hessian), the removal of the most helpful
    samples is the same attack with a budget of `removal(k)`, and features move with `points` and `eps`.

    Of an attack that makes several poisoned sets the worst one is kept: by the goal, the backdoor, then the accuracy.
    Raises ComponentError, with the attack's name, where it leaves the budget, and ArgumentError for unusable arguments.
    """
    component = poisoning_attack(attack) if isinstance(attack, str) else attack
    if not isinstance(component, PoisoningAttack):
        raise ArgumentError("attack", repr(attack), accepted="rp.PoisoningAttack, or the name of a registered one",
                            hint="rp.poisoning_attacks() lists them.")  # fmt: skip
    if not isinstance(budget, PoisoningBudget):
        raise ArgumentError("budget", repr(budget), accepted="an rp.PoisoningBudget",
                            hint="For example rp.PoisoningBudget(labels=10).")  # fmt: skip
    check_learner(train)
    x, y = _samples("x, y", (x, y))
    test, goal = _samples("test", test, x), None if goal is None else _samples("goal", goal, x)
    if budget.change == "removal" and budget.k >= len(x):
        raise ArgumentError("budget", f"the removal of {budget.k} of {len(x)} samples", accepted="one that leaves some",
                            hint="Nothing can be learned from no samples.")  # fmt: skip
    classes = _classes(classes, [y, test[1], *([] if goal is None else [goal[1]])])
    clean_model = trained(train, x, y, seed)
    found = _poisoned(component, clean_model, x, y, budget, test, surrogate, goal, classes, seed)
    clean = _damage(clean_model, component, test, goal, classes)
    tries = []
    for number in range(len(found.x)):
        data = found.of(number)
        model = trained(train, *data, seed)
        tries.append((_damage(model, component, test, goal, classes), number, model))
    damage, number, model = max(tries, key=lambda one: (one[0].goal or 0.0, one[0].backdoor or 0.0, -one[0].accuracy))
    changed = ~found.present[number, : len(x)] | (found.y[number, : len(x)] != y)
    changed |= (found.x[number, : len(x)] != x).flatten(1).any(1)
    votes: Bracket[float] | None = None
    certificate: PartitionCertificate | None = None
    crossed: tuple[Crossing, ...] = ()
    if partitions is not None:
        clean_votes, poisoned_votes = (
            partition_aggregation(
                train, *data, partitions=partitions, by=by, classes=classes, seed=seed, progress=False
            )
            for data in ((x, y), found.of(number))
        )
        votes, certificate, crossed = _voted(component.name, clean_votes, poisoned_votes, budget, test)
    return PoisonedLearning(
        component.name, budget, clean, damage, found.of(number), changed, model, votes, certificate, crossed
    )


def _poisoned(
    attack: PoisoningAttack,
    clean_model: Any,
    x: Tensor,
    y: Tensor,
    budget: PoisoningBudget,
    test: Samples,
    surrogate: nn.Module | None,
    goal: Samples | None,
    classes: int,
    seed: int,
) -> PoisonedBatch:
    """The training sets that the attack makes, by the gradients of a network that has learned."""
    if surrogate is None:
        surrogate = clean_model if isinstance(clean_model, nn.Module) else _linear(x, y, classes, seed)
    surrogate = copy.deepcopy(surrogate).requires_grad_()
    names = trained_names(surrogate, None)
    kind = objective("cross_entropy")
    kind.check(budget)
    _check_surrogate(surrogate, x, classes)
    size = sum(p.numel() for p in surrogate.parameters())
    outputs_of(surrogate, x[:1])
    trainings = Trainings(surrogate, names, kind, SGD(lr=1.0), count=attack.trainings(size))
    generator = torch.Generator().manual_seed(seed)
    case = Case(budget=budget, objective=kind, validation=test, generator=generator, goal=goal)
    return attack.poisoned(case, trainings, x, y, seed)


def _linear(x: Tensor, y: Tensor, classes: int, seed: int) -> nn.Module:
    """A linear network that has learned from the samples: what a poisoner has who knows nothing of the learner."""

    def train(x: Tensor, y: Tensor) -> nn.Module:
        model = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), classes)).to(x)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        for _ in range(200):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        return model.eval()

    found: nn.Module = trained(train, x, y, seed)
    return found


def _damage(model: Any, attack: PoisoningAttack, test: Samples, goal: Samples | None, classes: int) -> Damage:
    x, y = test
    accuracy = _hits(model, x, y, classes)
    backdoor = None
    others = y != attack.target if isinstance(attack, Backdoor) else y[:0]
    if isinstance(attack, Backdoor) and bool(others.any()):
        aimed = torch.full_like(y[others], attack.target)
        backdoor = _hits(model, attack.trigger(x[others]), aimed, max(classes, attack.target + 1))
    return Damage(accuracy, backdoor, None if goal is None else _hits(model, *goal, classes))


def _hits(model: Any, x: Tensor, y: Tensor, classes: int) -> float:
    """The part of samples on which the model decides as `y` says; NaN of no samples."""
    return (scores_of(model, x, classes).argmax(1) == y).double().mean().item()


def _voted(
    name: str, clean: PartitionEnsemble, poisoned: PartitionEnsemble, budget: PoisoningBudget, test: Samples
) -> tuple[Bracket[float], PartitionCertificate, tuple[Crossing, ...]]:
    certificate = clean.certify(*test)
    after = poisoned.certify(*test)
    proved = certificate.certified(budget)
    stayed = after.decision == certificate.decision
    found = crossings(name, repr(clean), "the decision of the vote", stayed, proved, side="at least")
    return Bracket(after.certified_accuracy(), certificate.certified_accuracy(budget)), certificate, tuple(found)


def _check_surrogate(surrogate: nn.Module, x: Tensor, classes: int) -> None:
    """Raises ArgumentError for a network that does not take the samples, or has too few outputs for the classes."""
    with evaluation_mode(surrogate):
        try:
            outputs = outputs_of(surrogate, x[:1])
        except ArgumentError as error:
            raise ArgumentError("surrogate", f"{of_type(surrogate)} that does not take {x.dtype} samples of "
                                f"shape {tuple(x.shape[1:])}", accepted="a network that gives outputs (batch, classes)",
                                hint=str(error)) from error  # fmt: skip
    if outputs < max(classes, 2):
        raise ArgumentError("surrogate", f"with {outputs} outputs", accepted=f"at least {max(classes, 2)}, one for "
                            "each class", hint="The attack follows the gradients of its cross-entropy.")  # fmt: skip


def _classes(given: object, labels: list[Tensor]) -> int:
    largest = int(torch.cat(labels).max()) + 1
    if given is None:
        return largest
    if not isinstance(given, Integral) or isinstance(given, bool) or given < largest:
        raise ArgumentError("classes", repr(given), accepted=f"an integer of at least {largest}, for the labels go to "
                            f"{largest - 1}", hint="None takes that number.")  # fmt: skip
    return int(given)


def _samples(name: str, given: object, like: Tensor | None = None) -> Samples:
    """Samples and their classes, as tensors. Raises ArgumentError for what are none, or are others than `like`."""
    pair = tuple(given) if isinstance(given, tuple | list) else ()
    if len(pair) == 2:
        x, y = (torch.as_tensor(part) for part in pair)
        if x.dim() and y.shape == (len(x),) and x.is_floating_point() and not y.is_floating_point() and len(x):
            if int(y.min()) < 0:
                raise ArgumentError(name, f"with the class {int(y.min())}", accepted="classes from 0",
                                    hint="Number the classes from 0.")  # fmt: skip
            if not bool(x.isfinite().all()):
                raise ArgumentError(name, "with features that are not finite", accepted="finite values",
                                    hint="Find them with isfinite().")  # fmt: skip
            if like is not None and (x.shape[1:] != like.shape[1:] or x.dtype != like.dtype):
                raise ArgumentError(name, f"{x.dtype} of shape {tuple(x.shape)}", accepted=f"{like.dtype} of shape "
                                    f"(samples, {', '.join(map(str, like.shape[1:]))}), as the training samples",
                                    hint="Convert both alike.")  # fmt: skip
            return x, y.long()
    said = ", ".join(f"{part.dtype} of shape {tuple(part.shape)}" if isinstance(part, Tensor) else type(part).__name__
                     for part in pair) or type(given).__name__  # fmt: skip
    raise ArgumentError(name, said, accepted="a pair of samples (floating point) and their classes (integers), one at "
                        "least", hint="One class for each sample.")  # fmt: skip
