"""`robust-plugins poison`: what poisoned data can do to a training, between attacks and certificates."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import click
import torch
from torch import Tensor

from robust_plugins.brackets import PoisoningBracket, poisoning_bracket
from robust_plugins.cli.folder import claim, write_whole
from robust_plugins.cli.printing import as_json, finite, fitted, print_json
from robust_plugins.cli.values import on_device
from robust_plugins.data import Dataset, dataset
from robust_plugins.harness.pictures import svg
from robust_plugins.harness.table import Table
from robust_plugins.networks import load_model
from robust_plugins.poisoning import SGD, Adam, AdamW, NormClip, poisoning_attack
from robust_plugins.poisoning.abstract.settings import Domain
from robust_plugins.poisoning.budget_text import parse_budget
from robust_plugins.poisoning.concrete.optimizers import Optimizer

WRITES = (("checkpoint", ""), ("bracket", ".svg"))
"""What is written into the folder for each budget, besides the record."""

OPTIMIZERS: dict[str, type[Optimizer]] = {"sgd": SGD, "adam": Adam, "adamw": AdamW}


@click.command(
    short_help="Train while data are poisoned: how bad can it get?",
    epilog="Exit codes: 0 success; 1 training failed; 2 wrong usage; 3 an attack contradicts a certificate.",
)
@click.option("--data", "data_name", required=True, help="A data set ('digits', 'mnist(folder=\"...\")') or path.npz.")
@click.option("--model", "model_spec", required=True, help="A network of the zoo, or 'package.module:factory'.")
@click.option("--weights", help="Weights to start from (fine-tuning): a state dict, or safetensors.")
@click.option(
    "--trained",
    multiple=True,
    help="A parameter to train, '2.weight'; repeatable, the others are frozen. Default: all.",
)
@click.option(
    "--budget", "budgets", multiple=True, required=True,
    help="What the poisoner may do to every batch: 'points=10,eps=0.01,labels=2', 'substitution(k=5)', 'removal(k=5)', "
    "...; repeatable.",
)  # fmt: skip
@click.option("--epochs", type=click.IntRange(min=1), default=1, show_default=True, help="Passes over the data.")
@click.option("--batch-size", type=click.IntRange(min=1), default=100, show_default=True, help="Samples per update.")
@click.option("--optimizer", type=click.Choice(list(OPTIMIZERS)), default="sgd", show_default=True, help="torch's.")
@click.option("--lr", type=float, default=0.1, show_default=True, help="The learning rate.")
@click.option("--decay", type=float, default=0.0, show_default=True, help="lr / (1 + decay t) at update t.")
@click.option("--momentum", type=float, default=0.0, show_default=True, help="The momentum of SGD.")
@click.option("--weight-decay", type=float, default=0.0, show_default=True, help="As in torch.")
@click.option("--clip-gradient", type=float, help="Clips every sample's gradient elementwise; for k samples replaced.")
@click.option("--clip-norm", type=float, help="Clips every sample's gradient by its norm instead.")
@click.option(
    "--domain", type=click.Choice(get_args(Domain)), default="box", show_default=True, help="The domain of the bounds."
)
@click.option("--outward", is_flag=True, help="Bounds that hold for floating-point training, too.")
@click.option("--double", is_flag=True, help="Train in double precision.")
@click.option(
    "--samples", type=click.IntRange(min=1), default=1000, show_default=True, help="Use the first so many test samples."
)
@click.option(
    "--attacks", multiple=True, help="An attack ('poison:random(count=20)'); repeatable. Default: four of them."
)
@click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="The seed of everything random."
)
@click.option(
    "--out", type=click.Path(path_type=Path), required=True,
    help="A folder: record.json, a picture per budget, and checkpoints from which an interrupted run goes on.",
)  # fmt: skip
@on_device
@as_json
@click.pass_context
def poison(
    ctx: click.Context,
    data_name: str,
    model_spec: str,
    weights: str | None,
    trained: tuple[str, ...],
    budgets: tuple[str, ...],
    epochs: int,
    batch_size: int,
    optimizer: str,
    lr: float,
    decay: float,
    momentum: float,
    weight_decay: float,
    clip_gradient: float | None,
    clip_norm: float | None,
    domain: Domain,
    outward: bool,
    double: bool,
    samples: int,
    attacks: tuple[str, ...],
    seed: int,
    out: Path,
    device: torch.device,
    as_json: bool,
) -> None:
    """Train while data are poisoned: how bad can the model get, and how bad at most?"""
    if clip_gradient is not None and clip_norm is not None:
        raise click.UsageError("--clip-gradient and --clip-norm are two ways to clip: give one of them.")
    if momentum and optimizer != "sgd":
        raise click.UsageError("--momentum is SGD's: leave it out for others.")
    parsed = [parse_budget(text) for text in budgets]
    if clip_gradient is None and clip_norm is None and any(budget.unbounded for budget in parsed):
        raise click.UsageError(
            "samples that may hold anything need clipped gradients: give --clip-gradient or --clip-norm."
        )
    schedule: dict[str, Any] = {"lr": lr, "decay": decay, "weight_decay": weight_decay}
    update = OPTIMIZERS[optimizer](**schedule | ({"momentum": momentum} if optimizer == "sgd" else {}))
    clip = NormClip(clip_norm) if clip_norm is not None else clip_gradient
    for name in attacks:
        poisoning_attack(name)  # a name that is wrong is told before anything is trained
    data = dataset(data_name)
    dtype = torch.float64 if double else torch.float32
    settings: dict[str, Any] = {
        "data": data.name, "model": model_spec, "weights": weights, "trained": list(trained), "budgets": list(budgets),
        "epochs": epochs, "batch_size": batch_size, "optimizer": repr(update), "clip_gradient": repr(clip),
        "domain": domain, "outward": outward, "double": double, "samples": samples, "attacks": list(attacks),
        "seed": seed, "torch": torch.__version__,
    }  # fmt: skip
    writes = ("record.json", *(f"{kind}-{n}{end}" for n in range(len(parsed)) for kind, end in WRITES))
    claim(out, settings, writes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = load_model(model_spec, input_shape=data.input_shape, classes=data.classes, weights=weights)
        model = model.to(device, dtype)
        batches = _batches(data, batch_size, device, dtype)
    brackets = []
    for number, budget in enumerate(parsed):
        brackets.append(
            poisoning_bracket(
                model,
                batches,
                budget,
                loss="cross_entropy",
                optimizer=update,
                epochs=epochs,
                clip_gradient=clip,
                domain=domain,
                parameters=trained or None,
                validation=(data.x_test[:samples].to(device, dtype), data.y_test[:samples].to(device)),
                rounding="outward" if outward else "nearest",
                stop_when_vacuous=True,
                checkpoint=out / f"checkpoint-{number}",
                attacks=attacks or None,
                seed=seed,
                progress=not as_json and sys.stderr.isatty(),
            )
        )
    result = settings | {"brackets": [bracket.to_dict() for bracket in brackets]}
    _write(out, result, brackets)
    if as_json:
        print_json(result)
    else:
        for text, bracket in zip(budgets, brackets, strict=True):
            table, *said = bracket.parts()
            shown = fitted(table) if isinstance(table, Table) else table
            click.echo("\n".join([text, shown, *map(str, said)]) + "\n")
        click.echo(f"The record and the pictures: {out}")
    ctx.exit(3 if any(bracket.crossings for bracket in brackets) else 0)


def _batches(data: Dataset, size: int, device: torch.device, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    order = torch.randperm(len(data.x_train))
    x, y = data.x_train[order].to(device, dtype), data.y_train[order].to(device)
    return list(zip(x.split(size), y.split(size), strict=True))


def _write(out: Path, result: dict[str, Any], brackets: Sequence[PoisoningBracket]) -> None:
    text = json.dumps(finite(result), indent=2, allow_nan=False)
    write_whole(out / "record.json", lambda path: path.write_text(text))
    if find_spec("matplotlib") is None:
        click.echo('no pictures: they need matplotlib; pip install "robust_plugins[report]"', err=True)
        return
    for number, bracket in enumerate(brackets):
        (out / f"bracket-{number}.svg").write_text(svg(bracket.plot(), f"bracket{number}"))
