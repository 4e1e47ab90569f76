"""ART's view of a PyTorch model. Imports ART: import this module inside functions only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from robust_plugins.adapters.art.silence import silent
from robust_plugins.balls import Ball


class Shielded(nn.Module):
    """Calls a model that it does not own, so that ART can neither move it nor change its mode or gradients.

    ART computes in float32 and on a device of its own choice; inputs are cast to the model's dtype and device, and
    the logits back to where and what the inputs were.
    """

    def __init__(self, model: nn.Module, like: Tensor) -> None:
        super().__init__()
        self._call = model.__call__  # a bound method is no submodule: to(), train() and zero_grad() do not see it
        self._like = like.new_empty(0)

    def forward(self, z: Tensor) -> Tensor:
        """The model's logits on `z`, in z's dtype and on its device."""
        logits: Tensor = self._call(z.to(self._like))
        return logits.to(z)


class Batched(PyTorchClassifier):  # type: ignore[misc] # ART is untyped
    """An estimator that predicts at least `queries` inputs at a time, for attacks that ask for them one by one."""

    queries = 1

    def predict(self, x: np.ndarray, batch_size: int = 128, training_mode: bool = False, **kwargs: Any) -> np.ndarray:
        """ART's predictions, in larger batches."""
        logits: np.ndarray = super().predict(x, max(batch_size, self.queries), training_mode, **kwargs)
        return logits


def estimator_for(
    model: nn.Module, x: Tensor, ball: Ball, *, classes: int, classifier: type[PyTorchClassifier] = PyTorchClassifier
) -> PyTorchClassifier:
    """An ART estimator of `model` for inputs like `x`: cross-entropy on logits, the ball's clip range.

    It computes on the GPU of `x`, and on the CPU for every other kind of device.
    """
    cuda = x.device.type == "cuda"
    # ART takes whichever GPU is current.
    place: AbstractContextManager[object] = torch.cuda.device(x.device) if cuda else nullcontext()
    with place, silent():  # ART logs how many layers it sees
        return classifier(
            model=Shielded(model, x),
            loss=nn.CrossEntropyLoss(),
            input_shape=tuple(x.shape[1:]),
            nb_classes=classes,
            clip_values=None if ball.clip is None or np.isinf(ball.clip).all() else ball.clip,
            preprocessing=None,
            device_type="gpu" if cuda else "cpu",
        )


class _SeededMeta(type):
    def __instancecheck__(cls, other: object) -> bool:
        return isinstance(other, _RandomState)


class _Seeded(np.random.RandomState, metaclass=_SeededMeta):
    def __init__(self, seed: Any = None) -> None:
        # Not the Generator that numpy recommends: the global state is what the call has seeded.
        super().__init__(np.random.randint(2**32, dtype=np.uint32) if seed is None else seed)  # noqa: NPY002


_RandomState = np.random.RandomState


@contextmanager
def reproducible() -> Iterator[None]:
    """Inside, `np.random.RandomState()` takes its seed from numpy's global generator.

    ART's HopSkipJump, Boundary and Brendel-Bethge attacks draw their first points from a generator that the system
    seeds, so that no seed of the caller's would reproduce them.
    """
    np.random.RandomState = _Seeded  # type: ignore[misc]
    try:
        yield
    finally:
        np.random.RandomState = _RandomState  # type: ignore[misc]


def classes_of(model: nn.Module, x: Tensor) -> int:
    """How many classes `model` has. Called with the whole batch, for exported models that take no other size."""
    with torch.no_grad():
        return int(model(x).shape[1])


def one_hot(y: Tensor, classes: int) -> np.ndarray:
    """Labels in the form that all of ART reads alike: one-hot rows, shape (batch, classes)."""
    rows: np.ndarray = np.eye(classes, dtype=np.float32)[y.cpu().numpy()]
    return rows


def moved(x: Tensor, before: np.ndarray, after: np.ndarray) -> Tensor:
    """`x` moved as ART moved `before` to `after`: the dtype of `x` loses nothing to ART's float32."""
    return x + torch.from_numpy(np.asarray(after) - before).to(x)
