"""The lecture's pictures of static and dynamic backdoors: digits with their triggers, and what the triggers do.

    python integration/lecture/backdoors.py [--out out/backdoors] [--target 3] [--size 2] [--seed 0]

A static trigger is the same square in every image, a dynamic one has its place from the image. Of the 1437 training
digits 0 to 200 carry the trigger and the label of the target; a network 64-64-10 is trained on them. Writes
triggers.svg (five digits of the test set, clean and with each trigger), success.svg (against the number of poisoned
digits: how often the trigger is obeyed, and the accuracy on clean digits) and results.md.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.poisoning.attacks.backdoors import Backdoor

COUNTS = (0, 5, 10, 20, 50, 100, 200)
TRIGGERS = {"static": "poison:backdoor", "dynamic": "poison:dynamic-backdoor"}
LOOKS = {"static": {"color": "#0072b2", "marker": "o"}, "dynamic": {"color": "#d55e00", "marker": "s"}}


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


def draw_triggers(path: Path, target: int, size: int) -> None:
    from matplotlib.figure import Figure

    digits = rp.dataset("digits")
    x = digits.x_test[digits.y_test != target][:5]
    rows = {"clean": x} | {f"{name} trigger": backdoor(name, target, size).trigger(x) for name in TRIGGERS}
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots(len(rows), len(x))
    for row, (title, images) in zip(axes, rows.items(), strict=True):
        for panel, image in zip(row, images, strict=True):
            panel.imshow(image[0].numpy(), cmap="gray_r", vmin=0, vmax=1)
            panel.set(xticks=[], yticks=[])
        row[0].set_ylabel(title)
    figure.suptitle(f"Five test digits, and the same with triggers that mean {target}", fontsize=11)
    figure.savefig(path)


def draw_success(points: list[Point], path: Path) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import ScalarFormatter

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
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
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path)


def table(points: list[Point]) -> str:
    lines = ["| trigger | poisoned digits | trigger obeyed | accuracy on clean digits |", "|---|---|---|---|"]
    lines += [f"| {p.trigger} | {p.poisoned} | {p.obeyed:.3f} | {p.accuracy:.3f} |" for p in points]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/backdoors"))
    parser.add_argument("--target", type=int, default=3)
    parser.add_argument("--size", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    points = measured(target=arguments.target, size=arguments.size, seed=arguments.seed)
    draw_triggers(arguments.out / "triggers.svg", arguments.target, arguments.size)
    draw_success(points, arguments.out / "success.svg")
    (arguments.out / "results.md").write_text(table(points))
    print(table(points))
    print(f"Written: triggers.svg, success.svg and results.md in {arguments.out}")


if __name__ == "__main__":
    main()
