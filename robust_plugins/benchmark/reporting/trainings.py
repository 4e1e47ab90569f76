"""Training curves: the losses of each model that a study trained, and the clean accuracy of all of them by epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from robust_plugins.benchmark.reporting.style import Look, drawing, figure
from robust_plugins.harness.table import Table

LOSSES = (
    ("loss", Look("the loss that is trained for", "#000000", "o", "-")),
    ("clean", Look("its part on clean inputs", "#009E73", "s", "--")),
    ("worst", Look("its part of the worst case", "#CC79A7", "v", "--")),
)
"""The fields of an epoch's record that are drawn, and their looks."""

Training = Mapping[str, Any]
"""One of `Store.trainings`."""


def loss_panel(training: Training, name: str) -> str:
    """The losses of one training by epoch, on a logarithmic axis; what no epoch has is left out."""
    drawn, axes = figure()
    for field, look in parts(training):
        axes.plot(*_column(training, field), **look.drawn)
    if all(epoch["loss"] > 0 for epoch in training["epochs"]):
        _logarithmic(axes)
    axes.set(xlabel="epoch", ylabel="mean loss in training")
    _whole(axes)
    return drawing(drawn, name)


def parts(training: Training) -> list[tuple[str, Look]]:
    """The fields that say something: plain training has no worst case, and its loss is all of clean inputs."""
    epochs = training["epochs"]
    whole = all(epoch["clean"] == epoch["loss"] for epoch in epochs)
    return [(f, look) for f, look in LOSSES if any(e[f] is not None for e in epochs) and not (whole and f == "clean")]


def score_panel(trainings: Sequence[Training], looks: Mapping[str, Look], name: str) -> str:
    """The clean accuracy on test samples after each epoch, a line for each of the trainings on one data set."""
    drawn, axes = figure()
    for training in trainings:
        numbers, shares = _column(training, "clean", scores=True)
        axes.plot(numbers, 100 * np.asarray(shares), **looks[training["model"]].drawn)
    axes.set(xlabel="epoch", ylabel="clean accuracy, test (%)", ylim=(-3, 103))
    _whole(axes)
    return drawing(drawn, name)


def training_table(trainings: Sequence[Training]) -> Table:
    """The last epoch of each training, and the seconds of all of them."""
    rows = []
    for training in trainings:
        last = training["epochs"][-1]
        score = last["scores"].get("clean")
        rows.append((
            training["model"], training["data"], str(last["epoch"]), *(_number(last[field]) for field, _ in LOSSES),
            _number(last["eps"]), "not scored" if not isinstance(score, float) else f"{100 * score:.1f} %",
            f"{sum(epoch['seconds'] for epoch in training['epochs']):.3g} s",
        ))  # fmt: skip
    titles = (
        "model",
        "data",
        "epochs",
        "loss at the end",
        "clean",
        "worst case",
        "eps",
        "clean accuracy, test",
        "time",
    )
    return Table(titles, tuple(rows), words=2)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _column(training: Training, field: str, *, scores: bool = False) -> tuple[list[int], list[float]]:
    """The epochs that have a number for a field, and these numbers."""
    found = [(epoch["epoch"], (epoch["scores"] if scores else epoch).get(field)) for epoch in training["epochs"]]
    kept = [(number, value) for number, value in found if isinstance(value, float)]
    return [number for number, _ in kept], [value for _, value in kept]


def _logarithmic(axes: Any) -> None:
    """Numbers as they are read, also where there is less than a decade."""
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:g}")


def _whole(axes: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
