"""`fit`: a plain training loop with progress, checkpoints and a table."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from robust_plugins.errors import ArgumentError
from robust_plugins.harness.evaluation import keeping_modes
from robust_plugins.harness.progress import reporting
from robust_plugins.losses.refused import check_gradients
from robust_plugins.training.record import EpochRecord, TrainingRecord, checked_scores, header, row
from robust_plugins.training.refusals import (
    batches_of,
    check_count,
    check_scheduler,
    check_trainable,
    warn_of_ramps,
    writable,
)
from robust_plugins.training.resuming import Training
from robust_plugins.training.steps import Loss, Steps, loss_of


@runtime_checkable
class Loader(Protocol):
    """Batches `(x, y)`, in as many iterations as there are epochs, such as a `torch.utils.data.DataLoader`."""

    def __iter__(self) -> Iterator[Any]: ...


def fit(
    model: nn.Module,
    loader: Loader,
    loss: Loss | nn.modules.loss._Loss,
    *,
    epochs: int,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
    evaluate: Callable[[nn.Module], Mapping[str, float | str]] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    clip_gradient: float | None = None,
    accumulate: int = 1,
    progress: bool = True,
) -> TrainingRecord:
    """Trains `model` in place, in training mode, and returns a record of every epoch. Modes are as found after it.

    - `loader`: batches `(x, y)`, which are moved to the model's device and, where they hold numbers, to its precision.
      One without a length, as for an IterableDataset, is counted in the first epoch, in which ramps stand at their
      start.
    - `loss(model, x, y)` returns a scalar: `rp.MixedLoss`, whose schedules are stepped here after each step of the
      optimizer, any function, or a loss of `torch.nn`, which is one of the model's outputs.
    - `scheduler` is stepped after every epoch; ReduceLROnPlateau by the mean loss of the epoch.
    - `evaluate(model)` returns scores by name after every epoch, as `rp.Scores` does: numbers, or in words why there
      is none.
    - `checkpoint`: a folder that after every epoch holds all that decides how the training goes on; called again with
      it, `fit` goes on after the last complete epoch, to the same final weights bit for bit on a CPU. The random
      states, which are part of it, are then restored to what they were, and so are generators of the loader and of its
      samplers. A folder whose training had as many epochs or more is not trained again.
    - `clip_gradient`: the largest norm of the gradient of all parameters; larger ones are scaled down to it.
    - `accumulate`: how many batches are averaged before each step of the optimizer.
    - `progress`: a bar, and a line for every epoch, on standard error.

    Gradients are recorded under `torch.no_grad()`, too. Raises TrainingError, naming epoch and batch, where the loss,
    bounds, a gradient or a weight become NaN or infinite; the checkpoint of the last epoch that was good is then still
    there. Raises ArgumentError for numbers that make no sense, batches that are not pairs, optimizers that hold none
    of the model's parameters or evaluate the loss several times a step, under `torch.inference_mode()`, and for the
    checkpoint of another model, optimizer, scheduler, loss or data. Warns where training on bounds reaches its full
    strength within so few steps that it will collapse, and where a ramp is not over when training is.
    """
    check_gradients()
    check_count("epochs", epochs)
    check_count("accumulate", accumulate)
    loss = loss_of(loss)
    if not (evaluate is None or callable(evaluate)):
        raise ArgumentError("evaluate", repr(evaluate), accepted="a function of the model, or None", hint="rp.Scores.")
    if clip_gradient is not None and not (isinstance(clip_gradient, int | float) and clip_gradient > 0):
        raise ArgumentError("clip_gradient", clip_gradient, accepted="a number above 0, or None", hint="Try 10.")
    batches = batches_of(loader)
    check_trainable(model, optimizer)
    check_scheduler(scheduler, optimizer, epochs)
    warn_of_ramps(loss, batches, epochs, stacklevel=2)
    folder = None if checkpoint is None else writable(Path(checkpoint))
    state = Training(model, optimizer, scheduler, loader, loss, f"accumulate={accumulate}, {clip_gradient=}")
    done, counted = ((), None) if folder is None else state.resume(folder)
    training = Steps(model, loader, loss, optimizer, clip_gradient, accumulate, counted if batches is None else batches)
    plateau = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
    with keeping_modes(model):
        total, before = (None, 0) if batches is None else (epochs * batches, len(done) * batches)
        with torch.enable_grad(), reporting("training", total=total, done=before, enabled=progress) as (advance, say):
            for number in range(first := len(done), epochs):
                model.train()
                start = time.perf_counter()
                means = training.epoch(number, advance)
                seconds = time.perf_counter() - start
                if scheduler is not None:
                    scheduler.step(*[means["loss"]] if plateau else [])
                scores = {} if evaluate is None else checked_scores(evaluate(model))
                done = (*done, EpochRecord(epoch=number + 1, seconds=seconds, scores=scores, **means))
                if folder is not None:
                    state.save(folder, TrainingRecord(done), training.batches)
                if number == first:
                    say(header(scores))
                say(row(done[-1]))
                if number == first:
                    for cause in TrainingRecord(done).causes:
                        say(cause)
    return TrainingRecord(done)
