"""`fit`: a plain training loop with progress, checkpoints and a table."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from robust_plugins import checkpoints
from robust_plugins.errors import ArgumentError, TrainingError
from robust_plugins.losses.record import EpochRecord, TrainingRecord, header, row
from robust_plugins.progress import reporting

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


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
      states, which are part of it, are then restored to what they were. A folder whose training had as many epochs or
      more is not trained again.
    - `clip_gradient`: the largest norm of the gradient of all parameters; larger ones are scaled down to it.
    - `accumulate`: how many batches are averaged before each step of the optimizer.
    - `progress`: a bar, and a line for every epoch, on standard error.

    Raises TrainingError, naming epoch and batch, where the loss or the weights become NaN or infinite; the checkpoint
    of the last epoch that was good is then still there. Raises ArgumentError for numbers that make no sense.
    """
    for name, value in (("epochs", epochs), ("accumulate", accumulate), ("len(loader)", len(loader))):
        if value < 1:
            raise ArgumentError(name, value, accepted="an integer of at least 1", hint="Train on something, once.")
    if clip_gradient is not None and not clip_gradient > 0:
        raise ArgumentError("clip_gradient", clip_gradient, accepted="a number above 0, or None", hint="Try 10.")
    folder = None if checkpoint is None else Path(checkpoint)
    done = () if folder is None else _resumed(folder, model, loader, optimizer, scheduler)
    training = _Training(model, loader, loss, optimizer, clip_gradient, accumulate)
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
                    _save(folder, model, loader, optimizer, scheduler, TrainingRecord(done))
                if len(done) == 1:
                    say(header(scores))
                say(row(done[-1]))
    finally:
        for module, mode in modes:
            module.training = mode
    return TrainingRecord(done)


@dataclass
class _Training:
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
        for index, (x, y) in enumerate(self.loader):
            value = self.loss(self.model, x.to(self.device), y.to(self.device))
            self._check(bool(torch.isfinite(value)), "the loss", number, index, value)
            group = min(self.accumulate, batches - index // self.accumulate * self.accumulate)
            (value / group if group > 1 else value).backward()
            if (index + 1) % self.accumulate == 0 or index + 1 == batches:
                if self.clip_gradient is not None:
                    nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_gradient)
                self.optimizer.step()
                self.optimizer.zero_grad()
            means.add(value)
            self._step_schedules(number, index)
            advance()
        finite = all(bool(p.isfinite().all()) for p in self.model.parameters())
        self._check(finite, "a weight", number, batches - 1, None)
        return means.result()

    def _step_schedules(self, epoch: int, batch: int) -> None:
        step = getattr(self.loss, "step", None)
        if step is not None:
            step(epoch, batch, len(self.loader))

    def _check(self, fine: bool, what: str, epoch: int, batch: int, value: Tensor | None) -> None:
        if fine:
            return
        terms = getattr(value, "terms", None)
        said = f" ({terms})" if terms is not None else ""
        found = "not finite" if value is None else f"{value.item()}"
        raise TrainingError(
            f"{what} is {found} in epoch {epoch + 1}, batch {batch + 1}{said}; try a smaller learning rate, "
            "clip_gradient, or a longer ramp"
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


def _save(
    folder: Path,
    model: nn.Module,
    loader: Iterable[Any],
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None,
    record: TrainingRecord,
) -> None:
    generator = getattr(loader, "generator", None)
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": None if scheduler is None else scheduler.state_dict(),
        "order": None if generator is None else generator.get_state(),
        "record": record.to_dict(),
    }
    checkpoints.save(folder, state)


def _resumed(
    folder: Path,
    model: nn.Module,
    loader: Iterable[Any],
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None,
) -> tuple[EpochRecord, ...]:
    state = checkpoints.load(folder)
    if state is None:
        return ()
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    if scheduler is not None and state["scheduler"] is not None:
        scheduler.load_state_dict(state["scheduler"])
    generator = getattr(loader, "generator", None)
    if generator is not None and state["order"] is not None:
        generator.set_state(state["order"])
    return TrainingRecord.from_dict(state["record"]).epochs
