"""The learning curve of a training as a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from robust_plugins.harness.pictures import picture, svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOSSES = {"loss": "loss", "clean": "on clean inputs", "worst": "of the worst case"}


def learning_curve(epochs: Sequence[Mapping[str, Any]]) -> str:
    """Loss and scores after each epoch, as SVG, from the dictionaries of an `rp.TrainingRecord`. Needs matplotlib."""
    return svg(curve_figure(epochs), "learning")


def curve_figure(epochs: Sequence[Mapping[str, Any]]) -> Figure:
    """The picture itself. What no epoch has is left out: plain training has no worst case.

    Raises PluginError where matplotlib is not installed.
    """
    figure = picture(8, 3.4)
    from matplotlib.ticker import MaxNLocator

    numbers = [epoch["epoch"] for epoch in epochs]
    left, right = figure.subplots(1, 2)
    for name, label in LOSSES.items():
        values = [float("nan") if epoch[name] is None else epoch[name] for epoch in epochs]
        if any(map(math.isfinite, values)):
            left.plot(numbers, values, marker=".", label=label, linestyle="-" if name == "loss" else "--")
    for name in dict.fromkeys(name for epoch in epochs for name in epoch["scores"]):
        shares = [epoch["scores"].get(name, float("nan")) for epoch in epochs]
        # Where there is no number, the reason takes its place, in the last epoch's words.
        words = [share.partition(":")[0] for share in shares if isinstance(share, str)]
        label = f"{name} ({words[-1]})" if words else name
        right.plot(numbers, [float("nan") if isinstance(s, str) else s for s in shares], marker=".", label=label)
    left.set(xlabel="epoch", ylabel="loss in training")
    right.set(xlabel="epoch", ylabel="accuracy on test samples", ylim=(-0.02, 1.02))
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(frameon=False, fontsize="small")
    return figure
