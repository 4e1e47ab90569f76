"""The learning curve of a training as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from robust_plugins.benchmark.plots import svg


def learning_curve(epochs: Sequence[Mapping[str, Any]]) -> str:
    """Loss and scores after each epoch, as SVG, from the dictionaries of an `rp.TrainingRecord`. Needs matplotlib."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    numbers = [epoch["epoch"] for epoch in epochs]
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, label in (("loss", "loss"), ("clean", "on clean inputs"), ("worst", "of the worst case")):
        values = [float("nan") if epoch[name] is None else epoch[name] for epoch in epochs]
        left.plot(numbers, values, marker=".", label=label, linestyle="-" if name == "loss" else "--")
    for name in epochs[-1]["scores"]:
        right.plot(numbers, [epoch["scores"][name] for epoch in epochs], marker=".", label=name)
    left.set(xlabel="epoch", ylabel="loss in training")
    right.set(xlabel="epoch", ylabel="accuracy on test samples", ylim=(-0.02, 1.02))
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize="small")
    return svg(figure, "learning")
