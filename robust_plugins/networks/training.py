"""Plain training, for models that have no weights yet: `fit` with defaults."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from robust_plugins.errors import ArgumentError, of_type
from robust_plugins.harness.batches import Inputs, as_batch
from robust_plugins.harness.batches import Labels as Given
from robust_plugins.harness.call import calling
from robust_plugins.harness.parameters import check_count
from robust_plugins.harness.wrappers import logits_in
from robust_plugins.losses import recipe
from robust_plugins.losses.labels import Labels, Task, check_task, labels_of, said_of
from robust_plugins.losses.refused import refused_inputs
from robust_plugins.training import fit


def train(
    model: nn.Module,
    x: Inputs,
    y: Given | None,
    *,
    epochs: int,
    lr: float = 1e-3,
    batch_size: int = 64,
    seed: int,
    task: Task | None = None,
) -> None:
    """Trains `model` in place: cross-entropy and Adam on `x` and its classes `y`, reshuffled in every epoch.

    `x` and `y` are tensors or numpy arrays, or a TensorDataset or DataLoader of pairs, read once, whole, and None.

    Training mode during the call, the modes as found after it. The order and dropout follow `seed`; torch's random
    state is left as found. `task`: what `y` is, as for `rp.MixedLoss`; None infers it from all of `y`, with a warning
    where there are two readings. Not robust training: it serves the demonstration and the command line, and is
    `rp.fit` with `rp.recipe("standard")`. Raises ArgumentError for `y` that does not fit `x` or the model, and where
    nothing could be learnt.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(
            "model", of_type(model), accepted="a torch.nn.Module, which is trained in place",
            hint="Train the network inside it.",
        )  # fmt: skip
    samples, classes = as_batch(x, y, model)
    for name, given in (("x", samples), ("y", classes)):
        if not isinstance(given, Tensor):
            raise ArgumentError(
                name, type(given).__name__, accepted="a torch.Tensor or a numpy array",
                hint=f"Use torch.as_tensor({name}).",
            )  # fmt: skip
    for name, value in (("epochs", epochs), ("batch_size", batch_size), ("samples", len(samples))):
        check_count(name, value)
    check_task(task)
    if len(classes) != len(samples):
        raise ArgumentError(
            "y",
            f"of {len(classes)} samples, for {len(samples)}",
            accepted="as many labels as samples",
            hint="Give one for each.",
        )
    labels = _labels(model, samples, classes, task)
    if labels.why:
        warnings.warn(said_of(labels), stacklevel=2)
    with torch.random.fork_rng(devices=[samples.device] if samples.device.type == "cuda" else []):
        torch.manual_seed(seed)
        fit(
            model,
            _Shuffled(samples, classes, batch_size),
            replace(recipe("standard"), task=labels.task),
            epochs=epochs,
            optimizer=torch.optim.Adam(model.parameters(), lr=lr),
            progress=False,
        )


class _Shuffled:
    """The batches of tensors in memory, in another order each time."""

    def __init__(self, x: Tensor, y: Tensor, size: int) -> None:
        self.x, self.y, self.size = x, y, size

    def __len__(self) -> int:
        return -(-len(self.x) // self.size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for rows in torch.randperm(len(self.x)).to(self.x.device).split(self.size):
            yield self.x[rows], self.y[rows]


def _labels(model: nn.Module, x: Tensor, y: Tensor, task: Task | None) -> Labels:
    """Says what all of the labels are, by the outputs of the model at the first sample."""
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), x.dtype)
    first = x[:1].to(dtype) if x.is_floating_point() else x[:1]
    try:
        with torch.no_grad(), calling(model, first, guarded=False) as call:
            out = logits_in(call.model(call.x.clone()))
    except RuntimeError as error:
        if (refused := refused_inputs(error, model, first)) is None:
            raise
        raise refused from error
    if not isinstance(out, Tensor) or out.dim() not in (1, 2):
        found = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ArgumentError(
            "model", f"returning {found}", accepted="outputs of shape (batch, classes), or one per sample",
            hint="Wrap it so that forward returns one row, or one number, for each sample.",
        )  # fmt: skip
    outputs = 1 if out.dim() == 1 else out.shape[1]
    return labels_of(y, out.new_zeros((len(y), outputs), device=y.device), task)
