"""The pictures of one attack's or certifier's result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxtyping import Bool, Float, Int
from torch import Tensor

from robust_plugins.harness.pictures import COLOURS, attacked_images, is_image, legend_below, picture, said

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHADES = {
    "certified": COLOURS["certified"],
    "falsified": COLOURS["attacked"],
    "unknown": "0.6",
    "timeout": "0.4",
    "error": "0.2",
    "unsupported": "0.8",
}
"""Of the verdicts."""


def attack_figure(
    x_adv: Float[Tensor, "batch *features"],
    success: Bool[Tensor, " batch"],
    decision: Int[Tensor, " batch"],
    distance: Float[Tensor, " batch"],
    loss: Float[Tensor, " batch"],
    x: Float[Tensor, "batch *features"] | None,
    samples: int,
) -> Figure:
    """The images that an attack found, its successes first; of other inputs the loss against the distance.

    - `x_adv`, `success`, `distance`, `loss`: those of the result, and `decision` the class of each `x_adv`.
    - `x`: the inputs that were attacked, to show the change beside them; or None.
    - `samples`: so many images.
    """
    if not len(success):
        return said("no sample")
    if not is_image(x_adv):
        return _scattered(success, distance, loss)
    order = success.int().argsort(descending=True, stable=True).tolist()[:samples]
    titles = [(f"sample {i}", f"decision {int(decision[i])}") for i in order]
    return attacked_images(x, x_adv, order, titles, None)


def _scattered(success: Tensor, distance: Tensor, loss: Tensor) -> Figure:
    figure = picture(6.4, 4.2)
    axes = figure.subplots()
    for flag, word, colour, mark in ((True, "success", COLOURS["attacked"], "x"), (False, "no success", "0.5", "o")):
        chosen = success == flag
        axes.plot(
            distance[chosen].tolist(), loss[chosen].tolist(), mark, color=colour,
            label=f"{word} ({int(chosen.sum())})",
        )  # fmt: skip
    axes.set(xlabel="distance from x (input units)", ylabel="cross-entropy on x'")
    axes.grid(alpha=0.3)
    legend_below(figure, axes)
    return figure


def certificate_figure(margin: Float[Tensor, " batch"], verdicts: Sequence[str]) -> Figure:
    """The proved margins of all samples, from the smallest to the largest, in the colours of their verdicts."""
    margins = margin.detach().cpu()
    known = margins.isfinite()
    if not bool(known.any()):
        return said("no margin is proved for any sample" if len(margins) else "no sample")
    order = margins[known].argsort()
    values = margins[known][order].tolist()
    own = [verdicts[i] for i in known.nonzero().flatten()[order].tolist()]
    figure = picture(6.4, 4.2)
    axes = figure.subplots()
    for verdict, shade in SHADES.items():
        places = [i for i, v in enumerate(own) if v == verdict]
        count = sum(v == verdict for v in verdicts)
        if count:
            label = f"{verdict} ({count})"
            axes.bar(places, [values[i] for i in places], width=1.0, color=shade, label=label)
    axes.axhline(0, color="0.2", linewidth=0.8)
    left = int((~known).sum())
    axes.set(
        xlabel="samples, by their margin" + (f"; {left} without a bound are not drawn" if left else ""),
        ylabel="proved margin (logits)",
    )  # fmt: skip
    axes.grid(axis="y", alpha=0.3)
    legend_below(figure, axes)
    return figure
