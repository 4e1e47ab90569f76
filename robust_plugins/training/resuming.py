"""Checkpoints of `fit`: what decides how a training goes on, and whether a checkpoint is of this training."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robust_plugins.harness import checkpoints
from robust_plugins.training.record import EpochRecord, TrainingRecord


@dataclass(frozen=True)
class Training:
    """All that `fit` changes, and the loss that it trains for."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler | None
    loader: Any
    loss: Any

    def save(self, folder: Path, record: TrainingRecord) -> None:
        """Writes the state after the epochs of `record`; an interruption leaves the checkpoint before."""
        state = {
            "training": self._identity(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "order": [generator.get_state() for generator in self._generators()],
            "record": record.to_dict(),
        }
        checkpoints.save(folder, state)

    def resume(self, folder: Path) -> tuple[EpochRecord, ...]:
        """Restores what `save` wrote, and gives its epochs; none where the folder holds no checkpoint.

        Nothing is changed, and ArgumentError raised, where it belongs to another training.
        """
        state = checkpoints.read(folder)
        if state is None:
            return ()
        theirs, ours = state.get("training"), self._identity()
        if not isinstance(theirs, dict):
            raise checkpoints.unusable(folder, "it is not one of rp.fit")
        for what, value in ours.items():
            if theirs.get(what) != value:
                raise checkpoints.unusable(folder, f"its {what} is {theirs.get(what)}, and this one {value}")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        for generator, order in zip(self._generators(), state["order"], strict=False):
            generator.set_state(order)
        checkpoints.restore(state)
        return TrainingRecord.from_dict(state["record"]).epochs

    def _identity(self) -> dict[str, str]:
        tensors = {name: value for name, value in self.model.state_dict().items() if isinstance(value, Tensor)}
        groups = [len(group["params"]) for group in self.optimizer.param_groups]
        return {
            "model": ", ".join(f"{name} {tuple(value.shape)}" for name, value in tensors.items()),
            "optimizer": f"{type(self.optimizer).__name__} of {groups} parameters",
            "scheduler": type(self.scheduler).__name__,
            "loss": _description(self.loss),
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
        return re.sub(r" at 0x[0-9a-fA-F]+", "", f"{type(loss).__name__}({parameters})")
    return getattr(loss, "__qualname__", type(loss).__qualname__)
