"""`Reader`: the batches of a training, checked, and the same ones in every epoch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, SequentialSampler

from robust_plugins.errors import ArgumentError, of_type
from robust_plugins.harness.wrappers import give_logits, logits_in
from robust_plugins.poisoning.concrete.losses import Objective

Batch = tuple[Tensor, Tensor]
Checked = tuple[Float[Tensor, "samples *features"], Shaped[Tensor, "samples *labels"]]

_DIVIDED = "One batch is [(x, y)]; data are divided by list(zip(x.split(100), y.split(100)))."


class Reader:
    """Reads batches `(x, y)`, tensors or arrays, in the shape in which training takes them.

    Bounds hold for one order of the data, so an epoch whose batches are not those of the first one is refused, as that
    of a loader that shuffles. `seen` are the digests of the batches of an epoch, as far as it was read.
    """

    def __init__(self, batches: Iterable[Any], model: nn.Module, objective: Objective) -> None:
        self.check_source(batches)
        self.batches, self.model, self.objective = batches, model, objective
        self.once = isinstance(batches, Iterator)
        """Whether they can be read one time only, as those of a generator."""
        self.seen: list[str] = []
        self.complete = self.restored = False
        self.largest = 0
        """The number of samples of the largest batch."""
        self._outputs: dict[torch.Size, int] = {}

    @staticmethod
    def check_source(batches: object) -> None:
        """Raises ArgumentError for what gives no batches, or gives them in another order each time."""
        if isinstance(batches, DataLoader):
            sampler = getattr(batches.batch_sampler, "sampler", batches.sampler)
            in_order = isinstance(sampler, SequentialSampler) or getattr(sampler, "shuffle", None) is False
            if not in_order:
                raise ArgumentError("batches", f"a DataLoader with {of_type(sampler)}",
                                    accepted="one that does not shuffle", hint="Bounds hold for one order of the data: "
                                    "set shuffle=False, or give list(loader).")  # fmt: skip
            return
        if isinstance(batches, Tensor | Dataset | str | dict) or not isinstance(batches, Iterable):
            raise ArgumentError("batches", _described(batches), accepted="an iterable of pairs (x, y)", hint=_DIVIDED)

    @property
    def length(self) -> int | None:
        """The number of batches of an epoch, where it is known."""
        return len(self.batches) if isinstance(self.batches, Sequence) else None

    def epoch(self) -> Iterator[Checked]:
        """One pass over the batches. Raises ArgumentError for batches that do not fit, or that differ from before."""
        index = -1
        for index, given in enumerate(self.batches):
            x, y = self.checked(given, f"batch {index + 1}")
            digest = digest_of(x, y)
            if index < len(self.seen) and self.seen[index] != digest:
                raise self._differing(f"other data in batch {index + 1}")
            if index >= len(self.seen):
                if self.complete:
                    raise self._differing(f"more than {len(self.seen)} batches")
                self.seen.append(digest)
            self.largest = max(self.largest, len(x))
            yield x, y
        if index < 0:
            raise ArgumentError("batches", "empty", accepted="at least one batch",
                                hint="A generator is used up after an epoch; give a list.")  # fmt: skip
        if index + 1 < len(self.seen):
            raise self._differing(f"only {index + 1} batches")
        self.complete = True

    def checked(self, given: object, place: str, name: str = "batches") -> Checked:
        """One batch. Raises ArgumentError where it is none, or does not fit the model or the loss."""
        if not isinstance(given, tuple | list) or len(given) != 2:
            raise ArgumentError(name, f"with {_described(given)} as {place}", accepted="pairs (x, y)", hint=_DIVIDED)
        like = next(iter(self.model.parameters()))
        x, y = as_tensor(given[0], name), as_tensor(given[1], name)
        if x.dim() < 2 or y.dim() < 1 or len(x) != len(y):
            raise ArgumentError(name, f"with x of shape {tuple(x.shape)} and y of shape {tuple(y.shape)} as {place}",
                                accepted="x of shape (samples, *features) with one label for each sample",
                                hint="Features that are one number have x.unsqueeze(1).")  # fmt: skip
        if x.dtype != like.dtype:
            raise ArgumentError(name, f"of {x.dtype}", accepted=f"the model's dtype, {like.dtype}",
                                hint="Convert the data or the model.")  # fmt: skip
        for what, values in (("features", x), ("labels", y)):
            if not bool(values.isfinite().all()):
                raise ArgumentError(name, f"with {what} that are not finite as {place}", accepted="finite values",
                                    hint="Find them with isfinite().")  # fmt: skip
        x, y = x.to(like.device), y.to(like.device)
        outputs = self.outputs(x)
        return x, self.objective.checked(y, outputs) if len(x) else y

    def outputs(self, x: Float[Tensor, "samples *features"]) -> int:
        """The number of outputs of the model for samples of this shape."""
        if x.shape[1:] not in self._outputs:
            one = x[:1] if len(x) else x.new_zeros((1, *x.shape[1:]))
            self._outputs[x.shape[1:]] = outputs_of(self.model, one)
        return self._outputs[x.shape[1:]]

    def state_dict(self) -> dict[str, Any]:
        """Returns what has been read, for `load_state_dict`."""
        return {"seen": list(self.seen), "complete": self.complete}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes only the batches that another reader has read."""
        self.seen, self.complete, self.restored = list(state["seen"]), state["complete"], True

    def _differing(self, how: str) -> ArgumentError:
        if self.restored:
            return ArgumentError("batches", f"others than before the interruption: {how}", accepted="the same batches",
                                 hint="Give the same order, or delete the checkpoint.")  # fmt: skip
        return ArgumentError("batches", f"others than in the first epoch: {how}", accepted="the same in each epoch",
                             hint="Bounds hold for one order of the data: do not shuffle, or give a list.")  # fmt: skip


