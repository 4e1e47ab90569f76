"""The picture of critical radii: their distribution, known from two sides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from robust_plugins.harness.bracket import Bracket
from robust_plugins.harness.pictures import legend_below, picture, said
from robust_plugins.registry.information import Kind

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def radius_figure(
    bracket: Bracket[Tensor],
    curves: Sequence[tuple[str, Kind, Float[Tensor, " batch"]]],
    *,
    axis: str,
) -> Figure:
    """The share of samples whose critical radius is below each radius; the truth lies in the shaded band.

    - `curves`: the name and the kind of each component, and the radii of all samples, inf where nothing is known.
    - `axis`: the words below the axis of radii.

    Where there is no sample, it says so.
    """
    if not any(len(radii) for _, _, radii in curves):
        return said("no sample")
    known = torch.cat([radii[radii.isfinite()] for _, _, radii in curves])
    end = 1.05 * max(float(known.max()) if len(known) else 0.0, 1e-12)
    figure = picture(6.4, 4.2)
    axes = figure.subplots()
    empirical, certified = bracket
    if empirical is not None and certified is not None:
        ends = torch.cat((empirical[empirical.isfinite()], certified, certified.new_tensor([0.0, end]))).sort().values
        axes.fill_between(
            ends.tolist(), share_below(empirical, ends), share_below(certified, ends), step="post", color="0.9",
            label="not known",
        )  # fmt: skip
    for index, (name, kind, radii) in enumerate(curves):
        ends = torch.cat((radii[radii.isfinite()], radii.new_tensor([0.0, end]))).sort().values
        attacked = kind is Kind.ATTACK
        axes.step(
            ends.tolist(), share_below(radii, ends), where="post", color=f"C{index}",
            linestyle="--" if attacked else "-", label=f"{name} ({'attacked' if attacked else 'certified'})",
        )  # fmt: skip
    axes.set(xlabel=axis, ylabel="share of samples", xlim=(0, end), ylim=(-0.02, 1.02))
    axes.grid(alpha=0.3)
    legend_below(figure, axes)
    return figure


def share_below(radii: Float[Tensor, " batch"], ends: Float[Tensor, " points"]) -> list[float]:
    """The empirical distribution function: the share of `radii` that are at most each of `ends`."""
    shares: list[float] = (radii.unsqueeze(0) <= ends.unsqueeze(1)).double().mean(1).tolist()
    return shares
