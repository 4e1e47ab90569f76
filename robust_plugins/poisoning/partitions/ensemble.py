"""`partition_aggregation`: an ensemble of models of disjoint partitions, whose votes certify its decisions."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Integer, Shaped
from torch import Tensor

from robust_plugins.errors import ArgumentError, ComponentError
from robust_plugins.harness.pictures import COLOURS, picture
from robust_plugins.harness.progress import reporting
from robust_plugins.harness.result import SampleResult
from robust_plugins.poisoning.budget import PoisoningBudget
from robust_plugins.poisoning.partitions.division import By, divided, reached
from robust_plugins.poisoning.partitions.learners import Train, check_learner, scores_of, trained
from robust_plugins.poisoning.partitions.votes import NEVER, majority, run_off

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Method = Literal["run-off", "majority"]


@dataclass(frozen=True, eq=False)
class PartitionCertificate(SampleResult):
    """The certificate says what no poisoner of the training data can change about an ensemble's decisions.

    - `decision`: the class that the vote decides for.
    - `tolerated`: the number of partitions in which samples may change, in any way, while the decision is proved to
      stay.
    - `correct`: whether that is the true class.
    - `by`: what fixes a sample's partition: its `"features"`, the whole `"sample"`, or its `"place"`.
    - `method`: how votes decide: `"majority"` or `"run-off"`.
    """

    decision: Integer[Tensor, " samples"]
    tolerated: Integer[Tensor, " samples"]
    correct: Bool[Tensor, " samples"]
    by: By
    method: Method

    def certified(self, budget: PoisoningBudget | int) -> Bool[Tensor, " samples"]:
        """Whether each decision is right, and stays for all that `budget` allows with the data as one batch.

        An integer counts samples that are added or removed (by `"place"`: replaced).
        """
        count = reached(budget, self.by) if isinstance(budget, PoisoningBudget) else _count("budget", budget, 0)
        return self.correct & (self.tolerated >= count)

    def certified_accuracy(self, budget: PoisoningBudget | int = 0) -> float:
        """The part of samples that are `certified`; NaN of no samples."""
        return self.certified(budget).double().mean().item()

    def plot(self) -> Figure:
        """A picture: the certified accuracy against the number of partitions whose samples may change.

        Raises PluginError without matplotlib.
        """
        figure = picture(6.4, 3.6)
        axes = figure.subplots()
        # A tie is never lost, however many partitions change, where there is one class: what is endless is not drawn.
        finite = self.tolerated[self.tolerated < NEVER]
        most = int(finite.max()) if len(finite) else 0
        steps = range(most + 2)
        shares = [(self.correct & (self.tolerated >= k)).double().mean().item() for k in steps]
        axes.step(steps, shares, where="mid", color=COLOURS["certified"], label="certified")
        axes.set(xlabel="partitions whose samples may change", ylabel="accuracy", ylim=(-0.02, 1.02))
        axes.locator_params(axis="x", integer=True)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
        return figure

    def to_records(self) -> list[dict[str, Any]]:
        """For each sample: the decision, whether it is right, and how many partitions may change."""
        columns = {
            "sample": range(len(self.decision)), "decision": self.decision.tolist(), "correct": self.correct.tolist(),
            "tolerated": self.tolerated.tolist(),
        }  # fmt: skip
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def __repr__(self) -> str:
        middle = int(self.tolerated.median()) if len(self.tolerated) else 0
        return (f"PartitionCertificate(samples={len(self.decision)}, method={self.method!r}, by={self.by!r}, "
                f"accuracy={self.certified_accuracy():.3f}, median tolerated={middle})")  # fmt: skip


@dataclass(frozen=True, eq=False)
class PartitionEnsemble:
    """Models of disjoint partitions of one training set, which vote.

    - `models`: one for each partition.
    - `classes`: how many classes there are.
    - `by`: what fixes a sample's partition: its `"features"`, the whole `"sample"`, or its `"place"`.
    - `sizes`: the number of samples of each partition. The model of an empty one is None; it votes for class 0.
    """

    models: tuple[Any, ...]
    classes: int
    by: By
    sizes: tuple[int, ...]

    def scores(
        self, x: Float[Tensor, "samples *features"], *, batch_size: int | None = None
    ) -> Float[Tensor, "voters samples classes"]:
        """Every model's scores, in float64 on the CPU; at most `batch_size` samples go through a model at a time."""
        empty = torch.zeros((len(x), self.classes), dtype=torch.float64)
        return torch.stack([
            empty if model is None else scores_of(model, x, self.classes, batch_size=batch_size).cpu()
            for model in self.models
        ])  # fmt: skip

    def certify(
        self,
        x: Float[Tensor, "samples *features"],
        y: Integer[Tensor, " samples"],
        *,
        method: Method = "run-off",
        batch_size: int | None = None,
    ) -> PartitionCertificate:
        """Decides on `x`, and says how much of the training data may change before a decision may.

        - `y`: the true classes.
        - `method`: `"majority"` of the models' decisions (Levine and Feizi 2021), or `"run-off"` between the two
          classes with the most of them, by which of both each model prefers (Rezaei et al. 2023); it needs scores, and
          where models give decisions alone it is no better.

        It is sound where training is a function of a partition's samples alone: see `partition_aggregation`.
        """
        if method not in get_args(Method):
            raise ArgumentError("method", repr(method), accepted="'run-off' or 'majority'", hint="Choose one.")
        y = torch.as_tensor(y).long().cpu()
        if y.shape != (len(x),):
            raise ArgumentError("y", f"of shape {tuple(y.shape)}", accepted=f"classes of shape {(len(x),)}",
                                hint="One class for each sample.")  # fmt: skip
        scores = self.scores(x, batch_size=batch_size)
        decision, changed = (run_off if method == "run-off" else majority)(scores)
        tolerated = torch.where(changed == NEVER, NEVER, changed - 1).clamp(max=len(self.models))
        return PartitionCertificate(decision, tolerated, decision == y, self.by, method)

    def __repr__(self) -> str:
        low, high = min(self.sizes), max(self.sizes)
        return (f"PartitionEnsemble(partitions={len(self.models)}, by={self.by!r}, classes={self.classes}, "
                f"sizes from {low} to {high})")  # fmt: skip


