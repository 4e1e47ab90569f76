"""`fit`: a plain training loop with progress, checkpoints and a table."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from robust_plugins.errors import ArgumentError, RobustPluginsError, TrainingError
from robust_plugins.harness.progress import reporting
from robust_plugins.losses.mixed import MixedLoss
from robust_plugins.training.record import EpochRecord, TrainingRecord, header, row
from robust_plugins.training.resuming import Training

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]

STEEP = 50
"""A ramp of fewer steps is warned about."""


@runtime_checkable
class Loader(Protocol):
    """Batches `(x, y)`, in as many iterations as there are epochs, such as a `torch.utils.data.DataLoader`."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Any]: ...


def fit(
    model: nn.Module,
    loader: Loader,
    loss: Loss,
    *,
    epochs: int,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
    evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    clip_gradient: float | None = None,
    accumulate: int = 1,
    progress: bool = True,
) -> TrainingRecord:
    """Trains `model` in place, in training mode, and returns a record of every epoch. Modes are as found after it.

    - `loss(model, x, y)` returns a scalar: `rp.MixedLoss`, whose schedules are stepped here, or any function.
    - `scheduler` is stepped after every epoch.
    - `evaluate(model)` returns scores by name after every epoch, as `rp.Scores` does.
    - `checkpoint`: a folder that after every epoch holds all that decides how the training goes on; called again with
      it, `fit` goes on after the last complete epoch, to the same final weights bit for bit on a CPU. The random
      states, which are part of it, are then restored to what they were, and so are generators of the loader and of its
      samplers. A folder whose training had as many epochs or more is not trained again.
    - `clip_gradient`: the largest norm of the gradient of all parameters; larger ones are scaled down to it.
    - `accumulate`: how many batches are averaged before each step of the optimizer.
    - `progress`: a bar, and a line for every epoch, on standard error.

    Raises TrainingError, naming epoch and batch, where the loss, its gradient or a weight becomes NaN or infinite; the
    checkpoint of the last epoch that was good is then still there. Raises ArgumentError for numbers that make no
    sense, for batches that are not pairs, and for the checkpoint of another model, optimizer, scheduler or loss. Warns
    where training on bounds reaches its full strength within so few steps that it will collapse.
    """
    _check_count("epochs", epochs)
    _check_count("accumulate", accumulate)
    if not isinstance(loader, Loader) or len(loader) < 1:
        raise ArgumentError(
            "loader", repr(loader), accepted="batches (x, y) with a length of at least 1, such as a DataLoader",
            hint="For a generator, make a list of its batches.",
        )  # fmt: skip
    if clip_gradient is not None and not clip_gradient > 0:
        raise ArgumentError("clip_gradient", clip_gradient, accepted="a number above 0, or None", hint="Try 10.")
    _warn_of_a_steep_ramp(loss, len(loader), epochs)
    folder = None if checkpoint is None else Path(checkpoint)
    state = Training(model, optimizer, scheduler, loader, loss)
    done = () if folder is None else state.resume(folder)
    training = _Steps(model, loader, loss, optimizer, clip_gradient, accumulate)
    modes = [(module, module.training) for module in model.modules()]
    try:
        total, before = epochs * len(loader), len(done) * len(loader)
        with reporting("training", total=total, done=before, enabled=progress) as (advance, say):
            for number in range(len(done), epochs):
                model.train()
                start = time.perf_counter()
                means = training.epoch(number, advance)
                seconds = time.perf_counter() - start
                if scheduler is not None:
                    scheduler.step()
                scores = {} if evaluate is None else dict(evaluate(model))
                done = (*done, EpochRecord(epoch=number + 1, seconds=seconds, scores=scores, **means))
                if folder is not None:
                    state.save(folder, TrainingRecord(done))
                if number == before // len(loader):
                    say(header(scores))
                say(row(done[-1]))
    finally:
        for module, mode in modes:
            module.training = mode
    return TrainingRecord(done)


