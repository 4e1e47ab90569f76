"""`Subject`: one model with the samples that it is studied on, read, trained where that is asked, and hashed."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robust_plugins.balls import BALLS, Linf
from robust_plugins.benchmark.configuration import Configuration, Data, Model, Training
from robust_plugins.benchmark.hashing import model_hash, tensor_hash
from robust_plugins.benchmark.messages import named
from robust_plugins.benchmark.records import canonical, digest
from robust_plugins.data import Dataset, dataset
from robust_plugins.errors import ArgumentError
from robust_plugins.losses import recipe
from robust_plugins.networks import is_file, load_model
from robust_plugins.networks.files import load_weights
from robust_plugins.networks.loading import ONNX
from robust_plugins.training import Scores, TrainingRecord, fit


@dataclass(frozen=True, eq=False)
class Subject:
    """A model, samples and labels, under the names of the study."""

    model: str
    data: str
    module: nn.Module
    x: Tensor
    y: Tensor
    first: int
    """The index of the first sample in its part of the data set."""
    clip: tuple[float, float] | None
    source: str | nn.Module
    training: TrainingRecord | None = None
    """Of a model that was trained on the fly."""
    pending: str = ""
    """The training that the model has yet to undergo before it is studied, where it has."""

    @cached_property
    def model_hash(self) -> str:
        """The hash of the model as it is studied; before its training, that of what it will be made from."""
        found = model_hash(self.module)
        return digest(found, self.pending) if self.pending else found

    @cached_property
    def input_hashes(self) -> list[str]:
        """The hash of each input."""
        return [tensor_hash(sample) for sample in self.x]

    @cached_property
    def packed(self) -> bytes:
        """All that another process needs to build the model and the samples."""
        import cloudpickle

        model: Any = self.module
        if isinstance(self.source, str) and is_file(self.source) and not self.source.lower().endswith(ONNX):
            # TorchScript and programs of torch.export go into no pickle.
            path = Path(self.source)
            model = (path.suffix, path.read_bytes(), tuple(self.x.shape[1:]))
        return bytes(cloudpickle.dumps((model, self.x, self.y)))

    @cached_property
    def key(self) -> str:
        """The hash of `packed`."""
        return digest(self.packed)


def read_data(entry: Data, folder: Path) -> Dataset:
    """The data set of an entry; paths are relative to `folder`, that of the study's file."""
    source = entry.source if entry.source is not None else entry.name
    if isinstance(source, Dataset):
        return source
    return dataset(_within(folder, source) if source.endswith(".npz") else source)


def read_model(entry: Model, data: Dataset, folder: Path) -> nn.Module:
    """The model of an entry for a data set, before any training."""
    if isinstance(entry.source, nn.Module):
        return entry.source if entry.train is None else deepcopy(entry.source)
    source = _within(folder, entry.source) if is_file(entry.source) else entry.source
    weights = None if entry.weights is None else _within(folder, entry.weights)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(entry.seed)
        return load_model(source, input_shape=data.input_shape, classes=data.classes, weights=weights)


def samples_of(entry: Data, data: Dataset, model: nn.Module) -> tuple[Tensor, Tensor]:
    """The samples and labels of an entry, in the model's dtype."""
    x, y = (data.x_test, data.y_test) if entry.part == "test" else (data.x_train, data.y_train)
    chosen = slice(entry.first, entry.first + entry.samples)
    if not len(x[chosen]):
        raise ArgumentError(
            f"data.{entry.name}.first", entry.first, accepted=f"less than the {len(x)} {entry.part} samples",
            hint="Take another part, or begin earlier.",
        )  # fmt: skip
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    return x[chosen].to(dtype), y[chosen].long()


