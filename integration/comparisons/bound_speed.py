"""How much the adapter to auto_LiRPA costs: IBP through it, a direct `compute_bounds`, and a loop in plain torch.

    python integration/comparisons/bound_speed.py [--repeats 60] [--batch 256] [--threads 1] [--json]

The three are timed in turn, in CPU time, and compared as ratios within each repeat; the median is printed. All
bound the margins `z_y - z_j` merged into the last layer, on a bounded module that is built already.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.adapters.lirpa import compat

EPS = 0.1


def models() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    torch.manual_seed(0)
    mlp = nn.Sequential(
        nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10)
    )
    cnn = nn.Sequential(
        nn.Conv2d(1, 16, 4, 2), nn.ReLU(), nn.Conv2d(16, 32, 4, 2), nn.ReLU(), nn.Flatten(),
        nn.Linear(800, 100), nn.ReLU(), nn.Linear(100, 10),
    )  # fmt: skip
    return {"MLP 784-256-128-10": (mlp.eval(), (1, 28, 28)), "CNN 16-32-100": (cnn.eval(), (1, 28, 28))}


def plain_torch(model: nn.Module, x: Tensor, spec: Tensor) -> tuple[Tensor, Tensor]:
    """Interval bound propagation written by hand for the two models above."""
    low, up = (x - EPS).clamp(0, 1), (x + EPS).clamp(0, 1)
    layers = list(model.children())
    for layer in layers[:-1]:
        if isinstance(layer, nn.Linear | nn.Conv2d):
            center, radius = (up + low) / 2, (up - low) / 2
            if isinstance(layer, nn.Linear):
                center, radius = layer(center), F.linear(radius, layer.weight.abs())
            else:
                center, radius = layer(center), F.conv2d(radius, layer.weight.abs(), None, layer.stride, layer.padding)
            low, up = center - radius, center + radius
        else:
            low, up = layer(low), layer(up)
    last = layers[-1]
    weight, bias = spec @ last.weight, spec @ last.bias
    center, radius = ((up + low) / 2).unsqueeze(-1), ((up - low) / 2).unsqueeze(-1)
    center, radius = (weight @ center).squeeze(-1) + bias, (weight.abs() @ radius).squeeze(-1)
    return center - radius, center + radius


def direct(model: nn.Module, x: Tensor, spec: Tensor) -> Callable[[], tuple[Tensor, Tensor]]:
    """auto_LiRPA used by hand, on a module built once."""
    lirpa = compat.load()
    with lirpa.tracing([]):
        module = lirpa.module_class(model, x[:1])
    module.eval()

    def run() -> tuple[Tensor, Tensor]:
        low, up = (x - EPS).clamp(0, 1), (x + EPS).clamp(0, 1)
        ptb = lirpa.perturbation_class(norm=math.inf, eps=EPS, x_L=low, x_U=up)
        lower, upper = module.compute_bounds(x=(lirpa.tensor_class(x, ptb),), C=spec, method="IBP")
        return lower, upper

    return run


def direct_crown(model: nn.Module, x: Tensor, spec: Tensor) -> Callable[[], tuple[Tensor, Tensor]]:
    """CROWN by auto_LiRPA used by hand, on a module built once."""
    lirpa = compat.load()
    with lirpa.tracing([]):
        module = lirpa.module_class(model, x[:1])
    module.eval()

    def run() -> tuple[Tensor, Tensor]:
        low, up = (x - EPS).clamp(0, 1), (x + EPS).clamp(0, 1)
        ptb = lirpa.perturbation_class(norm=math.inf, eps=EPS, x_L=low, x_U=up)
        lower, upper = module.compute_bounds(x=(lirpa.tensor_class(x, ptb),), C=spec, method="CROWN")
        return lower, upper

    return run


def timed(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def contenders(model: nn.Module, shape: tuple[int, ...], batch: int) -> dict[str, Callable[[], object]]:
    """The three, which compute the same bounds."""
    torch.manual_seed(1)
    x, y = torch.rand(batch, *shape), torch.randint(0, 10, (batch,))
    spec, ball, ibp = rp.margin_spec(y, 10), rp.Linf(eps=EPS, clip=(0.0, 1.0)), rp.certifier("lirpa:ibp")
    by_hand = direct(model, x, spec)
    model.requires_grad_(True)
    runs: dict[str, Callable[[], object]] = {
        "adapter": lambda: ibp.bounds(model, x, ball, spec),
        "direct": by_hand,
        "torch": lambda: plain_torch(model, x, spec),
    }
    lower, expected = ibp.bounds(model, x, ball, spec).lower, plain_torch(model, x, spec)[0]
    if not torch.allclose(lower, expected, atol=1e-3) or not torch.allclose(by_hand()[0], expected, atol=1e-3):
        sys.exit("the three do not compute the same bounds")
    return runs


def compare(model: nn.Module, shape: tuple[int, ...], batch: int, repeats: int, *, gradients: bool) -> dict[str, float]:
    runs = contenders(model, shape, batch)
    with torch.set_grad_enabled(gradients):
        for function in runs.values():
            function()
        rows = []
        for repeat in range(repeats):
            names = list(runs)[repeat % 3 :] + list(runs)[: repeat % 3]
            rows.append({name: timed(runs[name]) for name in names})
    median = {name: statistics.median(row[name] for row in rows) for name in runs}
    return {
        "adapter / direct": statistics.median(row["adapter"] / row["direct"] for row in rows),
        "adapter / torch": statistics.median(row["adapter"] / row["torch"] for row in rows),
        "direct / torch": statistics.median(row["direct"] / row["torch"] for row in rows),
        **{f"{name} ms": 1e3 * seconds for name, seconds in median.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results = {
        f"{name}, {'with' if gradients else 'no'} gradients": compare(
            model, shape, arguments.batch, arguments.repeats, gradients=gradients
        )
        for name, (model, shape) in models().items()
        for gradients in (False, True)
    }
    if arguments.json:
        print(json.dumps(results, indent=2))
        return
    for name, figures in results.items():
        print(f"{name}, batch {arguments.batch}: " + ", ".join(f"{k} {v:.2f}" for k, v in figures.items()))


if __name__ == "__main__":
    main()
