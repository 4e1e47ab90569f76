"""`robust-plugins compare`: the bracket of one model on one data set."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click
import torch
from torch import nn

from robust_plugins.balls import L1, L2, Ball, Linf
from robust_plugins.benchmark import Comparison
from robust_plugins.benchmark import compare as run_comparison
from robust_plugins.benchmark.table import comparison_table, conclusion, rendered
from robust_plugins.cli.printing import as_json, print_json
from robust_plugins.data import Dataset, dataset
from robust_plugins.errors import PluginError
from robust_plugins.models import is_file, load_model, train
from robust_plugins.plugins import Kind, Status, models, parse_component, registry
from robust_plugins.results import Certificate, Verdict

BALLS: dict[str, type[Ball]] = {"linf": Linf, "l2": L2, "l1": L1}
EPOCHS = 10
"""For a network of the zoo that is given no weights."""


@click.command(
    epilog="Exit codes: 0 success; 1 a component failed; 2 wrong usage; 3 an attack contradicts a certificate."
)
@click.option(
    "--model",
    "spec",
    required=True,
    help="A network of the zoo ('cnn', 'mlp(widths=(64, 64))'), a TorchScript or torch.export file, or "
    "'package.module:factory'.",
)
@click.option("--weights", help="Its weights: a state dict written by torch.save, or safetensors.")
@click.option("--data", "data_name", required=True, help="A data set ('digits', 'mnist(folder=\"...\")') or path.npz.")
@click.option("--eps", "radii", type=float, multiple=True, required=True, help="A radius of the ball; repeatable.")
@click.option("--norm", type=click.Choice(list(BALLS)), default="linf", show_default=True, help="The ball's norm.")
@click.option("--clip", type=float, nargs=2, default=None, help="The valid range of the inputs, if not the data set's.")
@click.option(
    "--component",
    "components",
    multiple=True,
    help="An attack or a certifier, with parameters: 'art:pgd(steps=20)'; repeatable. Default: all that are there.",
)
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="At most so many test samples, the first.",
)
@click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Of training and attacks."
)
@click.option(
    "--epochs",
    type=click.IntRange(min=0),
    help=f"Train so long on the data set's training part first. Default: {EPOCHS} for a network of the zoo without "
    "weights, which has learnt nothing yet; 0 for others.",
)
@as_json
@click.pass_context
def compare(
    ctx: click.Context,
    spec: str,
    weights: str | None,
    data_name: str,
    radii: tuple[float, ...],
    norm: str,
    clip: tuple[float, float] | None,
    components: tuple[str, ...],
    samples: int,
    seed: int,
    epochs: int | None,
    as_json: bool,
) -> None:
    """Attack and certify one model on the same samples, and report whether the answers contradict each other."""
    if epochs and (weights or is_file(spec)):
        raise click.UsageError("--epochs trains a new network: leave it out for a model file and with --weights.")
    for name in components:
        registry().kind_of(name, [Kind.ATTACK, Kind.CERTIFIER])  # a misspelt name is found before training
    data = dataset(data_name)
    balls = [BALLS[norm](eps=eps, clip=clip or data.clip) for eps in radii]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # of the initialisation
        model = load_model(spec, input_shape=data.input_shape, classes=data.classes, weights=weights)
    trained = _train(model, data, _epochs(spec, weights, epochs), seed)
    x, y = data.x_test[:samples].to(_dtype(model)), data.y_test[:samples]
    progress = not as_json and sys.stderr.isatty()
    names = list(components) or _available()
    tables = [run_comparison(model, x, y, ball, names, seed=seed, progress=progress) for ball in balls]
    if as_json:
        print_json(
            {
                "model": spec,
                "weights": weights,
                "epochs": trained,
                "data": data.name,
                "comparisons": [table.to_dict() for table in tables],
            }
        )
    else:
        click.echo(f"{rendered(comparison_table(tables))}\n\n{conclusion(tables)}")
    _explain(tables)
    ctx.exit(_exit_code(tables))


def _epochs(spec: str, weights: str | None, epochs: int | None) -> int:
    if epochs is not None:
        return epochs
    untrained = not weights and not is_file(spec) and parse_component(spec)[0] in {info.name for info in models()}
    return EPOCHS if untrained else 0


def _train(model: nn.Module, data: Dataset, epochs: int, seed: int) -> int:
    if epochs:
        click.echo(f"training on {len(data.x_train)} samples of {data.name} for {epochs} epochs", err=True)
        train(model, data.x_train.to(_dtype(model)), data.y_train, epochs=epochs, seed=seed)
    return epochs


def _dtype(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def _available() -> list[str]:
    """All attacks and certifiers whose backend is there; the others are named on standard error."""
    found = [*registry().components(Kind.ATTACK), *registry().components(Kind.CERTIFIER)]
    for info in found:
        if info.status is not Status.LOADED:
            click.echo(f"left out: {info.name}, {info.status}; install it: {info.missing}", err=True)
    names = [info.name for info in found if info.status is Status.LOADED]
    if not names:
        raise PluginError("no attack or certifier is available; see `robust-plugins plugins list`")
    return names


def _explain(tables: Sequence[Comparison]) -> None:
    """Names on standard error why certifiers have no answer, where they say it: a bare zero would look like one."""
    causes: dict[tuple[str, str], int] = {}
    for table in tables:
        for row in table.rows:
            for message in row.result.messages if isinstance(row.result, Certificate) else ():
                if message:
                    causes[row.name, message] = causes.get((row.name, message), 0) + 1
    for (name, message), count in causes.items():
        click.echo(f"{name}, {count} times without an answer: {message}", err=True)


def _exit_code(tables: Sequence[Comparison]) -> int:
    if any(table.crossings for table in tables):
        return 3
    failed = any(
        row.error or (isinstance(row.result, Certificate) and Verdict.ERROR in row.result.verdicts)
        for table in tables
        for row in table.rows
    )
    return 1 if failed else 0
