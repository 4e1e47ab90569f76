"""The recipes side by side at equal epochs on full MNIST, and what an epoch costs: one table.

    python integration/comparisons/robust_training.py --data FOLDER [--epochs 10] [--model mlp] [--eps 0.1]
        [--recipes standard --recipes ibp ...] [--without-art] [--out FILE]

FOLDER holds the four idx files of MNIST. Each recipe trains the same initial network for the same number of epochs in
the same order: Adam 1e-3, times 0.2 after 5/7 and 6/7 of the epochs, batches of 128, gradients clipped to norm 10;
certified ones ramp from epoch 1 to 60 % of the epochs. Columns: clean accuracy, accuracy under PGD-40, and certified
accuracy by `interval:ibp`, on all test images; and the CPU seconds of an epoch in which the worst case counts, on one
thread, relative to standard training. A few batches of ART's AdversarialTrainer (PGD-7, half of each batch) run too,
for their cost alone, unless --without-art is given.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import robust_plugins as rp
from robust_plugins.plugins import parse_component

BATCH = 128


class Timed:
    """The loss, which notes the CPU time between the steps in which the worst case counts."""

    def __init__(self, loss: rp.MixedLoss) -> None:
        self.loss, self.seconds, self.steps = loss, 0.0, 0
        self._since: float | None = None

    def step(self, epoch: int, batch: int, batches: int) -> None:
        """Passes on the end of a step, which is when its time is known."""
        self.loss.step(epoch, batch, batches)
        if self._since is not None and batch >= 0:
            self.seconds += time.process_time() - self._since
            self.steps += 1

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """The loss, whose computation is the beginning of a step."""
        start = time.process_time()
        value = self.loss(model, x, y)
        counts = value.terms.worst is not None or self.loss.worst is None
        self._since = start if counts else None
        return value


def trained(spec: str, data: rp.Dataset, ball: rp.Ball, arguments: dict[str, Any]) -> tuple[nn.Module, float]:
    """The network, and the CPU seconds of a full epoch."""
    epochs = arguments["epochs"]
    accepted = next(info for info in rp.recipes() if info.name == parse_component(spec)[0]).parameters
    offered = {"ball": ball, "epochs": epochs, "schedule": rp.Ramp(start=min(1, epochs / 10), end=0.6 * epochs)}
    loss = Timed(rp.recipe(spec, **{name: value for name, value in offered.items() if name in accepted}))
    torch.manual_seed(0)
    model = rp.model(arguments["model"], input_shape=data.input_shape, classes=data.classes)
    loader = DataLoader(
        TensorDataset(data.x_train, data.y_train), batch_size=BATCH, shuffle=True,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    decay = [round(epochs * 5 / 7), round(epochs * 6 / 7)]
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, decay, gamma=0.2)
    rp.fit(model, loader, loss, epochs=epochs, optimizer=optimizer, scheduler=scheduler, clip_gradient=10.0)
    return model, loss.seconds / max(1, loss.steps) * len(loader)


def measured(model: nn.Module, data: rp.Dataset, ball: rp.Ball) -> dict[str, float]:
    found = rp.Scores(x=data.x_test, y=data.y_test, ball=ball, attack="art:pgd(steps=40)")(model)
    return {"clean": found["clean"], "PGD-40": found["art:pgd"], "certified": found["interval:ibp"]}


def art_seconds(data: rp.Dataset, ball: rp.Ball, arguments: dict[str, Any]) -> float:
    """CPU seconds of an epoch of ART's AdversarialTrainer with PGD-7 on half of each batch."""
    from art.attacks.evasion import ProjectedGradientDescent
    from art.defences.trainer import AdversarialTrainer
    from art.estimators.classification import PyTorchClassifier

    torch.manual_seed(0)
    model = rp.model(arguments["model"], input_shape=data.input_shape, classes=data.classes)
    classifier = PyTorchClassifier(
        model, nn.CrossEntropyLoss(), data.input_shape, data.classes,
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-3), clip_values=(0.0, 1.0), device_type="cpu",
    )  # fmt: skip
    eps = ball.radii
    attack = ProjectedGradientDescent(
        classifier, eps=eps, eps_step=2.5 * eps / 7, max_iter=7, num_random_init=1, batch_size=BATCH, verbose=False
    )
    # A few batches: every one costs the same.
    samples = 10 * BATCH
    trainer = AdversarialTrainer(classifier, attack, ratio=0.5)
    x, y = data.x_train[:samples].numpy(), data.y_train[:samples].numpy()
    start = time.process_time()
    trainer.fit(x, y, batch_size=BATCH, nb_epochs=1)
    return (time.process_time() - start) * len(data.x_train) / samples


@click.command(help=__doc__)
@click.option("--data", "folder", required=True, help="The folder with the four idx files of MNIST.")
@click.option("--epochs", default=10, show_default=True)
@click.option("--model", default="mlp", show_default=True)
@click.option("--eps", default=0.1, show_default=True)
@click.option("--recipes", multiple=True, help="A recipe, with parameters; repeatable. Default: all.")
@click.option("--without-art", is_flag=True)
@click.option("--out", type=click.Path(path_type=Path), help="Write the table as JSON, too.")
def main(out: Path | None, without_art: bool, recipes: tuple[str, ...], **arguments: Any) -> None:
    torch.set_num_threads(1)
    data = rp.dataset("mnist", folder=arguments["folder"])
    ball = rp.Linf(eps=arguments["eps"], clip=data.clip)
    names = list(recipes) or [info.name for info in rp.recipes()]
    if names[0] != "standard":
        names.insert(0, "standard")  # what the others are compared with
    rows: dict[str, dict[str, float]] = {}
    print(f"{arguments['model']}, MNIST, eps {arguments['eps']}, {arguments['epochs']} epochs, one seed\n")
    print(f"| recipe | clean % | PGD-40 % | certified % | epoch / standard |\n|{'---|' * 5}")
    for name in names:
        model, seconds = trained(name, data, ball, arguments)
        rows[name] = measured(model, data, ball) | {"cost": seconds}
        shares = " | ".join(f"{100 * rows[name][c]:.2f}" for c in ("clean", "PGD-40", "certified"))
        print(f"| {name} | {shares} | {seconds / rows['standard']['cost']:.2f} |", flush=True)
    if not without_art:
        cost = art_seconds(data, ball, arguments)
        print(f"| ART AdversarialTrainer, PGD-7 | | | | {cost / rows['standard']['cost']:.2f} |")
        rows["ART AdversarialTrainer"] = {"cost": cost}
    for column in ("clean", "PGD-40", "certified"):
        best = max(names, key=lambda name: rows[name][column])
        print(f"{'' if column != 'clean' else chr(10)}best {column}: {best}, {100 * rows[best][column]:.2f} %")
    if out is not None:
        out.write_text(json.dumps(arguments | {"rows": rows}, indent=2))


if __name__ == "__main__":
    main()
