"""The pictures of a report as inline SVG: accuracy against eps, and attacked samples."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from robust_plugins.brackets.comparison import Comparison
from robust_plugins.brackets.table import ball_name
from robust_plugins.decisions.results import AttackResult
from robust_plugins.harness.pictures import svg
from robust_plugins.registry.information import Kind


def accuracy_plot(comparisons: Sequence[Comparison]) -> str:
    """Attacked and certified accuracy against eps, as SVG; the true robust accuracy lies in the shaded band.

    Comparisons with one eps per sample have no place on the axis and are left out. Empty where fewer than two remain.
    """
    from matplotlib.figure import Figure

    points = sorted(
        ((c.ball.radii, c) for c in comparisons if not isinstance(c.ball.radii, tuple)), key=lambda point: point[0]
    )
    if len(points) < 2:
        return ""
    radii = [radius for radius, _ in points]
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.subplots()
    high, low = ([_drawn(half) for half in halves] for halves in zip(*(c.bracket for _, c in points), strict=True))
    axes.fill_between(radii, low, high, color="0.9", label="not known")
    axes.axhline(_drawn(points[0][1].clean), color="0.4", linestyle=":", label="clean")
    for index, row in enumerate(points[0][1].rows):
        shares = [c.rows[index].accuracy for _, c in points]
        attacked = row.kind is Kind.ATTACK
        axes.plot(
            radii,
            [_drawn(share) for share in shares],
            color=f"C{index}",
            linestyle="--" if attacked else "-",
            marker="v" if attacked else "^",
            label=f"{row.name} ({'attacked' if attacked else 'certified'})",
        )
    axes.set(xlabel=f"eps ({type(points[0][1].ball).__name__}, input units)", ylabel="accuracy", ylim=(-0.02, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize="small")
    return svg(figure, "accuracy")


def _drawn(share: float | None) -> float:
    """For a plot, which leaves NaN out: there is nothing to draw where there is no answer."""
    return math.nan if share is None else share


def attacked_samples(comparison: Comparison, samples: int) -> tuple[str, str]:
    """`samples` successes of the strongest attack as SVG: x, x' and x' - x; and a caption.

    Both are empty where no attack succeeded on a sample that was classified correctly, or where the inputs are no
    images of shape (channels, height, width) with 1 or 3 channels.
    """
    from matplotlib.figure import Figure

    attacks = [row for row in comparison.rows if isinstance(row.result, AttackResult)]
    if not attacks or comparison.x.dim() != 4 or comparison.x.shape[1] not in (1, 3):
        return "", ""
    strongest = min(attacks, key=lambda row: row.accuracy or 0.0)
    assert isinstance(strongest.result, AttackResult)
    result = strongest.result
    found = (result.success & comparison.correct).nonzero().flatten().tolist()[:samples]
    if not found:
        return "", ""
    figure = Figure(figsize=(1.5 * len(found) + 0.6, 4.6), layout="constrained")
    grid = figure.subplots(3, len(found), squeeze=False)
    for column, i in enumerate(found):
        x, x_adv = comparison.x[i].cpu(), result.x_adv[i].cpu()
        largest = float((x_adv - x).abs().max())
        decision = int(result.logits[i].argmax())
        show_image(grid[0][column], x, f"x: {int(comparison.y[i])}", comparison.ball.clip)
        show_image(grid[1][column], x_adv, f"x': {decision}", comparison.ball.clip)
        show_image(grid[2][column], (x_adv - x).mean(0, keepdim=True), f"±{largest:.3g}", (-largest, largest), "RdBu_r")
    for row, label in enumerate(("x", "x'", "x' - x")):
        grid[row][0].set_ylabel(label)
    caption = f"{strongest.name} at {ball_name(comparison.ball)}: label, decision, and largest change"
    return svg(figure, "samples"), caption


def show_image(
    axes: object, image: Tensor, title: str, limits: tuple[float, float] | None, colours: str = "gray"
) -> None:
    """Draws an image of 1 or 3 channels without ticks; `limits` are the values of the ends of its colours."""
    low, high = limits or (float(image.min()), float(image.max()))
    shown = image[0] if len(image) == 1 else ((image - low) / (high - low)).clamp(0, 1).permute(1, 2, 0)
    axes.imshow(shown.numpy(), cmap=colours, vmin=low, vmax=high, interpolation="nearest")  # type: ignore[attr-defined]
    axes.set_title(title, fontsize="small")  # type: ignore[attr-defined]
    axes.set_xticks([])  # type: ignore[attr-defined]
    axes.set_yticks([])  # type: ignore[attr-defined]
