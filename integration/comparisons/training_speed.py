"""What robust training costs beside standard training: by recipe, by hand, by auto_LiRPA, and by ART's trainers.

    python integration/comparisons/training_speed.py --data FOLDER [--batch 128] [--batches 20] [--repeats 15]
        [--only "ibp;ibp by hand"] [--write FILE]

FOLDER holds the four idx files of MNIST; the networks are the zoo's `mlp` (784-256-128-10) and `cnn`, eps is 0.1, and
every loss is at full strength (`crown-ibp` in the middle of its ramp, where both of its bounds count). A step is loss,
gradients and Adam on one batch at hand. An epoch is `rp.fit` with a `DataLoader` over so many batches, or ART's own
`fit` over as many. Both are CPU time on one thread, divided by that of standard training right before and after; the
median of these ratios is printed.

`by hand` is the least that PyTorch can do: bounds as centre and radius through the layers, margins by the rows of the
last layer's weights, autograd, and no checks; and seven steps of the sign of the gradient on a model whose weights
need none. Both train for the same loss as the recipe named beside them.
"""

from __future__ import annotations

import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import robust_plugins as rp
from robust_plugins.registry.naming import parse_component

EPS, RATE = 0.1, 1e-5
NETWORKS = ("mlp", "cnn")
RECIPES = (
    "ibp", "ibp(gamma=0.0)", 'ibp(certifier="lirpa:ibp")', "crown-ibp", "sabr", "mtl-ibp", "cc-ibp", "exp-ibp",
    "goodfellow", "fast", "madry(gamma=0.5)", "madry", "trades", "mart",
)  # fmt: skip
IBP, PGD = "ibp by hand", "madry(gamma=0.5) by hand"
ART = {
    "ART AdversarialTrainer, PGD-7": False,
    "ART AdversarialTrainerCertifiedIBP": True,
}
"""Whether it trains on bounds."""

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


def network(name: str, data: rp.Dataset) -> nn.Module:
    torch.manual_seed(0)
    return rp.model(name, input_shape=data.input_shape, classes=data.classes)


