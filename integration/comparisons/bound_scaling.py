"""How bounds by linear relaxation grow with the network, beside auto_LiRPA's on the same images.

    python integration/comparisons/bound_scaling.py [--cases cnn7-8 mnist] [--images 1 4] [--models DIR]

Each case runs in a process of its own, with one thread: CPU seconds for all images together, and the peak of the
memory above that before the call, in which a small network was bounded already, so that imports do not count. Cases of
less than ten seconds are run three times, and the quickest is shown. CNN7 is that of CTBench with 3x3 kernels,
ResNet-18 has a quarter of the usual width; both have random weights and the batch-norm statistics of random images.
The published ConvSmall networks are read from the folder `--models`.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn

import robust_plugins as rp

CASES = ("cnn7-8", "cnn7-64", "resnet18-4", "resnet18-16", "mnist", "cifar")
PUBLISHED = {"mnist": ("mnist_conv_small_nat.pth", 1, 28, 800), "cifar": ("cifar_conv_small_pgd.pth", 3, 32, 1152)}
EPS = {"cnn7-8": 0.001, "cnn7-64": 0.001, "resnet18-4": 0.0005, "resnet18-16": 0.0005, "mnist": 0.12, "cifar": 2 / 255}


class Block(nn.Module):
    """A block of ResNet-18."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after))
        self.second = nn.Sequential(nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after))
        self.around = nn.Sequential()
        if stride > 1 or before != after:
            self.around = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(torch.relu(self.first(x))) + self.around(x))


def cnn7(width: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    plan = (
        (1, width, 1),
        (width, width, 1),
        (width, 2 * width, 2),
        (2 * width, 2 * width, 1),
        (2 * width, 2 * width, 1),
    )
    for before, after, stride in plan:
        layers += [nn.Conv2d(before, after, 3, stride, 1), nn.BatchNorm2d(after), nn.ReLU()]
    layers += [nn.Flatten(), nn.Linear(2 * width * 14 * 14, 8 * width), nn.BatchNorm1d(8 * width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(8 * width, 10))


def resnet18(width: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    before = width
    for stage in range(4):
        after = width * 2**stage
        layers += [Block(before, after, 2 if stage else 1), Block(after, after, 1)]
        before = after
    return nn.Sequential(*layers, nn.AvgPool2d(4), nn.Flatten(), nn.Linear(before, 10))


def subject(case: str, models: Path) -> tuple[nn.Module, Tensor]:
    """A network in evaluation mode and one image."""
    torch.manual_seed(0)
    if case in PUBLISHED:
        file, channels, size, features = PUBLISHED[case]
        state = torch.load(models / file, weights_only=True)["state_dict"]
        model = nn.Sequential(
            nn.Conv2d(channels, 16, 4, 2), nn.ReLU(), nn.Conv2d(16, 32, 4, 2), nn.ReLU(), nn.Flatten(),
            nn.Linear(features, 100), nn.ReLU(), nn.Linear(100, 10),
        )  # fmt: skip
        model.load_state_dict(state[0] if isinstance(state, list) else state)
        return model.eval(), torch.rand(1, channels, size, size)
    name, width = case.split("-")
    model, shape = (cnn7(int(width)), (1, 28, 28)) if name == "cnn7" else (resnet18(int(width)), (3, 32, 32))
    x = torch.rand(1, *shape)
    with torch.no_grad():
        for _ in range(20):
            model(x + 0.1 * torch.randn(8, *shape))
    return model.eval(), x


def bound(method: str, model: nn.Module, x: Tensor, ball: rp.Ball) -> str:
    """The widest component of a gradient, or the least margin."""
    y = model(x).argmax(1)
    if method == "interval:relaxed":
        found = rp.explanation_certifier(method).bounds(model, x, y, ball, of="logit").width.max()
        return f"widest {float(found):.4g}"
    found = rp.certifier(method).lower_bounds(model, x, ball, rp.margin_spec(y, 10)).min()
    return f"least margin {float(found):.4g}"


def measure(case: str, method: str, images: int, models: Path) -> str:
    """One line of the table."""
    torch.set_num_threads(1)
    model, x = subject(case, models)
    x = torch.cat([x, torch.rand(images - 1, *x.shape[1:])])
    ball, seconds = rp.Linf(eps=EPS[case], clip=(0, 1)), []
    small = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 10)).eval()
    with torch.no_grad():
        bound(method, small, torch.rand(2, 1, 4, 4), ball)
        before = peak()
        while not seconds or (len(seconds) < 3 and sum(seconds) < 10):
            start = time.process_time()
            said = bound(method, model, x, ball)
            seconds.append(time.process_time() - start)
    return f"| {case} | {EPS[case]:.4g} | {images} | {method} | {min(seconds):.2f} | {peak() - before:.2f} | {said} |"


def peak() -> float:
    """The largest memory of the process so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--methods", nargs="+", default=["interval:crown", "lirpa:crown", "interval:relaxed"])
    parser.add_argument("--images", nargs="+", type=int, default=[1], help="how many are bounded together")
    parser.add_argument("--models", type=Path, default=Path(), help="where the published networks are")
    parser.add_argument("--one", action="store_true", help="measure the only case and method here")
    args = parser.parse_args()
    if args.one:
        print(measure(args.cases[0], args.methods[0], args.images[0], args.models))
        return
    print("| network | eps | images | method | CPU seconds | GiB | bound |\n|---|---|---|---|---|---|---|")
    for case, method, images in product(args.cases, args.methods, args.images):
        command = [sys.executable, __file__, "--one", "--cases", case, "--methods", method, "--images", str(images)]
        run = subprocess.run([*command, "--models", str(args.models)], capture_output=True, text=True, check=False)
        said = run.stdout.strip().splitlines() or [f"| {case} | {EPS[case]:.4g} | {images} | {method} | fails | | |"]
        print(said[-1], flush=True)
        if run.returncode:
            print((run.stderr.strip().splitlines() or [f"ended by signal {-run.returncode}"])[-1], file=sys.stderr)


if __name__ == "__main__":
    main()
