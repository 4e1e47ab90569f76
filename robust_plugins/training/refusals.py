"""Refusals before the first batch of what cannot be trained with, and warnings about ramps."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset

from robust_plugins.errors import ArgumentError, of_type
from robust_plugins.losses.mixed import MixedLoss
from robust_plugins.losses.ramp import Ramp

STEEP = 50
"""A ramp of fewer steps is warned about."""


def check_count(name: str, value: int) -> None:
    """Raises ArgumentError unless `value` is an integer of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ArgumentError(name, repr(value), accepted="an integer of at least 1", hint="Take one or more.")


def batches_of(loader: Any) -> int | None:
    """How many batches an epoch has; None where the loader does not know, as with an IterableDataset.

    Raises ArgumentError for what gives no batches, or gives them once only.
    """
    if isinstance(loader, Dataset) and not isinstance(loader, IterableDataset):
        raise ArgumentError(
            "loader", f"{of_type(loader)}, of samples", accepted="batches (x, y), such as a DataLoader",
            hint="Write DataLoader(data, batch_size=128, shuffle=True).",
        )  # fmt: skip
    if not isinstance(loader, Iterable) or hasattr(loader, "__next__"):
        raise ArgumentError(
            "loader", repr(loader), accepted="batches (x, y) for as many epochs as wanted, such as a DataLoader",
            hint="For a generator, which gives them once, make a list of its batches.",
        )  # fmt: skip
    try:
        batches = len(loader)  # type: ignore[arg-type] # the question is whether it has one
    except TypeError:
        return None
    if batches < 1:
        raise ArgumentError(
            "loader", f"{loader!r}, without a batch", accepted="at least one batch",
            hint="With drop_last=True, a batch must not be larger than the data.",
        )  # fmt: skip
    return batches


def check_trainable(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Raises ArgumentError unless the optimizer moves parameters of the model, by gradients, in one step a batch."""
    if not isinstance(model, nn.Module):
        raise ArgumentError("model", type(model).__name__, accepted="a torch.nn.Module", hint="Wrap it in one.")
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ArgumentError(
            "optimizer", repr(optimizer), accepted="a torch.optim.Optimizer",
            hint="For example torch.optim.Adam(model.parameters()).",
        )  # fmt: skip
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ArgumentError(
            "optimizer", f"{type(optimizer).__name__}, which evaluates the loss several times a step",
            accepted="an optimizer that steps by the gradient at hand",
            hint="Take torch.optim.Adam or torch.optim.SGD; adversarial examples and ramps belong to one evaluation.",
        )  # fmt: skip
    parameters = list(model.parameters())
    if not any(p.requires_grad for p in parameters):
        raise ArgumentError(
            "model", f"{of_type(model)} without parameters that require gradients",
            accepted="a model with something to train", hint="Unfreeze it with model.requires_grad_(True).",
        )  # fmt: skip
    if any(p.is_inference() for p in parameters):
        raise ArgumentError(
            "model", "made under torch.inference_mode()", accepted="parameters that can have gradients",
            hint="Make the model outside of it, or train copy.deepcopy(model), made outside of it.",
        )  # fmt: skip
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not any(id(p) in held for p in parameters if p.requires_grad):
        raise ArgumentError(
            "optimizer", "holding none of the model's parameters", accepted="an optimizer of this model",
            hint="Make it after the model is copied, moved or wrapped: torch.optim.Adam(model.parameters()).",
        )  # fmt: skip


def check_scheduler(scheduler: Any, optimizer: torch.optim.Optimizer, epochs: int) -> None:
    """Raises ArgumentError unless the scheduler belongs to the optimizer and can be stepped once an epoch."""
    if scheduler is None:
        return
    if not isinstance(scheduler, torch.optim.lr_scheduler.LRScheduler):
        raise ArgumentError(
            "scheduler", repr(scheduler), accepted="a torch.optim.lr_scheduler.LRScheduler, or None",
            hint="For example torch.optim.lr_scheduler.StepLR(optimizer, step_size=10).",
        )  # fmt: skip
    if getattr(scheduler, "optimizer", optimizer) is not optimizer:
        raise ArgumentError(
            "scheduler", f"{of_type(scheduler)} of another optimizer", accepted="one of this optimizer",
            hint=f"Make it anew: torch.optim.lr_scheduler.{type(scheduler).__name__}(optimizer, ...).",
        )  # fmt: skip
    if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau) and scheduler.mode != "min":
        raise ArgumentError(
            "scheduler", f"a ReduceLROnPlateau with mode={scheduler.mode!r}", accepted="one with mode='min'",
            hint="It is given the epoch's mean loss, which falls.",
        )  # fmt: skip
    total = getattr(scheduler, "total_steps", epochs)
    if isinstance(scheduler, torch.optim.lr_scheduler.OneCycleLR) and total != epochs:
        raise ArgumentError(
            "scheduler", f"a OneCycleLR of {total} steps, for {epochs} epochs", accepted="one step an epoch",
            hint="Make it with total_steps=epochs.",
        )  # fmt: skip


def writable(folder: Path) -> Path:
    """`folder`, where it is one or can be made; raises ArgumentError before anything is trained for nothing."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ArgumentError(
            "checkpoint", f"{str(folder)!r}: {there} is {'not writable' if there.is_dir() else 'no folder'}",
            accepted="a folder that can be written to", hint="Name another one.",
        )  # fmt: skip
    return folder


def warn_of_ramps(loss: Any, batches: int | None, epochs: int, *, stacklevel: int) -> None:
    """Warns of a ramp that is over after so few steps that training collapses, and of one that outlasts training."""
    if not isinstance(loss, MixedLoss):
        return
    for name, schedule in loss.schedules.items():
        if (said := _unfinished(name, schedule, epochs)) is not None:
            warnings.warn(
                f"{said}; take a ramp that ends earlier (a recipe makes its own from its `epochs`), or more epochs",
                stacklevel=stacklevel + 1,
            )
    if batches is None or not loss.certified or loss.schedule is None or loss.schedule(0) >= 1:
        return
    steps = min(STEEP, epochs * batches)
    if loss.schedule(steps / batches) >= 1:
        warnings.warn(
            f"the ramp is over after fewer than {steps} steps; training on bounds that grow so fast tends to collapse "
            "to a constant network: take a longer ramp, and more epochs or smaller batches",
            stacklevel=stacklevel + 1,
        )


def _unfinished(name: str, schedule: Any, epochs: int) -> str | None:
    """Says what is wrong with a schedule that is not at its end when training is."""
    reached, first = schedule(epochs), schedule(0)
    if isinstance(schedule, Ramp):
        if epochs >= schedule.end or schedule.first == schedule.last:
            return None
        last = schedule.last
    elif name != "schedule" or reached >= 1 or (reached == first and reached > 0):
        return None  # where another function of the epoch is to end is not known, except that eps has an end
    else:
        last = 1
    if name == "schedule":
        return f"the ramp is not over after {epochs} epochs: training ends at {reached:.3g} times eps"
    return f"the ramp of {name} is not over after {epochs} epochs: it ends at {reached:.3g} instead of {last:.3g}"
