"""The lecture's picture of poisoned labels in a regression: certified MSE against m, for three label radii.

    python -m integration.lecture.poisoning_regression [--household FILE] [--domain box] [--pretraining 200]
        [--attacks 1] [--seed 0] [--out DIR]

The poisoner moves m labels of every batch by at most nu. The network is pre-trained on clean rows with small labels, as
on data of another source, and fine-tuned on all rows, poisoned; `--pretraining 0` trains it from its first weights.
Without `--household`: scikit-learn's diabetes (400 rows, network 10-50-1, full batch, 20 epochs at lr 0.02; features
and labels scaled to [0, 1]). With it: UCI's household power consumption by the minute, as a csv with its nine columns:
active power from the time of day, reactive power, voltage and the three meters; features and labels standardised,
network 7-50-1, 6 batches of 6000 rows, one epoch at lr 0.1.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

import robust_plugins as rp
from integration.lecture.parts import SEED, Option, Part, Table, picture, run
from robust_plugins.benchmark.reporting.style import PANEL
from robust_plugins.brackets.poisoning_plots import Curve, curve_figure

OPTIONS = (
    SEED,
    Option(name="household", default=None, kind=Path, help="UCI's household power consumption, instead of diabetes"),
    Option(name="domain", default="box", choices=("box", "zonotope"), help="what is trained on"),
    Option(name="pretraining", default=200, help="how many clean rows it is trained on before"),
    Option(name="attacks", default=1, choices=(0, 1), help="whether trainings are attacked"),
    Option(name="epochs", default=0, quick=2, help="of fine-tuning; 0: as many as the data's"),
)  # fmt: skip
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
    pretraining: int = 0
    """How many rows of the first batch, those with the smallest labels, the network is trained on before."""

    def model(self, seed: int) -> nn.Module:
        """The network before it is trained, or fine-tuned, on what may be poisoned."""
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(self.test[0].shape[1], 50), nn.ReLU(), nn.Linear(50, 1)).double()
        if self.pretraining:
            order = self.batches[0][1].argsort()[: self.pretraining]
            x, y = (t[order] for t in self.batches[0])
            optimizer = torch.optim.SGD(model.parameters(), lr=self.lr)
            for _ in range(100):
                optimizer.zero_grad()
                (model(x).squeeze(1) - y).square().mean().backward()
                optimizer.step()
        return model

    def error(self, model: nn.Module) -> float:
        """Its mean squared error on the test rows."""
        x, y = self.test
        with torch.no_grad():
            return (model(x).squeeze(1) - y).square().mean().item()


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
    trained = rp.abstract_gradient_training(model, task.batches, budget, **arguments)
    nominal, worst = task.error(trained.nominal), trained.worst_loss(*task.test)
    assert isinstance(worst, float)
    return worst, nominal if not number else None, nominal


def make(options: argparse.Namespace) -> Part:
    from matplotlib.ticker import ScalarFormatter

    task = diabetes() if options.household is None else household(options.household, options.seed)
    task = replace(task, pretraining=options.pretraining, epochs=options.epochs or task.epochs)
    before = task.error(task.model(options.seed))
    curves, rows, nominal = [], [], 0.0
    for radius in task.radii:
        certified, achieved = [], []
        for number in task.numbers:
            proved, reached, nominal = measured(
                task, number, radius, domain=options.domain, seed=options.seed, attacks=bool(options.attacks)
            )
            certified.append(proved)
            achieved.append(math.nan if reached is None else reached)
            said = "" if reached is None else f"{reached:.4f}"
            rows.append((f"{radius:g}", f"{number}", f"{proved:.4f}", said, f"{nominal:.4f}"))
        curves.append(
            Curve(label=f"nu = {radius:g}", sizes=task.numbers, certified=certified,
                  achieved=achieved if options.attacks else None)
        )  # fmt: skip
    batch = len(task.batches[0][0])
    figure = curve_figure({task.title: curves}, score="mean squared error", nominal=nominal,
                          sizes={task.title: f"m: labels moved, of {batch} in a batch"})  # fmt: skip
    axes = figure.axes[0]
    axes.get_legend().remove()
    axes.set(yscale="log", title="")
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(ScalarFormatter())
    trained = "trained"
    if task.pretraining:
        axes.axhline(before, color="0.5", linestyle="-.", linewidth=1, label="pre-trained, before")
        trained = (
            f"pre-trained on {task.pretraining} clean rows with small labels (error {before:.4f}), then fine-tuned"
        )
    figure.set_size_inches(PANEL[0], 4.4)
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize="small"
    )
    table = Table(
        name="poisoning_regression",
        columns=("nu", "m", "certified MSE", "largest MSE that attacks reach", "without poison"), rows=tuple(rows),
        caption=f"Mean squared error on {len(task.test[0])} test rows after {task.epochs} epochs; domain "
        f"{options.domain}.",
    )  # fmt: skip
    width = task.test[0].shape[1]
    caption = "Certified error (solid)."
    if options.attacks:
        most = max(value for curve in curves for value in curve.achieved or ())
        caption = f"Certified error (solid), and what attacks reach (dashed): {most:.4f} at most."
    return Part(
        title="Poisoned labels in a regression",
        sentence="However the poisoner moves m labels of a batch by up to nu, the error is proved to stay below the "
        "solid lines; fine-tuning is worth its risk as long as they are below the error of the network that it starts "
        "from.",
        data=f"{task.title}; a network {width}-50-1, {trained} on {batch * len(task.batches)} rows.",
        pictures=(picture(figure, "poisoning_regression", caption),),
        tables=(table,),
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    run("poisoning_regression", make, OPTIONS, arguments, describe=__doc__)


if __name__ == "__main__":
    main()
