"""Adversarial examples that were kept: the input, what it became, and the difference, as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from robust_plugins.benchmark.columns import Columns
from robust_plugins.benchmark.intact import example_of
from robust_plugins.benchmark.reporting.brackets import shortened
from robust_plugins.benchmark.reporting.style import drawing
from robust_plugins.benchmark.store import Store

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = 5
"""Examples for each model and data set."""

SETTINGS = 6
"""At most so many models and data sets."""


def example_panels(columns: Columns, stores: tuple[Path, ...]) -> list[tuple[str, str]]:
    """For each model and data set the nearest examples that attacks found, on different samples: picture and caption.

    Only of inputs of shape (height, width) or (1 or 3, height, width); none where no examples were kept.
    """
    found: list[tuple[str, str]] = []
    won = (columns["kind"] == "attack") & (columns["verdict"] == "falsified") & (columns["artifact"] != "")
    won &= columns["distance"] > 0  # an input that is decided wrongly as it is needs no attack
    for group in columns.groups(np.flatnonzero(won), "model", "data", "norm", "box")[:SETTINGS]:
        nearest = group[np.argsort(columns["distance"][group], kind="stable")]
        _, firsts = np.unique(columns["sample"][nearest], return_index=True)
        chosen = nearest[np.sort(firsts)[:SHOWN]]
        pairs = [_kept(str(columns["artifact"][place]), stores) for place in chosen]
        images = [pair for pair in pairs if pair is not None and _image(pair[0]) is not None]
        if len(images) < len(chosen):
            continue
        picture = _drawn(columns, chosen, images, f"examples{len(found)}")
        where = f"{columns['model'][group[0]]} on {columns['data'][group[0]]}, {columns['norm'][group[0]]}"
        attacks = ", ".join(dict.fromkeys(columns["component"][chosen]))
        found.append((picture, f"{where}: the {len(chosen)} nearest of {len(group)} kept examples, by {attacks}"))
    return found


def _kept(name: str, stores: tuple[Path, ...]) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    from safetensors.numpy import load

    for path in stores:
        with Store(path) as store:
            try:
                kept = load(example_of(store, name))
            except KeyError:
                continue
            return kept["x"].astype(np.float64), kept["x_adv"].astype(np.float64)
    return None


def _image(x: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """The values as a picture of (height, width) or (height, width, 3); None where they are none."""
    if x.ndim == 2 and min(x.shape) > 3:
        return x
    if x.ndim == 3 and x.shape[0] in (1, 3):
        return x[0] if x.shape[0] == 1 else np.moveaxis(x, 0, -1)
    return None


def _drawn(
    columns: Columns, places: NDArray[np.int64], pairs: list[tuple[NDArray[np.float64], NDArray[np.float64]]], name: str
) -> str:
    from matplotlib.figure import Figure

    count = len(pairs)
    figure = Figure(figsize=(1.12 * max(count, 3) + 0.5, 4.3))
    for column, (place, (x, x_adv)) in enumerate(zip(places, pairs, strict=True)):
        low, high = float(min(x.min(), x_adv.min())), float(max(x.max(), x_adv.max()))
        largest = float(np.abs(x_adv - x).max())
        label, decision = (int(columns[name][place]) for name in ("label", "prediction"))
        rows = (
            (x, f"{label}", (low, high), "gray"),
            (x_adv, f"{label} \N{RIGHTWARDS ARROW} {decision}", (low, high), "gray"),
            (x_adv - x, f"\N{PLUS-MINUS SIGN}{largest:.3g}", (-largest, largest), "RdBu_r"),
        )
        for row, (values, title, limits, colours) in enumerate(rows):
            wide = 1 / (max(count, 3) + 0.45)
            axes = figure.add_axes((wide * (0.45 + column), 0.015 + 0.335 * (2 - row), wide * 0.9, 0.25))
            _show(axes, values, title, limits, colours)
            if column == 0:
                axes.set_ylabel(("input", "found", "change")[row], fontsize=9)
            if row == 1:
                axes.set_xlabel(shortened(f"at {columns['distance'][place]:.3g}", 16), fontsize=8, labelpad=1)
    return drawing(figure, name)


def _show(axes: Axes, values: NDArray[np.float64], title: str, limits: tuple[float, float], colours: str) -> None:
    image = _image(values)
    assert image is not None  # chosen so
    low, high = limits
    if image.ndim == 3 and colours != "gray":
        image = image.mean(-1)  # a change of colours as one of brightness
    elif image.ndim == 3:
        image = ((image - low) / max(high - low, 1e-12)).clip(0, 1)
    axes.imshow(image, cmap=colours, vmin=low, vmax=high, interpolation="nearest")
    axes.set_title(title, fontsize=8, pad=2)
    axes.set_xticks([])
    axes.set_yticks([])
