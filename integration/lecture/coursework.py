"""The lecture's notebook from end to end, and its assignments: PGD, and training with PGD.

    python -m integration.lecture.coursework [--data ../shared/data/mnist] [--epochs 5] [--steps 7] [--test 10000]
        [--seed 0] [--out DIR]

A network 784-256-128-10 is trained on MNIST (Adam 1e-3, batches of 64, 5 epochs), attacked by FGSM at eps = 0.1 and
certified by IBP at 0.0025, without the last layer's being merged with the specification; beside it stand the notebook's
figures. The assignments: PGD at 0.1, and the same network trained on the examples that PGD finds at 0.1.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

import robust_plugins as rp
from integration.lecture.attack_networks import called, mnist
from integration.lecture.notebook_network import certified_by_boxes, logit_boxes, trained
from integration.lecture.parts import DATA, SEED, Option, Part, Table, percent, picture, run
from robust_plugins.benchmark.reporting.style import COLOURS, PANEL

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OPTIONS = (
    DATA, SEED,
    Option(name="epochs", default=5, quick=1, help="of both trainings"),
    Option(name="steps", default=7, quick=1, help="of PGD in training"),
    Option(name="train", default=60_000, quick=500, help="how many training images at most"),
    Option(name="test", default=10_000, quick=50, help="how many test images at most"),
)  # fmt: skip
LARGE, SMALL = 0.1, 0.0025
NOTEBOOK = {"clean": "97.61 %", "FGSM at 0.1": "15.74 %", "IBP at 0.0025, by logits": "78.21 %"}
ATTACKED, PROVED = "PGD at 0.1, 40 steps", "IBP at 0.0025, by margins"


def figures(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    """The shares of test images that are right, withstand the attacks, and are certified."""
    large, small = (rp.Linf(eps=eps, clip=(0.0, 1.0)) for eps in (LARGE, SMALL))
    counts = dict.fromkeys((*NOTEBOOK, ATTACKED, PROVED), 0)
    for part, labels in zip(x.split(1000), y.split(1000), strict=True):
        shares = {
            "clean": model(part).argmax(1) == labels,
            "FGSM at 0.1": ~rp.attack("rp:fgsm")(model, part, labels, large, seed=0).success,
            "IBP at 0.0025, by logits": certified_by_boxes(logit_boxes(model, part, small), labels),
            ATTACKED: ~rp.attack("rp:pgd(steps=40)")(model, part, labels, large, seed=0).success,
            PROVED: rp.certifier("interval:ibp")(model, part, labels, small).certified,
        }
        for name, share in shares.items():
            counts[name] += int(share.sum())
    return {name: count / len(x) for name, count in counts.items()}


def draw(found: dict[str, dict[str, float]]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(PANEL[0], 3.6), layout="constrained")
    axes = figure.subplots()
    names = list(next(iter(found.values())))
    for number, (title, shares) in enumerate(found.items()):
        at = [i + 0.2 * (2 * number - 1) for i in range(len(names))]
        bars = axes.barh(at, [100 * shares[name] for name in names], height=0.38, color=COLOURS[number], label=title)
        axes.bar_label(bars, fmt="%.1f", padding=2, fontsize="small")
    axes.set_yticks(range(len(names)), [name.replace(", ", ",\n") for name in names])
    axes.invert_yaxis()
    axes.set(xlim=(0, 115), xlabel="test images (%)")
    axes.set_xticks(range(0, 101, 20))
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize="small")
    return figure


def make(options: argparse.Namespace) -> Part:
    data, networks = mnist(options.data), options.out.parent / "networks"
    count = min(len(data.x_train), options.train)
    x, y = data.x_test[: options.test], data.y_test[: options.test]
    attack = rp.attack("rp:pgd", steps=options.steps, best=False) if options.steps > 1 else rp.attack("rp:pgd(steps=1)")
    robust = rp.MixedLoss(worst=attack, gamma=0.0, ball=rp.Linf(eps=LARGE, clip=data.clip))
    settings = {"epochs": options.epochs, "seed": options.seed, "samples": count}
    plain = trained(data, networks, **settings)
    hardened = trained(data, networks, loss=robust, name=f"pgd{options.steps}", **settings)
    found = {"standard training": figures(plain, x, y), "training with PGD": figures(hardened, x, y)}
    rows = tuple(
        (
            name,
            NOTEBOOK.get(name, "an assignment" if name == ATTACKED else ""),
            *(percent(shares[name]) for shares in found.values()),
        )
        for name in found["standard training"]
    )
    table = Table(
        name="coursework", columns=("accuracy", "notebook", *found), rows=rows,
        caption=f"Of {len(x)} test images. By logits: the class's lowest logit lies above all others' highest, as in "
        "the notebook; by margins: the last layer is merged with the differences of logits, which is tighter.",
    )  # fmt: skip
    return Part(
        title="The notebook and its assignments",
        sentence="A network that is nearly always right is nearly always wrong under attack, and certified for tiny "
        "radii alone; trained on what PGD finds, which is an assignment too, it withstands attacks, and that is no "
        "proof.",
        data=f"{called(data)}; a network 784-256-128-10, {options.epochs} epochs on {count} images.",
        pictures=(picture(draw(found), "coursework", "Accuracy after standard training and after training with PGD."),),
        tables=(table,),
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    run("coursework", make, OPTIONS, arguments, describe=__doc__)


if __name__ == "__main__":
    main()
