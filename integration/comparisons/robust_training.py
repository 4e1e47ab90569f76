"""The recipes side by side at equal epochs on full MNIST, and what a step of each costs: tables in Markdown.

    python integration/comparisons/robust_training.py --data FOLDER [--epochs 10] [--store FILE] [--table FILE]
        [--run "mlp 0.1 ibp" ...]

FOLDER holds the four idx files of MNIST. Every run trains the same initial network, one seed, in the same order of
batches of 128: Adam at 2e-3 until 30 % of the epochs, then falling by the epoch on a straight line to zero, gradients
clipped to norm 10. Recipes with bounds ramp on a straight line over the first 30 % of the epochs. Rate, decay and ramp
come from trials of `ibp` on 10,000 images held out of the training set; the other recipes were not tuned.

Columns, over all test images: clean accuracy, accuracy under PGD-40, and certified accuracy by `interval:ibp`, which
`lirpa:ibp` proves again; a sample that is certified and attacked stops the script. The cost is the CPU time of a
training step in which the worst case counts, on one thread, over that of standard training: the median of ratios of
neighbours in time. Finished runs are kept in the store and are not repeated; the table is written after each.
"""

from __future__ import annotations

import json
import statistics
import sys
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
from robust_plugins.plugins import parse_component

BATCH, RATE, RAMP = 128, 2e-3, 0.3
RUNS = [
    *(f"mlp 0.1 {name}" for name in ("standard", "ibp")),
    *(f"cnn 0.1 {name}" for name in ("standard", "ibp")),
    "cnn 0.3 ibp",
    *(f"mlp 0.1 {name}" for name in ("madry(gamma=0.5)", "mtl-ibp", "cc-ibp", "exp-ibp", "crown-ibp", "goodfellow")),
    *(f"cnn 0.1 {name}" for name in ("mtl-ibp", "cc-ibp", "exp-ibp")),
    *(f"mlp 0.1 {name}" for name in ("sabr", "fast", "madry", "trades", "mart", "sabr(ratio=0.8)")),
    "_lecture",
    *(f"cnn 0.1 {name}" for name in ("goodfellow", "crown-ibp", "madry(gamma=0.5)", "sabr", "sabr(ratio=0.8)")),
    *(f"cnn 0.3 {name}" for name in ("mtl-ibp", "cc-ibp", "exp-ibp")),
]
"""Network, eps and recipe, in the order in which they are run; and the lecture's figures."""
COLUMNS = {"clean": "clean", "PGD-40": "art:pgd", "certified": "interval:ibp", "again": "lirpa:ibp"}
ART = ("ART AdversarialTrainer, PGD-7", "ART AdversarialTrainerCertifiedIBP")


def recipe(spec: str, ball: rp.Ball, epochs: int, *, ramp: bool = True) -> rp.MixedLoss:
    """The loss, at full strength from the start without `ramp`."""
    accepted = next(info for info in rp.recipes() if info.name == parse_component(spec)[0]).parameters
    offered = {"ball": ball, "epochs": epochs}
    offered["schedule"] = rp.Ramp(start=0, end=RAMP * epochs if ramp else 0, shape="linear")
    return rp.recipe(spec, **{name: value for name, value in offered.items() if name in accepted})


def network(name: str, data: rp.Dataset) -> nn.Module:
    torch.manual_seed(0)
    return rp.model(name, input_shape=data.input_shape, classes=data.classes)


def loader(data: rp.Dataset, batch: int) -> DataLoader[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(0)
    return DataLoader(TensorDataset(data.x_train, data.y_train), batch_size=batch, shuffle=True, generator=generator)


def trained(name: str, spec: str, data: rp.Dataset, ball: rp.Ball, epochs: int) -> nn.Module:
    loss, model = recipe(spec, ball, epochs), network(name, data)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    left = (1 - RAMP) * epochs
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: min(1.0, (epochs - epoch) / left))
    batches = loader(data, BATCH)
    rp.fit(model, batches, loss, epochs=epochs, optimizer=optimizer, scheduler=scheduler, clip_gradient=10.0)
    return model


