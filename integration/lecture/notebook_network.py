"""The network of the lecture's notebook, 784-256-128-10, and its training: Adam 1e-3, batches of 64."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.intervals import Interval

RATE, BATCH = 1e-3, 64


@dataclass(frozen=True)
class Batches:
    """All samples in another order each time, by torch's random state."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return -(-len(self.x) // BATCH)

    def __iter__(self) -> object:
        for rows in torch.randperm(len(self.x)).split(BATCH):
            yield self.x[rows], self.y[rows]


def network(data: rp.Dataset, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return rp.model("mlp", input_shape=data.input_shape, classes=data.classes, widths=(256, 128))


def trained(
    data: rp.Dataset,
    folder: Path,
    *,
    epochs: int,
    seed: int,
    samples: int,
    loss: rp.MixedLoss | None = None,
    name: str = "plain",
) -> nn.Module:
    """The network after its training on the first `samples`, or read from `folder`, where `name` stands for `loss`."""
    model = network(data, seed)
    path = folder / f"notebook-{name}-{data.name}-{samples}-{epochs}-{seed}-{torch.__version__}.pt"
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
    else:
        optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
        batches = Batches(data.x_train[:samples], data.y_train[:samples])
        rp.fit(model, batches, loss or rp.recipe("standard"), epochs=epochs, optimizer=optimizer, progress=False)
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}")
        torch.save(model.state_dict(), unfinished)
        os.replace(unfinished, path)
    return model.eval().requires_grad_(False)


def logit_boxes(model: nn.Module, x: Tensor, ball: rp.Ball) -> Interval:
    """The interval of every logit, by interval bound propagation."""
    return rp.certifier("interval:ibp").bounds(model, x, ball)


def certified_by_boxes(logits: Interval, y: Tensor) -> Tensor:
    """Where the lowest logit of the class lies above the highest of all others, as the notebook has it."""
    rival = logits.upper.scatter(1, y[:, None], -torch.inf).amax(1)
    return logits.lower.gather(1, y[:, None]).squeeze(1) > rival
