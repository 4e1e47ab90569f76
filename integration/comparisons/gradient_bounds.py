"""How much bounds on explanations cost: milliseconds a sample, and as a ratio to one forward and backward pass.

    python integration/comparisons/gradient_bounds.py [--batch 32] [--repeats 30] [--threads 1] [--json]
    python integration/comparisons/gradient_bounds.py --growth [--batches 1 2 4 8] [--threads 1] [--json]

Every certifier of the engine, for the logit's gradient, on a network of 64-64-64-10, with ReLU and with tanh, and on a
small CNN. CPU time, each round against a plain pass of the same batch in the same round; the medians are printed. With
`--growth` instead: the time a sample and the peak memory for growing batches, on 784-1024-1024-10 and on a CNN with
98,816 units, which takes minutes a sample.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

import robust_plugins as rp

CERTIFIERS = ("interval:ibp", "interval:crown", "interval:relaxed", "interval:relaxed(effort=3)")
BALL = rp.Linf(eps=0.01, clip=(0.0, 1.0))


def networks() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    torch.manual_seed(0)

    def mlp(activation: type[nn.Module]) -> nn.Module:
        return nn.Sequential(
            nn.Linear(64, 64), activation(), nn.Linear(64, 64), activation(), nn.Linear(64, 10)
        ).requires_grad_(False)

    cnn = nn.Sequential(
        nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10)
    ).requires_grad_(False)
    return {
        "64-64-64-10 ReLU": (mlp(nn.ReLU), (64,)),
        "64-64-64-10 tanh": (mlp(nn.Tanh), (64,)),
        "CNN 8-16 on 8x8": (cnn, (1, 8, 8)),
    }


def large() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    torch.manual_seed(0)
    mlp = nn.Sequential(
        nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10)
    ).requires_grad_(False)
    cnn = nn.Sequential(
        nn.Conv2d(3, 48, 3, 1, 1), nn.ReLU(), nn.Conv2d(48, 48, 3, 1, 1), nn.ReLU(),
        nn.Conv2d(48, 8, 4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10),
    ).requires_grad_(False)  # fmt: skip
    return {"784-1024-1024-10": (mlp, (784,)), "CNN, 98,816 units": (cnn, (3, 32, 32))}


def plain(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    z = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(z).gather(1, y.unsqueeze(1)).sum(), z)
    return gradient


def timed(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def compare(model: nn.Module, shape: tuple[int, ...], batch: int, repeats: int) -> dict[str, dict[str, float]]:
    torch.manual_seed(1)
    x, y = torch.rand(batch, *shape), torch.randint(0, 10, (batch,))
    components = {name: rp.explanation_certifier(name) for name in CERTIFIERS}
    runs: dict[str, Callable[[], object]] = {"plain": lambda: plain(model, x, y)}
    for name, certifier in components.items():
        runs[name] = lambda certifier=certifier: certifier.bounds(model, x, y, BALL, of="logit")
    with torch.no_grad():
        bounds = {name: certifier.bounds(model, x, y, BALL, of="logit") for name, certifier in components.items()}
        with torch.enable_grad():
            rows = [{name: timed(run) for name, run in runs.items()} for _ in range(repeats)]
    widest = bounds["interval:ibp"].width.mean()
    return {
        name: {
            "ms a sample": 1e3 * statistics.median(row[name] for row in rows) / batch,
            "times a plain pass": statistics.median(row[name] / row["plain"] for row in rows),
            "width, of ibp's": (bounds[name].width.mean() / widest).item() if name in bounds else 0.0,
        }
        for name in runs
    }


def growth(model: nn.Module, shape: tuple[int, ...], name: str, batches: list[int]) -> dict[str, dict[str, float]]:
    certifier, found = rp.explanation_certifier(name), {}
    for batch in batches:
        x, y = torch.rand(batch, *shape), torch.zeros(batch, dtype=torch.long)
        with torch.no_grad():
            seconds = timed(lambda x=x, y=y: certifier.bounds(model, x, y, BALL, of="logit"))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        found[f"{name}, batch {batch}"] = {"ms a sample": 1e3 * seconds / batch, "peak GiB of the process": peak}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results = {}
    for title, (model, shape) in (large() if arguments.growth else networks()).items():
        if arguments.growth:
            rows = {}
            for name in ("interval:ibp", "interval:relaxed"):
                growth(model, shape, name, [2])  # the first call traces the network and measures its layers
                rows |= growth(model, shape, name, arguments.batches)
        else:
            rows = compare(model, shape, arguments.batch, arguments.repeats)
        results[title] = rows
        if not arguments.json:
            print(title)
            for name, figures in rows.items():
                print(f"  {name:28}" + "  ".join(f"{key} {value:.3f}" for key, value in figures.items()), flush=True)
    if arguments.json:
        print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
