"""Checkpoints of `fit`: what decides how a training goes on, and whether a checkpoint is of this training."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sized
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from robust_plugins.harness import checkpoints
from robust_plugins.training.record import EpochRecord, TrainingRecord


@dataclass(frozen=True)
class Training:
    """All that `fit` changes, and what makes it this training: the loss, the data, and `steps`, how they are made."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler | None
    loader: Any
    loss: Any
    steps: str

    def save(self, folder: Path, record: TrainingRecord, batches: int | None) -> None:
        """Writes the state after the epochs of `record`, the last of which had so many batches.

        An interruption leaves the checkpoint before.
        """
        state = {
            "training": self._identity,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "order": [generator.get_state() for generator in self._generators()],
            "record": record.to_dict(),
            "batches": batches,
            "task": getattr(self.loss, "inferred", None),
        }
        checkpoints.save(folder, state)

    def resume(self, folder: Path) -> tuple[tuple[EpochRecord, ...], int | None]:
        """Restores what `save` wrote, and gives its epochs and batches; none where the folder holds no checkpoint.

        Nothing is changed, and ArgumentError raised, where it belongs to another training.
        """
        ours = self._identity  # as it is before anything is restored
        state = checkpoints.read(folder)
        if state is None:
            return (), None
        theirs = state.get("training")
        if not isinstance(theirs, dict):
            raise checkpoints.unusable(folder, "it is not one of rp.fit")
        for what, value in ours.items():
            if theirs.get(what) != value:
                known, own = _apart(str(theirs.get(what)), value)
                raise checkpoints.unusable(folder, f"its {what} is {known}, and this one {own}")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        for generator, order in zip(self._generators(), state["order"], strict=False):
            generator.set_state(order)
        if state["task"] is not None:
            self.loss.inferred = state["task"]
        checkpoints.restore(state)
        return TrainingRecord.from_dict(state["record"]).epochs, state["batches"]

    @cached_property
    def _identity(self) -> dict[str, str]:
        """Says in words what two runs have in common where one may go on with what the other began."""
        tensors = {name: value for name, value in self.model.state_dict().items() if isinstance(value, Tensor)}
        groups = [
            {name: value for name, value in group.items() if name not in ("params", "initial_lr")}
            | {"parameters": len(group["params"])}
            for group in self.optimizer.param_groups
        ]
        state = {} if self.scheduler is None else self.scheduler.state_dict()
        return {
            "model": ", ".join(f"{name} {tuple(value.shape)}" for name, value in tensors.items()),
            "architecture": _without_addresses(repr(self.model)),
            "optimizer": _without_addresses(f"{type(self.optimizer).__name__} of {groups}"),
            "scheduler": _without_addresses(f"{type(self.scheduler).__name__} {state}"),
            "loss": _description(self.loss),
            "data": _fingerprint(self.loader),
            "steps": self.steps,
        }

    def _generators(self) -> list[torch.Generator]:
        """Those from which a DataLoader draws its order: its own, its sampler's, and that of the sampler of batches."""
        batches = getattr(self.loader, "batch_sampler", None)
        owners = (self.loader, getattr(self.loader, "sampler", None), batches, getattr(batches, "sampler", None))
        found = {id(g): g for owner in owners if isinstance(g := getattr(owner, "generator", None), torch.Generator)}
        return list(found.values())


def _description(loss: Any) -> str:
    """The loss and its parameters, the same in every process: without the addresses of functions."""
    if is_dataclass(loss) and not isinstance(loss, type):
        parameters = ", ".join(f"{f.name}={getattr(loss, f.name)!r}" for f in fields(loss) if f.init)
        return _without_addresses(f"{type(loss).__name__}({parameters})")
    return getattr(loss, "__qualname__", type(loss).__qualname__)


def _apart(one: str, other: str) -> tuple[str, str]:
    """Lists what each of two descriptions has and the other has not; all of it where that is nothing."""
    first, second = ([part.strip() for part in re.split(r", |\n", text)] for text in (one, other))
    only = [part for part in first if part not in second], [part for part in second if part not in first]
    return ", ".join(only[0]) or one, ", ".join(only[1]) or other


def _without_addresses(text: str) -> str:
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)


def _fingerprint(loader: Any) -> str:
    """How many batches and samples there are, and a checksum of them where they are tensors in memory."""
    try:
        said = [f"{len(loader)} batches"]
    except TypeError:
        said = ["batches without a number"]
    data = getattr(loader, "dataset", loader)
    if isinstance(data, TensorDataset):
        tensors = list(data.tensors)
    elif isinstance(data, list):
        tensors = [t for batch in data if isinstance(batch, tuple | list) for t in batch if isinstance(t, Tensor)]
    else:
        tensors = []
    if isinstance(data, Sized) and data is not loader:
        said.append(f"{len(data)} samples")
    if tensors:
        checksum = 0
        for tensor in tensors:
            checksum = zlib.crc32(
                tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes(), checksum
            )
        said.append(f"checksum {checksum:08x}")
    return ", ".join(said)
