"""The lecture's picture of poisoned labels in a regression: certified MSE against m, for three label radii.

    python integration/lecture/poisoning_regression.py [--data household_power_consumption.csv]
        [--out out/poisoning_regression] [--domain box] [--seed 0] [--no-attacks]

The poisoner moves m labels of every batch by at most nu. Without `--data`: scikit-learn's diabetes (400 rows, network
10-50-1, full batch, 20 epochs at lr 0.02; features and labels scaled to [0, 1]). With it: UCI's household power
consumption by the minute, as a csv with its nine columns: active power from the time of day, reactive power, voltage
and the three meters; features and labels standardised, network 7-50-1, 6 batches of 6000 rows, one epoch at lr 0.1.
Prints and writes results.md and curves.svg.
"""

from __future__ import annotations

import argparse
import csv
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.brackets.poisoning_plots import Curve, curve_figure

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class Regression:
    """A training, and the budgets that it is tried with."""

    title: str
    batches: list[Pair]
    test: Pair
    epochs: int
    lr: float
    numbers: tuple[int, ...]
    radii: tuple[float, ...]

    def model(self, seed: int) -> nn.Module:
        """The network before training."""
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(self.test[0].shape[1], 50), nn.ReLU(), nn.Linear(50, 1)).double()


def diabetes() -> Regression:
    from sklearn.datasets import load_diabetes

    x, y = (torch.tensor(a, dtype=torch.float64) for a in load_diabetes(return_X_y=True))
    x, y = (_unit(t, t[:400]) for t in (x, y))
    return Regression(title="diabetes", batches=[(x[:400], y[:400])], test=(x[400:], y[400:]), epochs=20, lr=0.02,
                      numbers=(0, 5, 10, 20, 40), radii=(0.05, 0.1, 0.2))  # fmt: skip


def household(path: Path, seed: int) -> Regression:
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if all(row[name] not in ("", "?", "NA") for name in COLUMNS)]
    found = torch.tensor([[float(row[name]) for name in COLUMNS] for row in rows], dtype=torch.float64)
    angle = torch.tensor([_minutes(row["time"]) * math.tau / 1440 for row in rows], dtype=torch.float64)
    x = torch.cat([found[:, 1:], angle.sin()[:, None], angle.cos()[:, None]], 1)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    train, test = order[:36000], order[36000:]
    x, y = ((t - t[train].mean(0)) / t[train].std(0) for t in (x, found[:, 0]))
    batches = list(zip(x[train].split(6000), y[train].split(6000), strict=True))
    return Regression(title="household power", batches=batches, test=(x[test], y[test]), epochs=1, lr=0.1,
                      numbers=(0, 30, 60, 120, 240), radii=(0.05, 0.1, 0.2))  # fmt: skip


COLUMNS = ("global_active_power", "global_reactive_power", "voltage", "sub_metering_1", "sub_metering_2",
           "sub_metering_3")  # fmt: skip


def _minutes(time: str) -> int:
    hours, minutes, _ = time.split(":")
    return 60 * int(hours) + int(minutes)


def _unit(t: Tensor, like: Tensor) -> Tensor:
    return (t - like.amin(0)) / (like.amax(0) - like.amin(0))


def measured(
    task: Regression, number: int, radius: float, *, domain: Literal["box", "zonotope"], seed: int, attacks: bool
) -> tuple[float, float | None, float]:
    """MSE: certified, the largest that attacks reach, and without poison."""
    budget = rp.PoisoningBudget(labels=number, label_radius=radius) if number else rp.PoisoningBudget()
    arguments: dict[str, Any] = {"loss": "mse", "optimizer": rp.SGD(lr=task.lr), "epochs": task.epochs,
                                 "domain": domain, "progress": False}  # fmt: skip
    model = task.model(seed)
    if attacks and number:
        chosen = (rp.GradientAlignment(), rp.LossAscent(), rp.RandomPoisoning(count=2))
        found = rp.poisoning_bracket(model, task.batches, budget, validation=task.test, attacks=chosen, **arguments)
        if found.crossings:
            raise SystemExit("\n".join(found.crossings))
        assert found.score is not None
        assert found.nominal is not None
        return found.score[1], found.score[0], found.nominal
    run = rp.abstract_gradient_training(model, task.batches, budget, **arguments)
    x, y = task.test
    with torch.no_grad():
        nominal = (run.nominal(x).squeeze(1) - y).square().mean().item()
    worst = run.worst_loss(x, y)
    assert isinstance(worst, float)
    return worst, nominal if not number else None, nominal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("out/poisoning_regression"))
    parser.add_argument("--domain", choices=("box", "zonotope"), default="box")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-attacks", action="store_true")
    options = parser.parse_args()
    task = diabetes() if options.data is None else household(options.data, options.seed)
    lines = ["| nu | m | certified MSE | largest MSE that attacks reach | without poison |", "|---|---|---|---|---|"]
    curves, nominal = [], 0.0
    print("\n".join(lines))
    for radius in task.radii:
        certified, achieved = [], []
        for number in task.numbers:
            proved, reached, nominal = measured(
                task, number, radius, domain=options.domain, seed=options.seed, attacks=not options.no_attacks
            )
            certified.append(proved)
            achieved.append(math.nan if reached is None else reached)
            said = "" if reached is None else f"{reached:.4f}"
            lines.append(f"| {radius:g} | {number} | {proved:.4f} | {said} | {nominal:.4f} |")
            print(lines[-1], flush=True)
        curves.append(
            Curve(label=f"nu = {radius:g}", sizes=task.numbers, certified=certified,
                  achieved=None if options.no_attacks else achieved)
        )  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "results.md").write_text("\n".join(lines) + "\n")
    batch = len(task.batches[0][0])
    figure = curve_figure({task.title: curves}, score="mean squared error", nominal=nominal,
                          sizes={task.title: f"m: labels moved, of {batch} in a batch"})  # fmt: skip
    for suffix in ("svg", "png"):
        figure.savefig(options.out / f"curves.{suffix}", dpi=130)
    print(f"the table and the picture: {options.out}")


if __name__ == "__main__":
    main()