def plain(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


def recipe(spec: str, ball: rp.Ball) -> rp.MixedLoss:
    """The loss where all of it counts."""
    accepted = next(info for info in rp.recipes() if info.name == parse_component(spec)[0]).parameters
    strength = 0.5 if spec.startswith("crown-ibp") else 1.0
    offered: dict[str, Any] = {"ball": ball, "epochs": 1, "schedule": lambda _: strength}
    return rp.recipe(spec, **{name: value for name, value in offered.items() if name in accepted})


def ibp_by_hand(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Half the clean loss, half that of the worst margins."""
    *hidden, last = model.children()
    low, up = (x - EPS).clamp(0, 1), (x + EPS).clamp(0, 1)
    c, r = (low + up) / 2, (up - low) / 2
    for layer in hidden:
        if isinstance(layer, nn.Linear):
            c, r = layer(c), F.linear(r, layer.weight.abs())
        elif isinstance(layer, nn.Conv2d):
            c, r = layer(c), F.conv2d(r, layer.weight.abs(), None, layer.stride, layer.padding)
        elif isinstance(layer, nn.ReLU):
            low, up = (c - r).relu(), (c + r).relu()
            c, r = (low + up) / 2, (up - low) / 2
        else:
            c, r = layer(c), layer(r)
    rows = last.weight[y].unsqueeze(1) - last.weight
    margins = (rows * c.unsqueeze(1)).sum(2) - (rows.abs() * r.unsqueeze(1)).sum(2) + last.bias[y, None] - last.bias
    return 0.5 * plain(model, x, y) + 0.5 * F.cross_entropy(-margins, y)


def pgd_by_hand(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Half the clean loss, half that of adversarial examples: 7 steps of a quarter of eps from a uniform start."""
    z = (x + torch.empty_like(x).uniform_(-EPS, EPS)).clamp(0, 1)
    model.requires_grad_(False)
    for _ in range(7):
        z.requires_grad_()
        (gradient,) = torch.autograd.grad(plain(model, z, y), z)
        z = torch.minimum(torch.maximum(z.detach() + EPS / 4 * gradient.sign(), x - EPS), x + EPS).clamp(0, 1)
    model.requires_grad_(True)
    return 0.5 * plain(model, x, y) + 0.5 * plain(model, z, y)


def step(name: str, loss: Loss, data: rp.Dataset, batch: int) -> Callable[[], object]:
    """A training step on the first batch."""
    model = network(name, data)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    x, y = data.x_train[:batch].clone(), data.y_train[:batch].clone()

    def run() -> None:
        optimizer.zero_grad()
        loss(model, x, y).backward()
        optimizer.step()

    return run


def epoch(name: str, loss: Loss, data: rp.Dataset, batch: int, batches: int) -> Callable[[], object]:
    """The training loop over the first batches."""
    model, count = network(name, data), batch * batches
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    loader = DataLoader(TensorDataset(data.x_train[:count], data.y_train[:count]), batch_size=batch, shuffle=True)
    return lambda: rp.fit(model, loader, loss, epochs=1, optimizer=optimizer, progress=False)


class Flattening(nn.Module):
    """The layers without Flatten, which ART's bounds do not know: it must happen between the modules."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        for index, layer in enumerate(layer for layer in model.children() if not isinstance(layer, nn.Flatten)):
            self.add_module(str(index), layer)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.children():
            x = layer(x.flatten(1) if isinstance(layer, nn.Linear) else x)
        return x


def art_epoch(name: str, data: rp.Dataset, batch: int, batches: int, *, certified: bool) -> Callable[[], object]:
    """Training by ART over the first batches."""
    from art.attacks.evasion import ProjectedGradientDescent
    from art.defences import trainer as trainers
    from art.estimators.certification.interval import PyTorchIBPClassifier
    from art.estimators.classification import PyTorchClassifier

    x, y = data.x_train[: batch * batches].numpy(), data.y_train[: batch * batches].numpy()
    model, shape = network(name, data), data.input_shape
    if certified:
        model = Flattening(model)
        if isinstance(next(model.children()), nn.Linear):
            x, shape = x.reshape(len(x), -1), (x[0].size,)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it announces what it supports
        classifier = (PyTorchIBPClassifier if certified else PyTorchClassifier)(
            model=model, loss=nn.CrossEntropyLoss(), input_shape=shape, nb_classes=data.classes,
            optimizer=optimizer, clip_values=data.clip, device_type="cpu",
        )  # fmt: skip
    if certified:
        trainer: Any = trainers.AdversarialTrainerCertifiedIBPPyTorch(
            classifier, bound=EPS, loss_weighting=0.5, batch_size=batch, use_certification_schedule=False,
            use_loss_weighting_schedule=False,
        )  # fmt: skip
        return lambda: trainer.fit(x, y, limits=list(data.clip), nb_epochs=1, verbose=False)
    attack = ProjectedGradientDescent(
        classifier, eps=EPS, eps_step=EPS / 4, max_iter=7, num_random_init=1, batch_size=batch, verbose=False
    )
    trainer = trainers.AdversarialTrainer(classifier, attack, ratio=1.0)
    return lambda: trainer.fit(x, y, batch_size=batch, nb_epochs=1)


def ratio(run: Callable[[], object], standard: Callable[[], object], repeats: int) -> float:
    """How often `standard` fits into `run`, in CPU time."""
    return statistics.median(ratios(run, standard, repeats))


def ratios(run: Callable[[], object], standard: Callable[[], object], repeats: int) -> list[float]:
    """The same, run by run."""

    def seconds(f: Callable[[], object]) -> float:
        start = time.process_time()
        f()
        return time.process_time() - start

    for f in (run, standard):
        f()  # what is done once
    found, before = [], seconds(standard)
    for _ in range(repeats):
        middle, after = seconds(run), seconds(standard)
        found.append(2 * middle / (before + after))
        before = after
    return found


def costs(name: str, subject: str, data: rp.Dataset, *, batch: int, batches: int, repeats: int) -> dict[str, float]:
    """Ratios of a step, where it can be asked for one, and of an epoch."""
    sizes = {"batch": batch, "batches": batches}
    standard, few = epoch(name, plain, data, **sizes), max(1, repeats // 3)
    if subject in ART:
        return {"epoch": ratio(art_epoch(name, data, **sizes, certified=ART[subject]), standard, few)}
    ball = rp.Linf(eps=EPS, clip=data.clip)
    loss = {IBP: ibp_by_hand, PGD: pgd_by_hand}.get(subject) or recipe(subject, ball)
    return {
        "step": ratio(step(name, loss, data, batch), step(name, plain, data, batch), repeats),
        "epoch": ratio(epoch(name, loss, data, **sizes), standard, few),
    }


def table(rows: dict[str, dict[str, dict[str, float]]], batch: int, batches: int) -> str:
    """Markdown: a row for each way to train, step and epoch for each network."""
    lines = ["# What robust training costs", "", *(__doc__ or "").strip().splitlines()[2:], ""]
    lines += [f"Batches of {batch}, epochs of {batches} of them. Standard training costs 1 in every column.", ""]
    names = list(next(iter(rows.values())))
    lines += ["| | " + " | ".join(f"step, {n} | epoch, {n}" for n in names) + " |", "|---" * (1 + 2 * len(names)) + "|"]
    for subject, row in rows.items():
        cells = [f"{row[n][what]:.2f}" if what in row[n] else "" for n in names for what in ("step", "epoch")]
        lines.append(f"| {subject} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


@click.command(help=__doc__)
@click.option("--data", "folder", required=True, help="The folder with the four idx files of MNIST.")
@click.option("--batch", default=128, show_default=True)
@click.option("--batches", default=20, show_default=True, help="In an epoch.")
@click.option("--repeats", default=15, show_default=True, help="Of steps; of epochs a third.")
@click.option("--only", default=None, help="Rows, separated by semicolons. Default: all.")
@click.option("--write", "page", type=click.Path(path_type=Path), default=None, help="Also write the table here.")
@click.option("--json", "as_json", is_flag=True)
def main(
    folder: str, batch: int, batches: int, repeats: int, only: str | None, page: Path | None, as_json: bool
) -> None:
    torch.set_num_threads(1)
    data = rp.dataset("mnist", folder=folder)
    subjects = only.split(";") if only else [RECIPES[0], IBP, *RECIPES[1:11], PGD, *RECIPES[11:], *ART]
    rows = {
        subject: {name: costs(name, subject, data, batch=batch, batches=batches, repeats=repeats) for name in NETWORKS}
        for subject in subjects
    }
    print(json.dumps(rows, indent=2) if as_json else table(rows, batch, batches))
    if page is not None:
        page.write_text(table(rows, batch, batches))


if __name__ == "__main__":
    main()