def measured(model: nn.Module, data: rp.Dataset, ball: rp.Ball) -> dict[str, float]:
    """Accuracies on all test images; stops where a proof and an attack contradict each other."""
    attack, certifiers = rp.attack("art:pgd", steps=40), [rp.certifier("interval:ibp"), rp.certifier("lirpa:ibp")]
    counts = dict.fromkeys(COLUMNS.values(), 0)
    for x, y in zip(data.x_test.split(1000), data.y_test.split(1000), strict=True):
        with torch.no_grad():
            counts["clean"] += int((model(x).argmax(1) == y).sum())
        broken = attack(model, x, y, ball, seed=0).success
        counts["art:pgd"] += int((~broken).sum())
        for name, certifier in zip(("interval:ibp", "lirpa:ibp"), certifiers, strict=True):
            proved = certifier(model, x, y, ball).certified
            counts[name] += int(proved.sum())
            if bool((proved & broken).any()):
                sys.exit(f"{name} certified what PGD-40 attacked: one of the two is wrong")
    return {name: count / len(data.x_test) for name, count in counts.items()}


def lecture(data: rp.Dataset, epochs: int) -> dict[str, float]:
    """The lecture's network after standard training: clean, FGSM at 0.1, IBP at 0.0025 without elision and with it."""
    model = network("mlp", data)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    rp.fit(model, loader(data, 64), rp.recipe("standard"), epochs=epochs, optimizer=optimizer)
    counts = {"clean": 0, "FGSM at 0.1": 0, "IBP at 0.0025": 0, "IBP at 0.0025, elided": 0}
    small, ibp, fgsm = rp.Linf(eps=0.0025, clip=data.clip), rp.certifier("interval:ibp"), rp.attack("art:fgsm")
    for x, y in zip(data.x_test.split(1000), data.y_test.split(1000), strict=True):
        counts["clean"] += int((model(x).argmax(1) == y).sum())
        counts["FGSM at 0.1"] += int((~fgsm(model, x, y, rp.Linf(eps=0.1, clip=data.clip)).success).sum())
        with torch.no_grad():
            z = ibp.bounds(model, x, small)
        rival = z.upper.scatter(1, y.unsqueeze(1), -torch.inf).amax(1)
        counts["IBP at 0.0025"] += int((z.lower.gather(1, y.unsqueeze(1)).squeeze(1) > rival).sum())
        counts["IBP at 0.0025, elided"] += int(ibp(model, x, y, small).certified.sum())
    return {name: count / len(data.x_test) for name, count in counts.items()}


def step(name: str, loss: Callable[..., Tensor], data: rp.Dataset) -> Callable[[], None]:
    """A training step on the first batch."""
    model = network(name, data)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-5)
    x, y = data.x_train[:BATCH].clone(), data.y_train[:BATCH].clone()

    def run() -> None:
        optimizer.zero_grad()
        loss(model, x, y).backward()
        optimizer.step()

    return run


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


def art_step(name: str, which: str, data: rp.Dataset, eps: float) -> Callable[[], None]:
    """A training step by ART on the first batch."""
    from art.attacks.evasion import ProjectedGradientDescent
    from art.defences import trainer as trainers
    from art.estimators.certification.interval import PyTorchIBPClassifier
    from art.estimators.classification import PyTorchClassifier

    certified, x, y = which == ART[1], data.x_train[:BATCH].numpy(), data.y_train[:BATCH].numpy()
    model, shape = network(name, data), data.input_shape
    if certified:
        model = Flattening(model)
        if isinstance(next(model.children()), nn.Linear):
            x, shape = x.reshape(len(x), -1), (x[0].size,)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it announces what it supports
        classifier = (PyTorchIBPClassifier if certified else PyTorchClassifier)(
            model=model, loss=nn.CrossEntropyLoss(), input_shape=shape, nb_classes=data.classes,
            optimizer=optimizer, clip_values=data.clip, device_type="cpu",
        )  # fmt: skip
    if certified:
        trainer: Any = trainers.AdversarialTrainerCertifiedIBPPyTorch(
            classifier, bound=eps, loss_weighting=0.5, batch_size=BATCH, use_certification_schedule=False,
            use_loss_weighting_schedule=False,
        )  # fmt: skip
        return lambda: trainer.fit(x, y, limits=list(data.clip), nb_epochs=1, verbose=False)
    attack = ProjectedGradientDescent(
        classifier, eps=eps, eps_step=eps / 4, max_iter=7, num_random_init=1, batch_size=BATCH, verbose=False
    )
    trainer = trainers.AdversarialTrainer(classifier, attack, ratio=1.0)
    return lambda: trainer.fit(x, y, batch_size=BATCH, nb_epochs=1)


