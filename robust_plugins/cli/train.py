"""`robust-plugins train`: trains a network by a recipe, and writes its weights and a record."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import click
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from robust_plugins.balls import BALLS
from robust_plugins.cli.folder import claimed, write_whole
from robust_plugins.cli.loss_options import REGULARISERS, loss_of, ramp_of
from robust_plugins.cli.printing import as_json, finite, one_stream, print_json
from robust_plugins.cli.trial import suiting, tried
from robust_plugins.cli.values import Number, on_device
from robust_plugins.data import dataset
from robust_plugins.decisions.registered import attack, certifier, first_available
from robust_plugins.losses import ibp_initialisation
from robust_plugins.losses.ramp import Shape
from robust_plugins.networks import is_file, load_model
from robust_plugins.registry.information import Kind
from robust_plugins.registry.registry import registry
from robust_plugins.training import Scores, fit
from robust_plugins.training.curve import learning_curve
from robust_plugins.training.scores import ATTACKS

CONSTANT = 0.3
"""The share of the epochs before `--lr-decay linear` begins."""

WRITES = ("checkpoint", "weights.pt", "record.json", "curve.svg")
"""What is written into the folder, besides its settings."""


@click.command(
    short_help="Train a network to be robust.",
    epilog="Exit codes: 0 success; 1 training or a component failed; 2 wrong usage.",
)
@click.option("--recipe", "spec", required=True, help="How: 'ibp', 'madry', 'sabr(ratio=0.6)', ...")
@click.option("--model", "model_spec", required=True, help="A network of the zoo, or 'package.module:factory'.")
@click.option("--data", "data_name", required=True, help="A data set ('digits', 'mnist(folder=\"...\")') or path.npz.")
@click.option("--eps", type=Number(min=0), required=True, help="The radius to train for, and to evaluate at.")
@click.option("--eval-eps", type=Number(min=0), help="Another radius to evaluate at.")
@click.option("--norm", type=click.Choice(list(BALLS)), default="linf", show_default=True, help="The ball's norm.")
@click.option("--clip", type=float, nargs=2, default=None, help="The valid range of the inputs, if not the data set's.")
@click.option("--epochs", type=click.IntRange(min=1), default=20, show_default=True, help="Passes over the data.")
@click.option("--batch-size", type=click.IntRange(min=1), default=128, show_default=True, help="Samples per step.")
@click.option("--lr", type=Number(min=0, min_open=True), default=1e-3, show_default=True, help="Adam's learning rate.")
@click.option(
    "--lr-decay", type=click.Choice(["none", "linear"]), default="none", show_default=True,
    help=f"'linear': constant for {CONSTANT:.0%} of the epochs, then, epoch by epoch, on a straight line to zero.",
)  # fmt: skip
@click.option(
    "--clip-gradient", type=Number(min=0, min_open=True), default=10.0, show_default=True,
    help="The gradient's largest norm.",
)  # fmt: skip
@click.option(
    "--ramp", "span", type=Number(min=0), nargs=2, metavar="START END",
    help="The epochs, fractions allowed, between which eps and the weight of its loss grow. Recipes with bounds only; "
    "without it, theirs.",
)  # fmt: skip
@click.option("--ramp-shape", type=click.Choice(get_args(Shape)), help="The shape of --ramp.  [default: smooth]")
@click.option("--ibp-init", is_flag=True, help="Draw the first weights so that boxes keep their width (Shi et al.).")
@click.option("--warm-up", is_flag=True, help="Keep bounds small and ReLUs alive during the ramp (Shi et al.).")
@click.option("--l1", type=Number(min=0), default=0.0, show_default=True, help="Weight of the weights' L1 norm.")
@click.option(
    "--regulariser", "regularisers", multiple=True,
    help=f"Added to the loss; repeatable. One of {', '.join(map(repr, REGULARISERS))}, with parameters where wanted, "
    "for example 'gradient-cert(alpha=0.5)', which makes explanations certifiable.",
)  # fmt: skip
@click.option("--attack", "attack_name", default=lambda: first_available(*ATTACKS),
              show_default=f"{ATTACKS[0]}, or {ATTACKS[1]} without ART",
              help="Evaluates after every epoch.")  # fmt: skip
@click.option("--certifier", "certifier_name", default="interval:ibp", show_default=True,
              help="Evaluates after every epoch.")  # fmt: skip
@click.option(
    "--samples", type=click.IntRange(min=1), default=1000, show_default=True,
    help="Evaluates on the first so many test samples.",
)  # fmt: skip
@on_device
@click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="The seed of everything random."
)
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), required=True,
    help="A folder: weights.pt, record.json, curve.svg, and a checkpoint from which an interrupted run goes on.",
)  # fmt: skip
@as_json
def train(
    spec: str,
    model_spec: str,
    data_name: str,
    eps: float,
    eval_eps: float | None,
    norm: str,
    clip: tuple[float, float] | None,
    epochs: int,
    batch_size: int,
    lr: float,
    lr_decay: str,
    clip_gradient: float,
    span: tuple[float, float] | None,
    ramp_shape: Shape | None,
    ibp_init: bool,
    warm_up: bool,
    l1: float,
    regularisers: tuple[str, ...],
    attack_name: str,
    certifier_name: str,
    samples: int,
    device: torch.device,
    seed: int,
    out: Path,
    as_json: bool,
) -> None:
    """Train a network to be robust, and watch clean, attacked and certified accuracy epoch by epoch.

    Called again, an interrupted run goes on, and a finished one is printed. Shi et al. 2021: "Fast certified robust
    training with short warmup".
    """
    # Everything is built and tried before the folder is claimed: a mistake must not stand in the corrected run's way.
    registry().kind_of(spec, [Kind.LOSS])
    attack(attack_name)
    certifier(certifier_name)
    ramp = ramp_of(span, ramp_shape)
    if ibp_init and is_file(model_spec):
        raise click.BadParameter(f"{model_spec} has weights: give a network of the zoo.", param_hint="'--ibp-init'")
    data = dataset(data_name)
    ball = BALLS[norm](eps=eps, clip=clip or data.clip)
    evaluated = ball if eval_eps is None else replace(ball, eps=eval_eps)
    loss = loss_of(spec, ball, epochs, ramp, warm_up, l1, regularisers, own_radius=eval_eps is not None)
    settings: dict[str, Any] = {
        "recipe": spec, "model": model_spec, "data": data_name, "ball": repr(ball), "evaluated": repr(evaluated),
        "epochs": epochs, "batch_size": batch_size, "lr": lr, "lr_decay": lr_decay, "clip_gradient": clip_gradient,
        "ramp": None if ramp is None else repr(ramp), "ibp_init": ibp_init, "warm_up": warm_up, "l1": l1,
        "regularisers": list(regularisers),
        "attack": attack_name, "certifier": certifier_name, "samples": samples, "device": str(device), "seed": seed,
        "torch": torch.__version__,
    }  # fmt: skip
    with _ramps_told(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        model = load_model(model_spec, input_shape=data.input_shape, classes=data.classes)
        if ibp_init:
            _initialise(model)
        data = suiting(data, model, [ball, evaluated])
        model.to(device)
        scores = Scores(
            x=data.x_test[:samples].to(device), y=data.y_test[:samples].to(device), ball=evaluated,
            attack=attack_name, certifier=certifier_name, seed=seed,
        )  # fmt: skip
        tried(model, loss, scores, epochs)
        optimizer = torch.optim.Adam(model.parameters(), lr=lr)
        fresh = not (out / "checkpoint").exists()
        with claimed(out, settings, WRITES):
            record = fit(
                model,
                DataLoader(TensorDataset(data.x_train, data.y_train), batch_size=batch_size, shuffle=True),
                loss,
                epochs=epochs,
                optimizer=optimizer,
                scheduler=_linear_decay(optimizer, epochs) if lr_decay == "linear" else None,
                evaluate=scores,
                checkpoint=out / "checkpoint",
                clip_gradient=clip_gradient,
                progress=not as_json,
            )
    result: dict[str, Any] = finite(settings | record.to_dict())
    write_whole(out / "weights.pt", lambda path: torch.save(model.cpu().state_dict(), path))
    record_text = json.dumps(result, indent=2, allow_nan=False)
    write_whole(out / "record.json", lambda path: path.write_text(record_text))
    if find_spec("matplotlib") is not None:
        (out / "curve.svg").write_text(learning_curve(result["epochs"]))
    else:
        click.echo('no curve.svg: it needs matplotlib; pip install "robust_plugins[report]"', err=True)
    if as_json:
        print_json(result)
    else:
        seen = fresh and one_stream()  # all lines are there already
        click.echo(("" if seen else f"{record}\n\n") + f"The weights, the record and the learning curve: {out}")


def _initialise(model: nn.Module) -> None:
    before = [parameter.detach().clone() for parameter in model.parameters()]
    ibp_initialisation(model)
    if all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True)):
        raise click.BadParameter(
            "the model has no linear or convolutional layer before its last one: leave it out.",
            param_hint="'--ibp-init'",
        )


def _linear_decay(optimizer: torch.optim.Optimizer, epochs: int) -> torch.optim.lr_scheduler.LambdaLR:
    left = (1 - CONSTANT) * epochs
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: min(1.0, (epochs - epoch) / left))


@contextmanager
def _ramps_told() -> Iterator[None]:
    """Warnings of ramps are told, however often they were told before."""
    with warnings.catch_warnings():
        warnings.filterwarnings("always", "the ramp")
        yield
