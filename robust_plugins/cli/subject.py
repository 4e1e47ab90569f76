"""`Subject`, which a command works on: the options that name a model, data and balls, and what they stand for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any

import click
import torch
from torch import Tensor, nn

from robust_plugins.balls import BALLS, Ball, Box
from robust_plugins.cli.values import Number, on_device
from robust_plugins.data import Dataset, dataset
from robust_plugins.errors import ArgumentError
from robust_plugins.networks import is_file, load_model, train
from robust_plugins.networks.loading import models
from robust_plugins.registry.information import Kind, Status
from robust_plugins.registry.naming import parse_component
from robust_plugins.registry.registry import registry

EPOCHS = 10
"""For a network of the zoo that is given no weights."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """A model, test samples and their labels, and a ball for each radius."""

    spec: str
    weights: str | None
    epochs: int
    data: Dataset
    model: nn.Module
    x: Tensor
    y: Tensor
    balls: list[Ball]

    def about(self) -> dict[str, str]:
        """Where it came from, in words for a page."""
        trained = f", trained for {self.epochs} epochs" if self.epochs else ""
        weights = f", weights {self.weights}" if self.weights else ""
        return {"model": f"{self.spec}{weights}{trained}", "data": f"{self.data.name}, test samples"}

    def to_dict(self) -> dict[str, Any]:
        """Where it came from, ready for JSON."""
        return {"model": self.spec, "weights": self.weights, "epochs": self.epochs, "data": self.data.name}


def with_subject(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options below, and hands it `seed` and `load`, which loads (and trains) when it is called.

    So a command can refuse its other options before anything is trained.
    """

    @wraps(command)
    def wrapped(
        *args: Any,
        spec: str,
        weights: str | None,
        data_name: str,
        radii: tuple[float, ...],
        norm: str,
        box: str | None,
        clip: tuple[float, float] | None,
        samples: int,
        seed: int,
        epochs: int | None,
        device: torch.device,
        **kwargs: Any,
    ) -> None:
        if epochs and (weights or is_file(spec)):
            raise click.UsageError("--epochs trains a new network: leave it out for a model file and with --weights.")
        if box is not None and norm != "linf":
            raise click.UsageError("--box is a set of its own: leave --norm out.")
        load = partial(_load, spec, weights, data_name, radii, norm, box, clip, samples, seed, epochs, device)
        command(*args, load=load, seed=seed, **kwargs)

    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return wrapped


def available(kinds: Iterable[Kind]) -> list[str]:
    """All components of these kinds whose backend is there; the others are named on standard error."""
    found = [info for kind in kinds for info in registry().components(kind)]
    absent: dict[tuple[str, str], list[str]] = {}  # a line for each backend, and not for each of its components
    for info in found:
        if info.status is not Status.LOADED:
            absent.setdefault((info.status, info.missing), []).append(info.name)
    for (status, missing), names in absent.items():
        click.echo(f"left out: {', '.join(names)}, {status}; install it: {missing}", err=True)
    return [info.name for info in found if info.status is Status.LOADED]


_OPTIONS = [
    click.option(
        "--model",
        "spec",
        required=True,
        help="A network of the zoo ('cnn', 'mlp(widths=(64, 64))'), an ONNX, TorchScript or torch.export file, or "
        "'package.module:factory'.",
    ),
    click.option("--weights", help="Its weights: a state dict written by torch.save, or safetensors."),
    click.option(
        "--data", "data_name", required=True, help="A data set ('digits', 'mnist(folder=\"...\")') or path.npz."
    ),
    click.option(
        "--eps",
        "radii",
        type=Number(min=0),
        multiple=True,
        required=True,
        help="A radius of the ball, 0.03 or 8/255; repeatable.",
    ),
    click.option("--norm", type=click.Choice(list(BALLS)), default="linf", show_default=True, help="The ball's norm."),
    click.option(
        "--box",
        help="A box in the place of a norm, as rp.Box takes it: 'radius=[0.1, 5, 1], integers=[1]', and clip, one_hot, "
        "immutable; --eps multiplies the radii.",
    ),
    click.option(
        "--clip", type=float, nargs=2, default=None, help="The valid range of the inputs, if not the data set's."
    ),
    click.option(
        "--samples",
        type=click.IntRange(min=1),
        default=100,
        show_default=True,
        help="Use the first so many test samples.",
    ),
    click.option(
        "--seed",
        type=click.IntRange(0, 2**32 - 1),
        default=0,
        show_default=True,
        help="The seed of training and attacks.",
    ),
    click.option(
        "--epochs",
        type=click.IntRange(min=0),
        help=f"Train for so many epochs on the data set's training part first. Default: {EPOCHS} for a network of the "
        "zoo without weights, which has learnt nothing yet; 0 for others.",
    ),
    on_device,
]


def _load(
    spec: str,
    weights: str | None,
    data_name: str,
    radii: tuple[float, ...],
    norm: str,
    box: str | None,
    clip: tuple[float, float] | None,
    samples: int,
    seed: int,
    epochs: int | None,
    device: torch.device,
) -> Subject:
    data, sides = dataset(data_name), {} if box is None else _sides(box)
    valid = clip or data.clip
    balls = [BALLS[norm](eps=e, clip=valid) if box is None else Box(**{"eps": e, "clip": valid} | sides) for e in radii]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # of the initialisation
        model = load_model(spec, input_shape=data.input_shape, classes=data.classes, weights=weights)
    model = model.to(device)
    trained = _train(model, data, _epochs(spec, weights, epochs), seed)
    x, y = data.x_test[:samples].to(device, _dtype(model)), data.y_test[:samples].to(device)
    return Subject(spec=spec, weights=weights, epochs=trained, data=data, model=model, x=x, y=y, balls=balls)


SIDES = ("radius", "clip", "one_hot", "integers", "immutable")
"""The arguments of a box that its option takes."""


def _sides(text: str) -> dict[str, Any]:
    """Reads what a box says of each feature; raises ArgumentError for text unlike `radius=[0.1, 5]`."""
    try:
        found = parse_component(f"box({text})")[1]
    except ArgumentError:
        found = {}
    if "radius" not in found or found.keys() - set(SIDES):
        raise ArgumentError(
            "--box", repr(text), accepted=f"radius=..., and any of {', '.join(SIDES[1:])}, as Python literals",
            hint="For example --box 'radius=[0.1, 5, 1], integers=[1]'; 1e999 is infinity.",
        )  # fmt: skip
    return found


def _epochs(spec: str, weights: str | None, epochs: int | None) -> int:
    if epochs is not None:
        return epochs
    untrained = not weights and not is_file(spec) and parse_component(spec)[0] in {info.name for info in models()}
    return EPOCHS if untrained else 0


def _train(model: nn.Module, data: Dataset, epochs: int, seed: int) -> int:
    if epochs:
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        click.echo(f"training on {len(data.x_train)} samples of {data.name} for {epochs} epochs", err=True)
        train(model, data.x_train.to(device, _dtype(model)), data.y_train.to(device), epochs=epochs, seed=seed)
    return epochs


def _dtype(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