def outputs_of(model: nn.Module, x: Float[Tensor, "samples *features"]) -> int:
    """The number of outputs of a model of our own, which from then on returns them alone where it returns a record.

    A record has them as its field `logits`. Raises ArgumentError where the model does not take x, or returns something
    else.
    """
    try:
        with torch.no_grad():
            z = model(x.clone())
    except Exception as error:  # whatever a stranger's model raises of inputs that it cannot take
        said = str(error).strip().splitlines()
        raise ArgumentError("batches", f"with samples of shape {tuple(x.shape[1:])}", accepted="what the model takes",
                            hint=f"It says: {said[0] if said else type(error).__name__}.") from error  # fmt: skip
    if (found := logits_in(z)) is not z:
        give_logits(model)
        z = found
    if not isinstance(z, Tensor) or z.dim() != 2 or len(z) != len(x):
        shape = f"the shape {tuple(z.shape)}" if isinstance(z, Tensor) else of_type(z)
        raise ArgumentError("model", f"returning {shape} for a batch of {len(x)}", accepted="outputs (batch, outputs)",
                            hint="Wrap it; a single output per sample has z.unsqueeze(1).")  # fmt: skip
    return int(z.shape[1])


def as_tensor(values: object, name: str) -> Tensor:
    """A tensor, array or list of numbers as a tensor that training can use."""
    try:
        if isinstance(values, Tensor):
            found = values.detach()
            return found.clone() if found.is_inference() else found
        return torch.tensor(values)  # a copy: arrays may be read-only, or filled anew
    except (TypeError, ValueError, RuntimeError):  # what torch raises of things that are no numbers
        raise ArgumentError(name, f"with {_described(values)}", accepted="tensors, or arrays of numbers",
                            hint=_DIVIDED) from None  # fmt: skip


def digest_of(*tensors: Shaped[Tensor, "..."]) -> str:
    """A fingerprint of values, shapes and dtypes."""
    found = hashlib.sha256()
    for t in tensors:
        values = t.detach().cpu()
        found.update(f"{tuple(values.shape)} {values.dtype};".encode())
        values = values.float() if values.dtype == torch.bfloat16 else values  # which numpy does not have
        found.update(values.numpy().tobytes())
    return found.hexdigest()


def _described(thing: object) -> str:
    if isinstance(thing, tuple | list):
        return f"{of_type(thing)} of {len(thing)}"
    shape = getattr(thing, "shape", None)
    return of_type(thing) + (f" of shape {tuple(shape)}" if shape is not None else "")
