"""`compare`: attacks and certifiers on the same model and inputs, and whether they contradict each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal, get_args, overload

from robust_plugins.balls import Ball
from robust_plugins.brackets.balls_comparison import BallsComparison
from robust_plugins.brackets.comparison import Comparison
from robust_plugins.brackets.components import Components
from robust_plugins.brackets.decisions import compare_decisions
from robust_plugins.brackets.error_comparison import ErrorComparison
from robust_plugins.brackets.labels import LabelsComparison, compare_labels
from robust_plugins.brackets.regression import compare_errors
from robust_plugins.errors import ArgumentError
from robust_plugins.harness.batches import Inputs, Labels, as_batch
from robust_plugins.harness.evaluation import checked_seed
from robust_plugins.harness.wrappers import Model

Task = Literal["classes", "labels", "regression"]


@overload
def compare(
    model: Model, x: Inputs, y: Labels | None, ball: Ball, components: Components, *,
    task: Literal["classes"] = ..., seed: int | None = ..., progress: bool = ...,
) -> Comparison: ...  # fmt: skip


@overload
def compare(
    model: Model, x: Inputs, y: Labels | None, ball: Sequence[Ball], components: Components, *,
    task: Literal["classes"] = ..., seed: int | None = ..., progress: bool = ...,
) -> BallsComparison[Comparison]: ...  # fmt: skip


@overload
def compare(
    model: Model, x: Inputs, y: Labels | None, ball: Ball, components: Components, *,
    task: Literal["labels"], seed: int | None = ..., progress: bool = ...,
) -> LabelsComparison: ...  # fmt: skip


@overload
def compare(
    model: Model, x: Inputs, y: Labels | None, ball: Sequence[Ball], components: Components, *,
    task: Literal["labels"], seed: int | None = ..., progress: bool = ...,
) -> BallsComparison[LabelsComparison]: ...  # fmt: skip


@overload
def compare(
    model: Model, x: Inputs, y: Labels | None, ball: Ball, components: Components, *,
    task: Literal["regression"], seed: int | None = ..., progress: bool = ...,
) -> ErrorComparison: ...  # fmt: skip


@overload
def compare(
    model: Model, x: Inputs, y: Labels | None, ball: Sequence[Ball], components: Components, *,
    task: Literal["regression"], seed: int | None = ..., progress: bool = ...,
) -> BallsComparison[ErrorComparison]: ...  # fmt: skip


def compare(
    model: Model,
    x: Inputs,
    y: Labels | None,
    ball: Ball | Sequence[Ball],
    components: Components,
    *,
    task: Task = "classes",
    seed: int | None = None,
    progress: bool = False,
) -> Comparison | LabelsComparison | ErrorComparison | BallsComparison[Any]:
    """Runs every attack and certifier of `components` on the same samples and holds their answers together.

    - `model`: gives logits of shape (batch, classes), or one output per sample; an estimator of ART stands for its
      network with its normalisation in front.
    - `x`, `y`: a batch (batch, *features), and the true classes, integers of any type, shape (batch,); tensors or
      numpy arrays. Or `x` is a TensorDataset or a DataLoader of pairs, which is read once, whole, and `y` None.
    - `ball`: one, or a list of them, which gives a comparison for each ball and holds them together: an input that
      changes a decision in a narrow ball does so in a wider one. For every `task`.
    - `components`: registered names, with parameters where wanted (`"art:pgd(steps=100)"`), or components themselves;
      a dictionary gives them names of your own. A component that raises is a row with its error; the others go on.
    - `task`: "classes", of which each sample has one; "labels", of which each may have several: `y` holds 0 or 1 for
      every one of the model's logits, a label is there where its logit is above 0, and each is compared on its own;
      or "regression": `y` are numbers, shaped like the outputs, or None for the model's own predictions at `x`, and the
      bracket is that of the largest error over the ball. Attacks then run twice for each output; certifiers answer
      with their `bounds`, complete ones with those that they begin with.
    - `seed`: of all attacks, which are untargeted; None draws one, which the result states.
    - `progress`: shows a bar on standard error, or a line per component where that is no terminal.

    Beside the number of each attack stand reasons to doubt it, where there are any: zero or saturated gradients, noise
    or an attack without gradients that finds more, success that does not rise with steps or the radius. They are looked
    for at up to 64 samples, evenly spread, for a tenth of the attack's time or less.

    All of it happens in evaluation mode. Observers (`on_run_start`, `on_record`, `on_run_end`) are told.

    Raises ArgumentError for an unusable model, batch or ball, UnknownNameError for an unknown component.

    >>> model, x, y = torch.nn.Identity(), torch.tensor([[1.0, 0.0], [0.6, 0.4]]), torch.tensor([0, 0])
    >>> rp.compare(model, x, y, rp.Linf(eps=0.2, clip=(0, 1)), ["rp:pgd", "interval:ibp"], seed=0).bracket
    Bracket(empirical=0.5, certified=0.5)
    """
    if task not in get_args(Task):
        raise ArgumentError("task", repr(task), accepted=", ".join(map(repr, get_args(Task))), hint="Choose one.")
    samples, labels = as_batch(x, y, model)
    if labels is None and task == "classes":
        raise ArgumentError("y", "None", accepted="the true classes", hint="None is for task='regression' alone.")
    run: Any = {"classes": compare_decisions, "labels": compare_labels, "regression": compare_errors}[task]
    seed = checked_seed(seed)
    components = list(components) if isinstance(components, Iterator) else components  # read once for each ball
    compared: Any = partial(run, model, samples, labels, components=components, seed=seed, progress=progress)
    if isinstance(ball, Ball) or not isinstance(ball, Sequence):  # what is neither is refused by the call
        found: Comparison | LabelsComparison | ErrorComparison = compared(ball=ball)
        return found
    if not ball:
        raise ArgumentError("ball", "an empty list", accepted="one ball, or a list of one or more", hint="Name a ball.")
    return BallsComparison(tuple(compared(ball=one) for one in ball))