def partition_aggregation(
    train: Train | Any,
    x: Shaped[Tensor, "samples *features"],
    y: Integer[Tensor, " samples"],
    *,
    partitions: int,
    by: By = "features",
    classes: int | None = None,
    seed: int = 0,
    check: bool = True,
    progress: bool = True,
) -> PartitionEnsemble:
    """Trains one model on each of many disjoint partitions, so that a poisoned sample reaches few of their votes.

        ensemble = rp.partition_aggregation(train, x, y, partitions=50)
        ensemble.certify(x_test, y_test).certified_accuracy(rp.PoisoningBudget.addition(3))

    - `train`: a function from samples and labels to a model (a network, or anything that gives scores of shape
      (samples, classes) or classes), or a classifier with `fit`, as those of scikit-learn, which is copied.
    - `partitions` >= 1. More of them tolerate more poison, and each model learns from less.
    - `by`: `"features"`, the partition of a sample is a hash of its features: a sample added, removed or relabelled
      changes one partition, one with moved features two. `"sample"`: a hash of the label too, which then moves.
      `"place"`: the sample's index, for poisoners who replace samples and can neither add nor remove any: a replaced
      sample changes one partition.
    - `classes`: their number; None, the largest label and 1. It is no choice of the poisoner's.
    - `seed`: of all random generators, which are seeded for each partition by it and by the partition's number.
    - `check`: the first partition is trained twice, and ComponentError raised where the models differ on `x`.

    Soundness: a partition's model must be a function of its own samples, their order within it, and the seed. Training
    that looks at other data (statistics of the whole set, a validation split, an earlier model, a clock) breaks that,
    and the check finds only training that does not repeat itself. On features, hashes of different samples are assumed
    to be spread, which concerns the sizes of partitions and no certificate. Levine and Feizi 2021, "Deep partition
    aggregation"; Rezaei et al. 2023, "Run-off election".

    >>> from sklearn.tree import DecisionTreeClassifier
    >>> x = torch.linspace(0, 1, 60).unsqueeze(1)
    >>> learner = DecisionTreeClassifier(random_state=0)
    >>> votes = rp.partition_aggregation(learner, x, (x[:, 0] > 0.5).long(), partitions=5, progress=False)
    >>> votes.certify(torch.tensor([[0.1], [0.9]]), torch.tensor([0, 1])).certified(2)
    tensor([True, True])
    """
    check_learner(train)
    x, y = torch.as_tensor(x), torch.as_tensor(y)
    if y.shape != (len(x),) or y.is_floating_point() or y.is_complex():
        raise ArgumentError("y", f"{y.dtype} of shape {tuple(y.shape)}", accepted=f"integers of shape {(len(x),)}",
                            hint="One class for each sample.")  # fmt: skip
    partitions = _count("partitions", partitions, 1)
    largest = int(y.max()) + 1 if len(y) else 1
    classes = largest if classes is None else _count("classes", classes, 1)
    if len(y) and not 0 <= int(y.min()) <= int(y.max()) < classes:
        raise ArgumentError("y", f"from {int(y.min())} to {int(y.max())}", accepted=f"classes from 0 to {classes - 1}",
                            hint="Number the classes from 0.")  # fmt: skip
    members = divided(x, y, partitions, by)
    models: list[Any] = []
    with reporting("partitions", total=partitions, enabled=progress) as (advance, _):
        for number, own in enumerate(members):
            own_x, own_y = x[own.to(x.device)], y[own.to(y.device)]
            models.append(trained(train, own_x, own_y, seed + number) if len(own) else None)
            if check and len(own) and not any(model is not None for model in models[:-1]):
                again = trained(train, own_x, own_y, seed + number)
                if not torch.equal(scores_of(models[-1], own_x, classes), scores_of(again, own_x, classes)):
                    raise ComponentError(
                        "training the same partition twice gives two models: seed everything that `train` draws from, "
                        "and start from a new model in every call"
                    )
            advance()
    return PartitionEnsemble(tuple(models), classes, by, tuple(len(own) for own in members))


def _count(name: str, value: object, least: int) -> int:
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ArgumentError(name, repr(value), accepted=f"an integer of at least {least}", hint="Count them.")
    return int(value)