@dataclass
class _Steps:
    model: nn.Module
    loader: Loader
    loss: Loss
    optimizer: torch.optim.Optimizer
    clip_gradient: float | None
    accumulate: int
    device: torch.device | None = field(init=False)

    def __post_init__(self) -> None:
        self.device = next((p.device for p in self.model.parameters()), None)

    def epoch(self, number: int, advance: Callable[[], None]) -> dict[str, Any]:
        batches = len(self.loader)
        means = _Means()
        self._step_schedules(number, -1)
        self.optimizer.zero_grad()
        first = 0
        for index, batch in enumerate(self.loader):
            value = self._value(batch, number, index)
            group = min(self.accumulate, batches - first)
            (value / group if group > 1 else value).backward()
            if index + 1 == first + group:
                norm = self._gradient_norm()
                if not bool(torch.isfinite(norm)):
                    raise _failure("the gradient is not finite", number, first, index, value)
                self.optimizer.step()
                self.optimizer.zero_grad()
                first = index + 1
            means.add(value)
            self._step_schedules(number, index)
            advance()
        if not self._finite():
            raise _failure("a weight is not finite", number, batches - 1, batches - 1, None)
        return means.result()

    def _value(self, batch: Any, number: int, index: int) -> Tensor:
        if not isinstance(batch, tuple | list) or len(batch) != 2 or not all(isinstance(t, Tensor) for t in batch):
            kinds = [type(t).__name__ for t in batch] if isinstance(batch, tuple | list) else type(batch).__name__
            raise ArgumentError(
                "loader", f"giving {kinds}", accepted="batches (x, y) of two tensors",
                hint="Pick them, for example in the DataLoader's collate_fn.",
            )  # fmt: skip
        x, y = (t.to(self.device) for t in batch)
        try:
            value = self.loss(self.model, x, y)
        except RobustPluginsError as error:  # bounds and attacks refuse what is not finite before there is a loss
            cause = self._cause(x)
            if not cause:
                raise
            raise _failure(cause, number, index, index, None) from error
        if not isinstance(value, Tensor) or value.dim():
            found = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ArgumentError("loss", f"returning {found}", accepted="a scalar tensor", hint="Take the mean.")
        if not bool(torch.isfinite(value)):
            what = f"the loss is {value.item()}"
            raise _failure(f"{what}, as {cause}" if (cause := self._cause(x)) else what, number, index, index, value)
        return value

    def _cause(self, x: Tensor) -> str:
        """What is not finite, if anything is."""
        if x.is_floating_point() and not bool(x.isfinite().all()):
            return "an input is not finite"
        return "" if self._finite() else "a weight is not finite"

    def _finite(self) -> bool:
        state = [*self.model.parameters(), *self.model.buffers()]
        return all(bool(t.isfinite().all()) for t in state if t.is_floating_point())

    def _gradient_norm(self) -> Tensor:
        if self.clip_gradient is not None:
            return nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_gradient)
        return nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])

    def _step_schedules(self, epoch: int, batch: int) -> None:
        step = getattr(self.loss, "step", None)
        if step is not None:
            step(epoch, batch, len(self.loader))


def _failure(what: str, epoch: int, first: int, last: int, value: Tensor | None) -> TrainingError:
    terms = getattr(value, "terms", None)
    said = f" ({terms})" if terms is not None else ""
    place = f"batch {last + 1}" if first == last else f"batches {first + 1} to {last + 1}"
    hint = "clean the data" if "input" in what else "try a smaller learning rate, clip_gradient, or a longer ramp"
    return TrainingError(f"{what} in epoch {epoch + 1}, {place}{said}; {hint}")


def _check_count(name: str, value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ArgumentError(name, repr(value), accepted="an integer of at least 1", hint="Take one or more.")


def _warn_of_a_steep_ramp(loss: Loss, batches: int, epochs: int) -> None:
    if not isinstance(loss, MixedLoss) or not loss.certified or loss.schedule is None or loss.schedule(0) >= 1:
        return
    steps = min(STEEP, epochs * batches)
    if loss.schedule(steps / batches) >= 1:
        warnings.warn(
            f"the ramp is over after fewer than {steps} steps; training on bounds that grow so fast tends to collapse "
            "to a constant network: take a longer ramp, and more epochs or smaller batches",
            stacklevel=3,
        )


class _Means:
    """Running means of a loss and its terms."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {"loss": [], "clean": [], "worst": []}
        self.eps: float | None = None
        self.gamma: float | None = None

    def add(self, value: Tensor) -> None:
        self.values["loss"].append(value.item())
        terms = getattr(value, "terms", None)
        if terms is not None:
            self.values["clean"].append(terms.clean.item())
            if terms.worst is not None:
                self.values["worst"].append(terms.worst.item())
            self.eps = max(terms.eps) if isinstance(terms.eps, tuple) else terms.eps
            self.gamma = terms.gamma

    def result(self) -> dict[str, Any]:
        means = {name: sum(v) / len(v) if v else None for name, v in self.values.items()}
        return means | {"eps": self.eps, "gamma": self.gamma}
