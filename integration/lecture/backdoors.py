"""The lecture's pictures of static and dynamic backdoors: digits with their triggers, and what the triggers do.

    python -m integration.lecture.backdoors [--target 3] [--size 2] [--seed 0] [--out DIR]

A static trigger is the same square in every image, a dynamic one has its place from the image. Of the 1437 training
digits 0 to 200 carry the trigger and the label of the target; a network 64-64-10 is trained on them. Drawn are five
digits of the test set, clean and with each trigger, and against the number of poisoned digits how often the trigger is
obeyed, and the accuracy on clean digits.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

import robust_plugins as rp
from integration.lecture.parts import SEED, Option, Part, Table, picture, run
from robust_plugins.benchmark.reporting.style import COLOURS, PANEL
from robust_plugins.poisoning.attacks.backdoors import Backdoor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COUNTS = (0, 5, 10, 20, 50, 100, 200)
OPTIONS = (
    SEED,
    Option(name="target", default=3, help="the class that the triggers mean"),
    Option(name="size", default=2, help="the side of the square, in pixels"),
    Option(name="counts", default=COUNTS, quick=(0, 20), help="how many digits are poisoned"),
)
TRIGGERS = {"static": "poison:backdoor", "dynamic": "poison:dynamic-backdoor"}
LOOKS = {"static": {"color": COLOURS[0], "marker": "o"}, "dynamic": {"color": COLOURS[1], "marker": "s"}}


@dataclass(frozen=True)
class Point:
    """What a number of poisoned digits has done."""

    trigger: str
    poisoned: int
    obeyed: float
    accuracy: float


def train(x: Tensor, y: Tensor) -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


def backdoor(trigger: str, target: int, size: int) -> Backdoor:
    found = rp.poisoning_attack(TRIGGERS[trigger], target=target, size=size)
    assert isinstance(found, Backdoor)
    return found


def measured(
    *, counts: tuple[int, ...] = COUNTS, target: int = 3, size: int = 2, seed: int = 0, samples: int | None = None
) -> list[Point]:
    digits = rp.dataset("digits")
    x, y, test = digits.x_train[:samples], digits.y_train[:samples], (digits.x_test, digits.y_test)
    found = []
    for trigger in TRIGGERS:
        attack = backdoor(trigger, target, size)
        for count in counts:
            budget = rp.PoisoningBudget()
            if count:
                budget = rp.PoisoningBudget(points=count, labels=count, eps=1.0, clip=digits.clip, paired=True)
            done = rp.poison_and_train(attack, train, x, y, budget, test=test, seed=seed)
            assert done.poisoned.backdoor is not None
            found.append(Point(trigger, int(done.changed.sum()), done.poisoned.backdoor, done.poisoned.accuracy))
    return found


def draw_triggers(target: int, size: int) -> Figure:
    from matplotlib.figure import Figure

    digits = rp.dataset("digits")
    x = digits.x_test[digits.y_test != target][:5]
    rows = {"clean": x} | {name: backdoor(name, target, size).trigger(x) for name in TRIGGERS}
    figure = Figure(figsize=(4.8, 3.1), layout="constrained")
    axes = figure.subplots(len(rows), len(x))
    for row, (title, images) in zip(axes, rows.items(), strict=True):
        for panel, image in zip(row, images, strict=True):
            panel.imshow(image[0].numpy(), cmap="gray_r", vmin=0, vmax=1)
            panel.set(xticks=[], yticks=[])
            panel.spines[:].set(visible=True, color="0.75", linewidth=0.6)
        row[0].set_ylabel(title)
    return figure


def draw_success(points: list[Point]) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.ticker import ScalarFormatter

    figure = Figure(figsize=(PANEL[0], 3.6), layout="constrained")
    axes = figure.subplots()
    for trigger, look in LOOKS.items():
        own = [p for p in points if p.trigger == trigger]
        counts = [p.poisoned for p in own]
        axes.plot(counts, [p.obeyed for p in own], **look, label=f"{trigger} trigger obeyed")
        axes.plot(
            counts,
            [p.accuracy for p in own],
            **look,
            linestyle=":",
            fillstyle="none",
            label=f"{trigger}: accuracy",
        )
    axes.set_xscale("symlog", linthresh=5)
    axes.set_xticks(sorted({p.poisoned for p in points}))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.minorticks_off()
    axes.set(xlabel="poisoned training digits", ylabel="part of the test digits", ylim=(-0.03, 1.03))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize="small")
    return figure


def table(points: list[Point]) -> Table:
    return Table(
        name="backdoors", columns=("trigger", "poisoned digits", "trigger obeyed", "accuracy on clean digits"),
        rows=tuple((p.trigger, f"{p.poisoned}", f"{p.obeyed:.3f}", f"{p.accuracy:.3f}") for p in points),
        caption="Shares of the test digits: of those that are not the target's, how many are taken for it when they "
        "carry the trigger.",
    )  # fmt: skip


def make(options: argparse.Namespace) -> Part:
    points = measured(counts=options.counts, target=options.target, size=options.size, seed=options.seed)
    return Part(
        title="Backdoors, static and dynamic",
        sentence="A few poisoned training digits teach the network to obey a square in the corner, while the accuracy "
        "on clean digits gives nothing away; a square that moves from image to image takes many more, and costs "
        "accuracy.",
        data="scikit-learn's digits, 1437 for training and 360 for the test; a network 64-64-10.",
        pictures=(
            picture(draw_triggers(options.target, options.size), "triggers",
                    f"Five test digits, and the same with triggers that mean {options.target}."),
            picture(draw_success(points), "success", "What a number of poisoned training digits does."),
        ),
        tables=(table(points),),
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    run("backdoors", make, OPTIONS, arguments, describe=__doc__)


if __name__ == "__main__":
    main()
