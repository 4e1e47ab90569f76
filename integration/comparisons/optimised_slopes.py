"""Optimised slopes side by side: `interval:alpha-crown` and auto_LiRPA's, on three published networks.

    python integration/comparisons/optimised_slopes.py --models DIR [--images 20] [--network mlp]
        [--certifier interval:alpha-crown --certifier lirpa:alpha-crown] [--open] [--batch-size 2] [--json]

For each network, the first correctly classified images of its test set are certified, and the images verified and the
CPU seconds of one thread printed; `optimised_slopes.md` holds what was measured. With `--open` only those that
`interval:crown` leaves open, so that all of them take an optimisation. The networks (5 hidden layers of 100,
and two convolutional ones) and the images are those published with the verifiers ERAN and alpha-beta-CROWN; `--models`
is the folder with their files.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import robust_plugins as rp

CERTIFIERS = ("interval:crown", "interval:alpha-crown", "lirpa:crown", "lirpa:alpha-crown")
NETWORKS = {"mlp": 0.026, "mnist": 0.12, "cifar": 2 / 255}


class Normalised(nn.Module):
    """A network behind its normalisation."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], net: nn.Module) -> None:
        super().__init__()
        for name, value in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(value).view(-1, 1, 1))
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x - self.mean) / self.std)


def architecture(name: str) -> nn.Sequential:
    if name == "mlp":
        hidden = [layer for width in (784, 100, 100, 100, 100) for layer in (nn.Linear(width, 100), nn.ReLU())]
        return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(100, 10))
    channels, flat = {"mnist": (1, 800), "cifar": (3, 1152)}[name]
    return nn.Sequential(
        nn.Conv2d(channels, 16, 4, 2), nn.ReLU(), nn.Conv2d(16, 32, 4, 2), nn.ReLU(), nn.Flatten(),
        nn.Linear(flat, 100), nn.ReLU(), nn.Linear(100, 10),
    )  # fmt: skip


def load(name: str, folder: Path, images: int) -> tuple[nn.Module, Tensor, Tensor, rp.Ball]:
    """The network, its first correctly classified images, their labels, and the ball of the published tables."""
    net = architecture(name)
    file = {"mlp": "mnist_6_100_nat.pth", "mnist": "mnist_conv_small_nat.pth", "cifar": "cifar_conv_small_pgd.pth"}[
        name
    ]
    state = torch.load(folder / file, weights_only=True)
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    net.load_state_dict(state[0] if isinstance(state, list) else state)
    model: nn.Module = net
    if name == "cifar":
        table = np.loadtxt(folder / "cifar10_test.csv", delimiter=",")
        x = torch.tensor(table[:, 1:] / 255).float().view(-1, 32, 32, 3).permute(0, 3, 1, 2).contiguous()
        y = torch.tensor(table[:, 0]).long()
        model = Normalised((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010), net)
    else:
        x = torch.tensor(np.load(folder / "X_eran.npy")).float().view(-1, 1, 28, 28)
        y = torch.tensor(np.load(folder / "y_eran.npy")).long()
        x = x / 255 if x.max() > 1 else x
        if name == "mnist":
            model = Normalised((0.1307,), (0.3081,), net)
    right = (model.eval()(x).argmax(1) == y).nonzero()[:images, 0]
    return model, x[right], y[right], rp.Linf(eps=NETWORKS[name], clip=(0.0, 1.0))


def measure(
    name: str, certifier: str, folder: Path, images: int, only_open: bool, batch_size: int | None
) -> dict[str, object]:
    model, x, y, ball = load(name, folder, images)
    if only_open:
        left = ~rp.certifier("interval:crown")(model, x, y, ball).certified
        x, y = x[left], y[left]
    component = rp.certifier(certifier, batch_size=batch_size)
    component(model, x[:1], y[:1], tiny(ball))  # what is loaded and converted once is not timed
    start = time.process_time()
    certificate = component(model, x, y, ball)
    seconds = time.process_time() - start
    return {
        "network": name,
        "certifier": certifier,
        "images": len(x),
        "verified": int(certificate.certified.sum()),
        "mean margin": round(certificate.margin.mean().item(), 3),
        "CPU s an image": round(seconds / len(x), 3),
    }


def tiny(ball: rp.Ball) -> rp.Ball:
    """The same ball with a radius at which there is little to do."""
    return type(ball)(eps=1e-4, clip=ball.clip)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--network", action="append", choices=list(NETWORKS))
    parser.add_argument("--certifier", action="append")
    parser.add_argument("--open", action="store_true")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for network in arguments.network or NETWORKS:
        for certifier in arguments.certifier or CERTIFIERS:
            chosen = arguments.models, arguments.images, arguments.open, arguments.batch_size
            rows.append(measure(network, certifier, *chosen))
            if arguments.json:
                continue
            if len(rows) == 1:
                print("| " + " | ".join(rows[0]) + " |\n" + "|---" * len(rows[0]) + "|")
            print("| " + " | ".join(str(value) for value in rows[-1].values()) + " |", flush=True)
    if arguments.json:
        print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
