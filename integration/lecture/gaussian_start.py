"""PGD and where it starts: at the image, anywhere in the ball, or at a Gaussian step from the image.

    python -m integration.lecture.gaussian_start [--data ../shared/data/mnist] [--images 200] [--eps 0.1] [--seed 0]
        [--out DIR]

The lecture's PGD starts at x + N(0, eps^2), projected onto the ball: a third of all coordinates lie at its border. The
first picture shows starts of both kinds in two coordinates; the second, how many images PGD fools within a number of
steps of eps / 4 from each kind of start; the table, the same with several restarts.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

import robust_plugins as rp
from integration.lecture.attack_networks import Subject, subject
from integration.lecture.parts import DATA, SEED, Option, Part, Table, percent, picture, run
from robust_plugins.benchmark.reporting.style import COLOURS, MARKS, PANEL

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OPTIONS = (
    DATA, SEED,
    Option(name="images", default=200, quick=10, help="how many images, all classified correctly"),
    Option(name="eps", default=0.1, help="the radius of the ball"),
    Option(name="updates", default=1875, quick=100, help="batches of the network's training"),
)  # fmt: skip
STEPS = (1, 2, 3, 5, 8, 12, 20, 40)
STARTS = {"none": "at the image", "uniform": "uniform", "gaussian": "Gaussian"}
RESTARTS = (1, 5)


def fooled(attacked: Subject, eps: float, seed: int, start: str, *, steps: int, restarts: int = 1) -> float:
    """The share of images that PGD fools."""
    attack = rp.attack("rp:pgd", start=start, steps=steps, relative_step=0.25, restarts=restarts)
    ball = rp.Linf(eps=eps, clip=(0.0, 1.0))
    return attack(attacked.model, attacked.x, attacked.y, ball, seed=seed).success.double().mean().item()


def draw_starts(seed: int) -> Figure:
    from matplotlib.figure import Figure

    generator = torch.Generator().manual_seed(seed)
    uniform = 2 * torch.rand(300, 2, generator=generator) - 1
    gaussian = torch.randn(300, 2, generator=generator).clamp(-1, 1)
    figure = Figure(figsize=(PANEL[0], 2.6), layout="constrained")
    for axes, points, name, number in zip(
        figure.subplots(1, 2, sharey=True), (uniform, gaussian), ("uniform", "Gaussian"), (1, 2), strict=True
    ):
        axes.plot(*points.T.tolist(), linestyle="", marker=".", markersize=4, color=COLOURS[number], clip_on=False)
        axes.plot([-1, 1, 1, -1, -1], [-1, -1, 1, 1, -1], color="0.3", linewidth=0.8)
        axes.plot(0, 0, marker="*", color="black", markersize=9)
        axes.set(title=name, aspect="equal", xlabel="one pixel (units of eps)")
    figure.axes[0].set_ylabel("another pixel")
    return figure


def draw_steps(found: dict[str, list[float]]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=PANEL, layout="constrained")
    axes = figure.subplots()
    for number, (start, shares) in enumerate(found.items()):
        axes.plot(STEPS, [100 * share for share in shares], color=COLOURS[number], marker=MARKS[number], markersize=4,
                  label=STARTS[start])  # fmt: skip
    axes.set(xlabel="steps of eps / 4", ylabel="images fooled (%)", xscale="log")
    axes.set_xticks(STEPS, [str(step) for step in STEPS])
    axes.minorticks_off()
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, title="start", loc="lower right")
    return figure


def make(options: argparse.Namespace) -> Part:
    networks = options.out.parent / "networks"
    attacked = subject(options.data, networks, images=options.images, seed=options.seed, updates=options.updates)
    found = {
        start: [fooled(attacked, options.eps, options.seed, start, steps=steps) for steps in STEPS] for start in STARTS
    }
    rows = []
    for start, name in STARTS.items():
        shares = [fooled(attacked, options.eps, options.seed, start, steps=10, restarts=n)
                  for n in (RESTARTS if start != "none" else RESTARTS[:1])]  # fmt: skip
        rows.append((name, *(percent(share) for share in shares), *[""] * (len(RESTARTS) - len(shares))))
    table = Table(
        name="gaussian_start", columns=("start", *(f"{n} restart{'s' * (n > 1)}" for n in RESTARTS)), rows=tuple(rows),
        caption=f"Images fooled by 10 steps of eps / 4 at eps = {options.eps:g}, of {len(attacked.x)}. From the image "
        "itself every restart would be the same.",
    )  # fmt: skip
    return Part(
        title="PGD from a Gaussian start", data=f"{attacked.title}.",
        sentence="PGD climbs to the peak nearest to where it starts, and random starts give it another chance: within "
        "few steps it matters where it starts, with many of them hardly, and several restarts find a little more.",
        pictures=(
            picture(draw_starts(options.seed), "starts", "300 starts in two coordinates, and the image at the star."),
            picture(draw_steps(found), "steps", f"One start at eps = {options.eps:g}, by the number of steps."),
        ),
        tables=(table,),
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    run("gaussian_start", make, OPTIONS, arguments, describe=__doc__)


if __name__ == "__main__":
    main()
