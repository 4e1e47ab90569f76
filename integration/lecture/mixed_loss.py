"""The mixed loss: clean, attacked and certified accuracy against gamma, the weight of the clean loss.

    python -m integration.lecture.mixed_loss [--data ../shared/data/mnist] [--gammas 0 0.25 0.5 0.75 1] [--eps 0.1]
        [--train 10000] [--epochs 15] [--seed 0] [--out DIR]

Networks 784-256-128-10 are trained on gamma L(y, f(x)) + (1 - gamma) L(y, worst case), where the worst case is that of
interval bounds over the ball; its radius grows over the first two thirds of the training. gamma = 1 is plain training.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch

import robust_plugins as rp
from integration.lecture.attack_networks import called, mnist
from integration.lecture.notebook_network import Batches, network
from integration.lecture.parts import DATA, SEED, Option, Part, Table, package, picture, run
from robust_plugins.benchmark.reporting.style import COLOURS, KNOWN, PANEL

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OPTIONS = (
    DATA, SEED,
    Option(name="gammas", default=(0.0, 0.25, 0.5, 0.75, 1.0), quick=(0.5, 1.0), help="the weights of the clean loss"),
    Option(name="eps", default=0.1, help="the radius that is trained for and tested"),
    Option(name="train", default=10_000, quick=300, help="how many training images at most"),
    Option(name="epochs", default=15, quick=2, help="of each training"),
    Option(name="images", default=500, quick=20, help="how many test images"),
)  # fmt: skip
ATTACK, CERTIFIER = "rp:pgd(steps=40)", "interval:ibp"


@dataclass(frozen=True, kw_only=True)
class Point:
    """Shares of the test images after one training."""

    gamma: float
    clean: float
    attacked: float
    certified: float


def measured(data: rp.Dataset, gamma: float, options: argparse.Namespace) -> Point:
    """One training, and what came of it."""
    model = network(data, options.seed)
    ball = rp.Linf(eps=options.eps, clip=data.clip)
    loss = rp.recipe("standard")
    if gamma < 1:
        ramp = rp.Ramp(start=0, end=2 * options.epochs / 3, shape="linear")
        loss = rp.MixedLoss(worst=CERTIFIER, gamma=gamma, ball=ball, schedule=ramp)
    batches = Batches(data.x_train[: options.train], data.y_train[: options.train])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    rp.fit(model, batches, loss, epochs=options.epochs, optimizer=optimizer, clip_gradient=10.0, progress=False)
    x, y = data.x_test[: options.images], data.y_test[: options.images]
    scores = rp.Scores(x=x, y=y, ball=ball, attack=ATTACK, certifier=CERTIFIER)(model)
    clean, attacked, certified = (float(score) for score in scores.values())
    return Point(gamma=gamma, clean=clean, attacked=attacked, certified=certified)


def draw(points: Sequence[Point]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(PANEL[0], 3.5), layout="constrained")
    axes = figure.subplots()
    gammas = [p.gamma for p in points]
    attacked, certified = ([100 * share for share in shares] for shares in
                           ([p.attacked for p in points], [p.certified for p in points]))  # fmt: skip
    axes.fill_between(gammas, certified, attacked, color=KNOWN, label="not known")
    axes.plot(gammas, [100 * p.clean for p in points], color=COLOURS[6], marker="o", markersize=4, linestyle=":",
              label="clean")  # fmt: skip
    axes.plot(gammas, attacked, color=COLOURS[1], marker="v", markersize=4, linestyle="--", label="left by PGD")
    axes.plot(gammas, certified, color=COLOURS[0], marker="^", markersize=4, label="certified by IBP")
    axes.set(xlabel="gamma, the weight of the clean loss", ylabel="test images (%)", ylim=(-3, 103))
    axes.grid(alpha=0.25)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize="small")
    return figure


def make(options: argparse.Namespace) -> Part:
    data = mnist(options.data)
    count = min(len(data.x_train), options.train)
    path = options.out / "trainings.jsonl"
    about = {"eps": options.eps, "train": count, "data": data.name, "epochs": options.epochs, "images": options.images,
             "seed": options.seed, "package": package()}  # fmt: skip
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    known = {line["point"]["gamma"]: Point(**line["point"]) for line in lines if line["about"] == about}
    for gamma in options.gammas:
        if gamma not in known:
            known[gamma] = measured(data, gamma, options)
            with path.open("a") as file:
                file.write(json.dumps({"about": about, "point": asdict(known[gamma])}) + "\n")
            print(known[gamma], file=sys.stderr, flush=True)
    points = [known[gamma] for gamma in sorted(options.gammas)]
    table = Table(
        name="mixed_loss", columns=("gamma", "clean %", "left by PGD %", "certified %"),
        rows=tuple(
            (f"{p.gamma:g}", *(f"{100 * share:.1f}" for share in (p.clean, p.attacked, p.certified))) for p in points
        ),
        caption=f"Of {options.images} test images at eps = {options.eps:g}: PGD with 40 steps, IBP by margins.",
    )  # fmt: skip
    return Part(
        title="The mixed loss",
        sentence="The less weight the clean loss has, the more is certified, and the narrower the gap to what attacks "
        "leave; clean accuracy pays for it. Plain training, at gamma = 1, leaves nothing that IBP can certify.",
        data=f"{called(data)}, {count} of them used; networks 784-256-128-10, {options.epochs} epochs.",
        pictures=(picture(draw(points), "mixed_loss", "The true robust accuracy lies in the shaded band."),),
        tables=(table,),
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    run("mixed_loss", make, OPTIONS, arguments, describe=__doc__)


if __name__ == "__main__":
    main()