def cost(run: Callable[[], None], plain: Callable[[], None], repeats: int = 15) -> float:
    """How many plain steps one takes, in CPU time."""

    def seconds(f: Callable[[], None], times: int) -> float:
        start = time.process_time()
        for _ in range(times):
            f()
        return (time.process_time() - start) / times

    for f in (run, plain):
        seconds(f, 2)
    return statistics.median(seconds(run, 2) / seconds(plain, 4) for _ in range(repeats))


def table(rows: dict[str, dict[str, float]], epochs: int) -> str:
    lines = ["# Robust training on full MNIST", "", *(__doc__ or "").strip().splitlines()[2:], ""]
    place = {key: index for index, key in enumerate(RUNS)}
    rows = dict(sorted(rows.items(), key=lambda item: place.get(item[0], len(place))))
    groups = dict.fromkeys(tuple(key.split(" ")[:2]) for key in rows if key[0] != "_")
    for name, eps in groups:
        chosen = {key.split(" ", 2)[2]: row for key, row in rows.items() if key.startswith(f"{name} {eps} ")}
        lines += [f"## {name}, eps {eps}, {epochs} epochs", ""]
        lines += [
            "| recipe | clean % | PGD-40 % | certified % | again by `lirpa:ibp` % | cost of a step |",
            "|---" * 6 + "|",
        ]
        for spec, row in chosen.items():
            cells = [f"{100 * row[c]:.2f}" if c in row else "" for c in COLUMNS.values()]
            lines.append(f"| {spec} | " + " | ".join(cells) + f" | {row['cost']:.2f} |")
        finished = {spec: row for spec, row in chosen.items() if "clean" in row}
        lines.append("")
        for column in ("clean", "PGD-40", "certified"):
            best = max(finished, key=lambda spec: finished[spec][COLUMNS[column]])
            lines.append(f"- best {column}: {best}, {100 * finished[best][COLUMNS[column]]:.2f} %")
        lines.append("")
    if "_lecture" in rows:
        said = ", ".join(f"{what} {100 * share:.2f} %" for what, share in rows["_lecture"].items())
        lines += [f"The mlp after standard training with Adam at 1e-3 on batches of 64: {said}.", ""]
    missing = [key for key in RUNS if key not in rows]
    if missing:
        lines += [f"Not run yet: {', '.join(missing)}.", ""]
    return "\n".join(lines)


@click.command(help=__doc__)
@click.option("--data", "folder", required=True, help="The folder with the four idx files of MNIST.")
@click.option("--epochs", default=10, show_default=True)
@click.option("--run", "runs", multiple=True, help="Network, eps and recipe; repeatable. Default: all.")
@click.option("--store", type=click.Path(path_type=Path), default=Path(__file__).with_suffix(".json"))
@click.option("--table", "page", type=click.Path(path_type=Path), default=Path(__file__).with_suffix(".md"))
def main(folder: str, epochs: int, runs: tuple[str, ...], store: Path, page: Path) -> None:
    torch.set_num_threads(1)
    data = rp.dataset("mnist", folder=folder)
    kept: dict[str, dict[str, float]] = {}
    if store.exists():
        content = json.loads(store.read_text())
        kept = content["rows"] if content["epochs"] == epochs else {}

    def keep(key: str, row: dict[str, float]) -> None:
        kept[key] = row
        store.write_text(json.dumps({"epochs": epochs, "rows": kept}, indent=1) + "\n")
        page.write_text(table(kept, epochs))
        print(key, row, flush=True)

    for key in runs or RUNS:
        if key in kept:
            continue
        if key == "_lecture":
            keep(key, lecture(data, epochs))
            continue
        name, eps, spec = key.split(" ", 2)
        ball = rp.Linf(eps=float(eps), clip=data.clip)
        model = trained(name, spec, data, ball, epochs)
        loss = recipe(spec, ball, epochs, ramp=False)
        ratio = 1.0 if spec == "standard" else cost(step(name, loss, data), step(name, plain, data))
        keep(key, measured(model, data, ball) | {"cost": ratio})
        if spec == "ibp" and eps == "0.1":
            for which in ART:
                run = art_step(name, which, data, ball.largest)
                keep(f"{name} {eps} {which}", {"cost": cost(run, step(name, plain, data), repeats=7)})
    page.write_text(table(kept, epochs))


def plain(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


if __name__ == "__main__":
    main()
