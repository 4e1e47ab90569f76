"""One epoch of `fit`: gradients of groups of batches, steps of the optimizer, and what is said where they fail."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robust_plugins.errors import ArgumentError, ComponentError, RobustPluginsError, TrainingError
from robust_plugins.harness.wrappers import logits_in
from robust_plugins.losses.refused import refused_inputs

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Criterion:
    """A loss of torch, of outputs and labels, as one of a model."""

    loss: Callable[[Any, Tensor], Tensor]

    def __call__(self, model: nn.Module, x: Float[Tensor, "batch *features"], y: Tensor) -> Tensor:
        """The loss of the model's outputs, or of the field `logits` of the record that it returns."""
        return self.loss(logits_in(model(x)), y)


def loss_of(loss: Any) -> Loss:
    """`loss` as a function of model, inputs and labels; torch's own losses are taken as what they are of outputs.

    Raises ArgumentError for what cannot be called.
    """
    if isinstance(loss, nn.modules.loss._Loss) or getattr(loss, "__module__", None) == "torch.nn.functional":
        return Criterion(loss)
    if not callable(loss):
        raise ArgumentError(
            "loss", repr(loss), accepted="a function of (model, x, y), such as rp.MixedLoss, or a loss of torch.nn",
            hint='A recipe is made by its name: rp.recipe("standard").',
        )  # fmt: skip
    return loss  # type: ignore[no-any-return] # called, and what it returns checked, batch by batch


@dataclass
class Steps:
    """The training of a model by batches; `batches` is their number in an epoch, None until one has been counted."""

    model: nn.Module
    loader: Any
    loss: Loss
    optimizer: torch.optim.Optimizer
    clip_gradient: float | None
    accumulate: int
    batches: int | None
    device: torch.device | None = field(init=False)
    dtype: torch.dtype | None = field(init=False)

    def __post_init__(self) -> None:
        parameters = list(self.model.parameters())
        self.device = next((p.device for p in parameters), None)
        self.dtype = next((p.dtype for p in parameters if p.is_floating_point()), None)

    def epoch(self, number: int, advance: Callable[[], None]) -> dict[str, Any]:
        """Trains for one epoch, and gives its means. Raises TrainingError where something is not finite."""
        means, first, batches = _Means(), 0, iter(self.loader)
        self._step_schedules(number, -1)
        self.optimizer.zero_grad()
        while group := list(itertools.islice(batches, self.accumulate)):
            last = first + len(group) - 1
            for index, batch in enumerate(group, first):
                value = self._value(batch, number, index)
                (value / len(group) if len(group) > 1 else value).backward()
                means.add(value)
                advance()
            if not bool(torch.isfinite(self._gradient_norm())):
                raise _failure("the gradient is not finite", number, first, last, value)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self._step_schedules(number, last)  # and not within the group, whose gradient is that of one loss
            first = last + 1
        if first == 0:
            raise ArgumentError(
                "loader", f"without a batch in epoch {number + 1}", accepted="at least one batch in every epoch",
                hint="Give an iterable that begins anew each time, such as a DataLoader or a list.",
            )  # fmt: skip
        if not self._finite():
            raise _failure("a weight is not finite", number, first - 1, first - 1, None)
        self.batches = first
        return means.result()

    def _value(self, batch: Any, number: int, index: int) -> Tensor:
        if not isinstance(batch, tuple | list) or len(batch) != 2 or not all(isinstance(t, Tensor) for t in batch):
            kinds = [type(t).__name__ for t in batch] if isinstance(batch, tuple | list) else type(batch).__name__
            raise ArgumentError(
                "loader", f"giving {kinds}", accepted="batches (x, y) of two tensors",
                hint='Pick them, for example in [(b["image"], b["label"]) for b in loader], or in the collate_fn of a '
                "DataLoader.",
            )  # fmt: skip
        x, y = (self._placed(t) for t in batch)
        try:
            value = self.loss(self.model, x, y)
        except Exception as error:
            if (told := self._explained(error, x, number, index)) is not None:
                raise told from error
            error.add_note(f"in epoch {number + 1}, batch {index + 1}")
            raise
        if not isinstance(value, Tensor) or value.dim():
            found = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ArgumentError("loss", f"returning {found}", accepted="a scalar tensor", hint="Take the mean.")
        if not value.requires_grad:
            raise ArgumentError(
                "loss", "without gradients", accepted="a loss that depends on the model's parameters",
                hint="Compute it from model(x), without detach() and torch.no_grad().",
            )  # fmt: skip
        if not bool(torch.isfinite(value)):
            what = f"the loss is {value.item()}"
            raise _failure(f"{what}, as {cause}" if (cause := self._cause(x)) else what, number, index, index, value)
        return value

    def _placed(self, t: Tensor) -> Tensor:
        """The tensor on the model's device and, where it holds numbers, in its precision."""
        return t.to(self.device, self.dtype if t.is_floating_point() else t.dtype)

    def _explained(self, error: Exception, x: Tensor, number: int, index: int) -> Exception | None:
        """Returns what to raise for an error of the loss: where, and why; None where its own words have to do."""
        if not isinstance(error, RobustPluginsError):
            found = refused_inputs(error, self.model, x)
            if found is not None:
                found.add_note(f"in epoch {number + 1}, batch {index + 1}")
            return found
        # Bounds and attacks refuse what is not finite before there is a loss.
        if cause := self._cause(x):
            return _failure(cause, number, index, index, None)
        if isinstance(error, ComponentError) and ("NaN" in str(error) or "cross" in str(error)):
            return _failure(f"the bounds are not finite ({error})", number, index, index, None)
        return None

    def _cause(self, x: Tensor) -> str:
        """Names what is not finite, if anything is."""
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
        if step is None:
            return
        if self.batches is None:
            step(epoch, batch)
        else:  # an epoch that is longer than the one before does not reach into the next
            step(epoch, min(batch, self.batches - 1), self.batches)


def _failure(what: str, epoch: int, first: int, last: int, value: Tensor | None) -> TrainingError:
    terms = getattr(value, "terms", None)
    said = f" ({terms})" if terms is not None else ""
    place = f"batch {last + 1}" if first == last else f"batches {first + 1} to {last + 1}"
    hint = "clean the data" if "input" in what else "try a smaller learning rate, clip_gradient, or a longer ramp"
    return TrainingError(f"{what} in epoch {epoch + 1}, {place}{said}; {hint}")


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
