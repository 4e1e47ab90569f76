"""The recipes side by side at equal epochs on full MNIST, and the lecture's figures: tables in Markdown.

    python integration/comparisons/robust_training.py --data FOLDER [--epochs 10] [--store FILE] [--table FILE]
        [--run "mlp 0.1 ibp" ...]

FOLDER holds the four idx files of MNIST. Every run trains the same initial network, one seed, in the same order of
batches of 128: Adam at 2e-3 until 30 % of the epochs, then falling by the epoch on a straight line to zero, gradients
clipped to norm 10. Recipes with bounds ramp on a straight line over the first 30 % of the epochs. Rate, decay and ramp
come from trials of `ibp` on 10,000 images held out of the training set; the other recipes were not tuned. Where a run
is called `ramped`, the clean loss gives way to the recipe's along the ramp, as it does in `ibp` and `crown-ibp`; in the
papers of the others it does not.

Columns, over all test images: clean accuracy, accuracy under PGD-40, and certified accuracy by `interval:ibp`, which
`lirpa:ibp` proves again; a sample that is certified and attacked stops the script. Finished runs are kept in the store
and are not repeated; the table is written after each. What each recipe costs: `training_speed.md`.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import robust_plugins as rp
from robust_plugins.registry.naming import parse_component

BATCH, RATE, RAMP = 128, 2e-3, 0.3
EXPRESSIVE = ("mtl-ibp", "cc-ibp", "exp-ibp")
RAMPED = tuple(f"{name} ramped" for name in EXPRESSIVE)
RUNS = [
    *(f"mlp 0.1 {name}" for name in ("standard", "ibp")),
    *(f"cnn 0.1 {name}" for name in ("standard", "ibp")),
    *(f"cnn 0.3 {name}" for name in ("standard", "ibp")),
    *(f"mlp 0.1 {name}" for name in ("madry(gamma=0.5)", "crown-ibp", *EXPRESSIVE, *RAMPED, "sabr", "sabr ramped")),
    *(f"mlp 0.1 {name}" for name in ("sabr(ratio=0.8)", "goodfellow", "fast", "madry", "trades", "mart")),
    "_lecture",
    *(f"cnn 0.1 {name}" for name in ("madry(gamma=0.5)", "crown-ibp", *EXPRESSIVE, *RAMPED, "sabr", "sabr ramped")),
    *(f"cnn 0.1 {name}" for name in ("sabr(ratio=0.8)", "sabr(ratio=0.8) ramped", "goodfellow", "fast", "madry")),
    *(f"cnn 0.1 {name}" for name in ("trades", "mart")),
    *(f"cnn 0.3 {name}" for name in ("madry(gamma=0.5)", "crown-ibp", *EXPRESSIVE, *RAMPED, "sabr(ratio=0.6)")),
    "cnn 0.3 goodfellow",
]
"""Network, eps and recipe, in the order in which they are run; and the lecture's figures."""
COLUMNS = {"clean": "clean", "PGD-40": "art:pgd", "certified": "interval:ibp", "again": "lirpa:ibp"}
LECTURE_BATCH, LECTURE_RATE = 64, 1e-3
"""The lecture does not say how its network was trained."""


def recipe(spec: str, ball: rp.Ball, epochs: int) -> rp.MixedLoss:
    spec, _, ramped = spec.partition(" ")
    accepted = next(info for info in rp.recipes() if info.name == parse_component(spec)[0]).parameters
    offered = {"ball": ball, "epochs": epochs}
    offered["schedule"] = rp.Ramp(start=0, end=RAMP * epochs, shape="linear")
    loss = rp.recipe(spec, **{name: value for name, value in offered.items() if name in accepted})
    return replace(loss, gamma=0.0) if ramped else loss


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


def lecture(data: rp.Dataset, epochs: int) -> dict[str, dict[str, float]]:
    """Standard training of the lecture's network, and its figures after every epoch."""
    model = network("mlp", data)
    optimizer = torch.optim.Adam(model.parameters(), lr=LECTURE_RATE)
    small, large = (rp.Linf(eps=eps, clip=data.clip) for eps in (0.0025, 0.1))
    ibp, fgsm, x, y = rp.certifier("interval:ibp"), rp.attack("art:fgsm"), data.x_test, data.y_test

    def figures(model: nn.Module) -> dict[str, float]:
        with torch.no_grad():
            clean, z = model(x).argmax(1) == y, ibp.bounds(model, x, small)
        rival = z.upper.scatter(1, y.unsqueeze(1), -torch.inf).amax(1)
        found = {
            "clean": clean,
            "FGSM at 0.1": ~fgsm(model, x, y, large).success,
            "IBP at 0.0025, logits": z.lower.gather(1, y.unsqueeze(1)).squeeze(1) > rival,
            "IBP at 0.0025, margins": ibp(model, x, y, small).certified,
        }
        return {name: float(which.float().mean()) for name, which in found.items()}

    batches = loader(data, LECTURE_BATCH)
    record = rp.fit(model, batches, rp.recipe("standard"), epochs=epochs, optimizer=optimizer, evaluate=figures)
    return {str(epoch.epoch): epoch.scores for epoch in record.epochs}


def table(rows: dict[str, Any], epochs: int) -> str:
    lines = ["# Robust training on full MNIST", "", *(__doc__ or "").strip().splitlines()[2:], ""]
    place = {key: index for index, key in enumerate(RUNS)}
    rows = dict(sorted(rows.items(), key=lambda item: place.get(item[0], len(place))))
    groups = dict.fromkeys(tuple(key.split(" ")[:2]) for key in rows if key[0] != "_")
    for name, eps in groups:
        chosen = {key.split(" ", 2)[2]: row for key, row in rows.items() if key.startswith(f"{name} {eps} ")}
        lines += [f"## {name}, eps {eps}, {epochs} epochs", ""]
        lines += ["| recipe | clean % | PGD-40 % | certified % | again by `lirpa:ibp` % |", "|---" * 5 + "|"]
        for spec, row in chosen.items():
            lines.append(f"| {spec} | " + " | ".join(f"{100 * row[c]:.2f}" for c in COLUMNS.values()) + " |")
        lines.append("")
        for column in ("clean", "PGD-40", "certified"):
            best = max(chosen, key=lambda spec: chosen[spec][COLUMNS[column]])
            lines.append(f"- best {column}: {best}, {100 * chosen[best][COLUMNS[column]]:.2f} %")
        lines.append("")
    if "_lecture" in rows:
        names = list(rows["_lecture"]["1"])
        lines += ["## The lecture's network after standard training", ""]
        lines += [f"Adam at {LECTURE_RATE:g}, batches of {LECTURE_BATCH}; accuracies in %.", ""]
        lines += ["| epochs | " + " | ".join(names) + " |", "|---" * (1 + len(names)) + "|"]
        for epoch, scores in rows["_lecture"].items():
            lines.append(f"| {epoch} | " + " | ".join(f"{100 * scores[name]:.2f}" for name in names) + " |")
        lines.append("")
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
    kept: dict[str, Any] = {}
    if store.exists():
        content = json.loads(store.read_text())
        kept = content["rows"] if content["epochs"] == epochs else {}

    def keep(key: str, row: dict[str, Any]) -> None:
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
        keep(key, measured(trained(name, spec, data, ball, epochs), data, ball))
    page.write_text(table(kept, epochs))


if __name__ == "__main__":
    main()
