"""`robust-plugins train`: trains a network by a recipe, and writes its weights and a record."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import torch
from torch.utils.data import DataLoader, TensorDataset

from robust_plugins.benchmark.training_plot import learning_curve
from robust_plugins.cli.folder import claim
from robust_plugins.cli.printing import as_json, print_json
from robust_plugins.cli.subject import BALLS
from robust_plugins.data import dataset
from robust_plugins.losses import Scores, fit, recipe, recipes
from robust_plugins.models import load_model
from robust_plugins.plugins import Kind, parse_component, registry


@click.command(epilog="Exit codes: 0 success; 1 training or a component failed; 2 wrong usage.")
@click.option("--recipe", "spec", required=True, help="How: 'ibp', 'madry', 'sabr(ratio=0.6)', ...")
@click.option("--model", "model_spec", required=True, help="A network of the zoo, or 'package.module:factory'.")
@click.option("--data", "data_name", required=True, help="A data set ('digits', 'mnist(folder=\"...\")') or path.npz.")
@click.option("--eps", type=click.FloatRange(min=0), required=True, help="The radius to train for and to evaluate at.")
@click.option("--norm", type=click.Choice(list(BALLS)), default="linf", show_default=True, help="The ball's norm.")
@click.option("--clip", type=float, nargs=2, default=None, help="The valid range of the inputs, if not the data set's.")
@click.option("--epochs", type=click.IntRange(min=1), default=20, show_default=True, help="Passes over the data.")
@click.option("--batch-size", type=click.IntRange(min=1), default=128, show_default=True, help="Samples per step.")
@click.option("--lr", type=float, default=1e-3, show_default=True, help="Adam's learning rate.")
@click.option("--clip-gradient", type=float, default=10.0, show_default=True, help="The gradient's largest norm.")
@click.option("--attack", default="art:pgd(steps=10)", show_default=True, help="Evaluates after every epoch.")
@click.option("--certifier", default="interval:ibp", show_default=True, help="Evaluates after every epoch.")
@click.option("--samples", type=click.IntRange(min=1), default=1000, show_default=True, help="At most so many of them.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Of everything random.")
@click.option(
    "--out", type=click.Path(path_type=Path), required=True,
    help="A folder: weights.pt, record.json, curve.svg, and a checkpoint from which an interrupted run goes on.",
)  # fmt: skip
@as_json
def train(
    spec: str,
    model_spec: str,
    data_name: str,
    eps: float,
    norm: str,
    clip: tuple[float, float] | None,
    epochs: int,
    batch_size: int,
    lr: float,
    clip_gradient: float,
    attack: str,
    certifier: str,
    samples: int,
    seed: int,
    out: Path,
    as_json: bool,
) -> None:
    """Train a network to be robust, and watch clean, attacked and certified accuracy epoch by epoch."""
    for kind, name in ((Kind.LOSS, spec), (Kind.ATTACK, attack), (Kind.CERTIFIER, certifier)):
        registry().kind_of(name, [kind])  # a misspelt name is found before anything is loaded
    data = dataset(data_name)
    ball = BALLS[norm](eps=eps, clip=clip or data.clip)
    accepted = next(info for info in recipes() if info.name == parse_component(spec)[0]).parameters
    offered: dict[str, Any] = {"ball": ball, "epochs": epochs}
    loss = recipe(spec, **{name: value for name, value in offered.items() if name in accepted})
    settings: dict[str, Any] = {
        "recipe": spec, "model": model_spec, "data": data.name, "ball": repr(ball), "epochs": epochs,
        "batch_size": batch_size, "lr": lr, "clip_gradient": clip_gradient, "seed": seed, "torch": torch.__version__,
    }  # fmt: skip
    claim(out, settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = load_model(model_spec, input_shape=data.input_shape, classes=data.classes)
        record = fit(
            model,
            DataLoader(TensorDataset(data.x_train, data.y_train), batch_size=batch_size, shuffle=True),
            loss,
            epochs=epochs,
            optimizer=torch.optim.Adam(model.parameters(), lr=lr),
            evaluate=Scores(
                x=data.x_test[:samples],
                y=data.y_test[:samples],
                ball=ball,
                attack=attack,
                certifier=certifier,
                seed=seed,
            ),
            checkpoint=out / "checkpoint",
            clip_gradient=clip_gradient,
            progress=not as_json and sys.stderr.isatty(),
        )
    result: dict[str, Any] = settings | record.to_dict()
    torch.save(model.state_dict(), out / "weights.pt")
    (out / "record.json").write_text(json.dumps(result, indent=2))
    if find_spec("matplotlib") is not None:
        (out / "curve.svg").write_text(learning_curve(result["epochs"]))
    else:
        click.echo('no curve.svg: it needs matplotlib; pip install "robust_plugins[report]"', err=True)
    if as_json:
        print_json(result)
    else:
        click.echo(f"{record}\n\nThe weights, the record and the learning curve: {out}")
