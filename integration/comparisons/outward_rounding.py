"""What outward rounding costs: time and verdicts of the engine's certifiers with and without `outward`, in one run.

    python integration/comparisons/outward_rounding.py [--models DIR] [--images 20] [--certifier interval:crown]

Certifies the first correctly classified images of a small network trained on digits, and with `--models`, the folder
with the networks published with the verifiers ERAN and alpha-beta-CROWN, of a fully connected and of a convolutional
one, at several radii and in both precisions. Printed are the CPU seconds of one thread, in turns with and without, as
their ratio, and how many of the samples that are certified without `outward` are not with it, and the other way round.
`outward_rounding.md` holds what was measured.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median

import torch
from optimised_slopes import load
from torch import Tensor, nn

import robust_plugins as rp

CERTIFIERS = ("interval:ibp", "interval:crown-ibp", "interval:crown", "interval:alpha-crown")
FACTORS = (0.1, 0.25, 0.5, 0.75, 1.0)
"""Of the radius of the published tables."""


def digits(images: int) -> tuple[nn.Module, Tensor, Tensor, float]:
    data = rp.dataset("digits")
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(),
        nn.Linear(64, 10),
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(300):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(data.x_train), data.y_train).backward()
        optimizer.step()
    right = (model(data.x_test).argmax(1) == data.y_test).nonzero()[:images, 0]
    return model.eval(), data.x_test[right], data.y_test[right], 0.05


def cases(models: Path | None, images: int) -> dict[str, tuple[nn.Module, Tensor, Tensor, float]]:
    found = {"digits 64-64-64-10": digits(images)}
    for name, label in (("mlp", "MNIST 5x100"), ("mnist", "MNIST ConvSmall")) if models is not None else ():
        assert models is not None
        model, x, y, ball = load(name, models, images)
        found[label] = model, x, y, ball.largest
    return found


def measure(
    certifier: str, model: nn.Module, x: Tensor, y: Tensor, eps: float, repeats: int
) -> tuple[float, float, int, int, int]:
    """The seconds without, the ratio with outward rounding, and verdicts: without, lost, won."""
    modes = [rp.certifier(certifier, outward=outward) for outward in (False, True)]
    seconds: tuple[list[float], list[float]] = ([], [])
    verdicts: list[list[Tensor]] = [[], []]
    for mode in modes:
        mode(model, x[:1], y[:1], rp.Linf(eps=1e-4, clip=(0.0, 1.0)))  # what is done once is not timed
    for repeat in range(repeats):
        for factor in FACTORS:
            ball = rp.Linf(eps=factor * eps, clip=(0.0, 1.0))
            for index, mode in enumerate(modes):
                start = time.process_time()
                certificate = mode(model, x, y, ball)
                seconds[index].append(time.process_time() - start)
                if not repeat:
                    verdicts[index].append(certificate.certified)
    near, outward = (torch.cat(v) for v in verdicts)
    ratios = [b / a for a, b in zip(*seconds, strict=True)]
    return (
        sum(seconds[0]) / repeats, median(ratios), int(near.sum()), int((near & ~outward).sum()),
        int((outward & ~near).sum()),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path)
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--certifier", action="append")
    parser.add_argument("--network", default="", help="networks whose names contain this")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| network | precision | certifier | CPU s without | times with | certified without | lost | won |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for name, (model, x, y, eps) in cases(arguments.models, arguments.images).items():
        for dtype in (torch.float32, torch.float64) if arguments.network in name else ():
            for certifier in arguments.certifier or CERTIFIERS:
                found = measure(certifier, model.to(dtype), x.to(dtype), y, eps, arguments.repeats)
                seconds, ratio, *counts = found
                print(f"| {name} | {str(dtype)[6:]} | {certifier} | {seconds:.2f} | {ratio:.2f} | "
                      f"{' | '.join(map(str, counts))} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