def read_subjects(
    configuration: Configuration, folder: Path, cache: Path, say: Callable[[str], None], *, train: bool = True
) -> list[Subject]:
    """Every model with every data set that it is for, trained where its entry says so.

    - `folder`: what paths are relative to
    - `cache`: where trained weights are kept
    - `say`: is told what takes time
    - `train`: without it, models that would be trained are given as they begin
    """
    sets = {}
    for entry in configuration.data:
        with named(f"data.{entry.name}"):
            sets[entry.name] = read_data(entry, folder)
    found = []
    told: set[str] = set()
    for model in configuration.models:
        for entry in configuration.data:
            if model.data is not None and entry.name not in model.data:
                continue
            data = sets[entry.name]
            training = None
            with named(f"models.{model.name}"):
                module = read_model(model, data, folder)
                if model.train is not None and train:
                    training = _trained(model, module, data, model.train, cache, say)
            x, y = samples_of(entry, data, module)
            if len(x) < entry.samples and entry.name not in told:
                say(f"data.{entry.name}: {len(x)} samples are there of the {entry.samples} that are asked for")
                told.add(entry.name)
            source = model.source
            if isinstance(source, str) and is_file(source):
                source = _within(folder, source)
            found.append(Subject(model.name, entry.name, module, x, y, entry.first, data.clip, source, training))
    return found


def trained_weights(entry: Model, module: nn.Module, data: Dataset, training: Training, cache: Path) -> Path:
    """The file that the weights of this training are kept in, whether they are there or not."""
    key = digest(
        model_hash(module), tensor_hash(data.x_train), tensor_hash(data.y_train),
        canonical(training.model_dump() | {"clip": data.clip}), torch.__version__,
    )  # fmt: skip
    name = re.sub(r"[^\w.-]", "_", entry.name)[:80]
    return cache / f"{name}-{key[:16]}.pt"


def _trained(
    entry: Model, module: nn.Module, data: Dataset, training: Training, cache: Path, say: Callable[[str], None]
) -> TrainingRecord | None:
    """Trains `module`, or gives it the weights of the same training that are in the cache; returns its record.

    None where the cache has the weights alone.
    """
    path = trained_weights(entry, module, data, training, cache)
    curve = path.with_suffix(".json")
    if path.exists():
        load_weights(module, path)
        return TrainingRecord.from_dict(json.loads(curve.read_text())) if curve.exists() else None
    say(f"training {entry.name} on {len(data.x_train)} samples of {data.name} for {training.epochs} epochs")
    loss = loss_of(training, data.clip)
    dtype = next(p.dtype for p in module.parameters())
    x, y = data.x_train.to(dtype), data.y_train
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        batches = torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(x, y), batch_size=training.batch_size, shuffle=True
        )
        optimizer = torch.optim.Adam(module.parameters(), lr=training.lr)
        record = fit(
            module, batches, loss, epochs=training.epochs, optimizer=optimizer, progress=False,
            evaluate=Scores(
                x=data.x_test[:SCORED].to(dtype), y=data.y_test[:SCORED], ball=Linf(eps=0.0, clip=data.clip),
                attack=None, certifier=None,
            ),
        )  # fmt: skip
    cache.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.part")
    unfinished.write_text(json.dumps(record.to_dict()))
    os.replace(unfinished, curve)  # before the weights, which say that the training is over
    torch.save(module.state_dict(), unfinished)
    os.replace(unfinished, path)
    return record


SCORED = 1000
"""Test samples that are scored after each epoch of a training on the fly, at most."""


def loss_of(training: Training, clip: tuple[float, float] | None) -> Any:
    """The loss that a recipe names, for inputs in `clip`; raises ArgumentError where it needs a radius and has none."""
    if training.recipe.partition("(")[0].strip() == "standard":
        if training.eps is not None:
            raise ArgumentError(
                "train.eps", training.eps, accepted="no radius for the recipe 'standard'", hint="Leave it out."
            )
        return recipe(training.recipe)
    if training.eps is None:
        raise ArgumentError(
            "train.eps",
            "missing",
            accepted=f"the radius of the recipe {training.recipe!r}",
            hint="For example eps = 0.1.",
        )
    ball = BALLS[training.norm](eps=training.eps, clip=clip)
    return recipe(training.recipe, ball=ball, epochs=training.epochs)


def _within(folder: Path, path: str) -> str:
    return path if Path(path).is_absolute() else str(folder / path)
