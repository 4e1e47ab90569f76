"""What `art:pgd` and our own attacks cost beside a minimal PyTorch loop, ART alone, torchattacks and foolbox.

    python integration/comparisons/attack_speed.py [--batch 256] [--steps 40] [--repeats 9] [--threads 1] [--json]

All take the same number of steps. Every repeat runs each contender once, in an order that rotates, and divides its CPU
time by that of the minimal loop in the same repeat; the table gives the median of these ratios, the smallest and the
largest. Networks and images are random, with fixed seeds. torchattacks and foolbox are optional; both pin what clashes
with current releases, so they are installed with --no-deps, and what they import beside them: see the last line that
the script prints without them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from types import ModuleType

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import robust_plugins as rp

EPS = 0.1
LIMITS = {"art:pgd": 1.15, "rp:margin-pgd": 1.05}
"""What they may cost, in minimal loops."""

INSTALL = "pip install --no-deps torchattacks foolbox && pip install eagerpy gitpython requests"

Contender = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """One contender on one network; times in seconds, ratios to the minimal loop of the same repeat."""

    network: str
    contender: str
    cpu_seconds: float
    cpu_ratio: float
    cpu_ratio_min: float
    cpu_ratio_max: float
    wall_ratio: float


def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {
        "MLP": nn.Sequential(
            nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10)
        ).eval(),
        "CNN": nn.Sequential(
            nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(),
            nn.Flatten(), nn.Linear(32 * 7 * 7, 100), nn.ReLU(), nn.Linear(100, 10),
        ).eval(),
    }  # fmt: skip


def minimal_loop(model: nn.Module, x: Tensor, y: Tensor, *, steps: int, step_size: float) -> Tensor:
    """Projected gradient descent and nothing else: a uniform start, the last iterate."""
    z = (x + torch.empty_like(x).uniform_(-EPS, EPS)).clamp(0, 1)
    for _ in range(steps):
        z.requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(z), y), z)
        with torch.no_grad():
            z = z + step_size * gradient.sign()
            z = torch.minimum(torch.maximum(z, x - EPS), x + EPS).clamp(0, 1)
    return z


def contenders(model: nn.Module, x: Tensor, y: Tensor, *, steps: int) -> dict[str, Contender]:
    """Those that are installed, the minimal loop first."""
    step_size = 2.5 * EPS / steps
    ball = rp.Linf(eps=EPS, clip=(0.0, 1.0))
    ours = {
        "art:pgd": rp.attack("art:pgd", steps=steps, step_size=step_size),
        "rp:pgd": rp.attack("rp:pgd", steps=steps, step_size=step_size),
        "rp:margin-pgd": rp.attack("rp:margin-pgd", steps=steps),
        "rp:apgd": rp.attack("rp:apgd", steps=steps),
    }
    found: dict[str, Contender] = {
        "minimal loop": lambda: minimal_loop(model, x, y, steps=steps, step_size=step_size),
        **{name: partial(attack, model, x, y, ball, seed=0) for name, attack in ours.items()},
        "ART, batch_size=32": stock_art(model, x, y, steps, step_size, batch_size=32),
        f"ART, batch_size={len(x)}": stock_art(model, x, y, steps, step_size, batch_size=len(x)),
    }
    if torchattacks := installed("torchattacks"):
        theirs = torchattacks.PGD(model, eps=EPS, alpha=step_size, steps=steps)
        found["torchattacks"] = lambda: theirs(x, y)
    if foolbox := installed("foolbox"):
        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device)
        linf = foolbox.attacks.LinfPGD(abs_stepsize=step_size, steps=steps)
        found["foolbox"] = lambda: linf(wrapped, x, y, epsilons=EPS)
    return found


def installed(name: str) -> ModuleType | None:
    """The module, or None where it or something that it imports is missing."""
    try:
        return import_module(name)
    except ImportError:
        return None


def stock_art(model: nn.Module, x: Tensor, y: Tensor, steps: int, step_size: float, *, batch_size: int) -> Contender:
    from art.attacks.evasion import ProjectedGradientDescent
    from art.estimators.classification import PyTorchClassifier

    estimator = PyTorchClassifier(
        model, nn.CrossEntropyLoss(), tuple(x.shape[1:]), 10, clip_values=(0.0, 1.0), device_type="cpu"
    )
    attack = ProjectedGradientDescent(
        estimator, eps=EPS, eps_step=step_size, max_iter=steps, num_random_init=1, batch_size=batch_size, verbose=False
    )
    images, labels = x.numpy(), y.numpy()
    return lambda: attack.generate(images, labels)


def measure(network: str, model: nn.Module, *, batch: int, steps: int, repeats: int) -> list[Row]:
    x = torch.rand(batch, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        y = model(x).argmax(1)
    found = contenders(model, x, y, steps=steps)
    names = list(found)
    cpu: dict[str, list[float]] = {name: [] for name in names}
    wall: dict[str, list[float]] = {name: [] for name in names}
    for run in found.values():
        run()
    for repeat in range(repeats):
        shift = repeat % len(names)
        for name in names[shift:] + names[:shift]:
            clock, process = time.perf_counter(), time.process_time()
            found[name]()
            cpu[name].append(time.process_time() - process)
            wall[name].append(time.perf_counter() - clock)

    def ratios(times: dict[str, list[float]], name: str) -> list[float]:
        return [mine / base for mine, base in zip(times[name], times[names[0]], strict=True)]

    return [
        Row(
            network,
            name,
            statistics.median(cpu[name]),
            statistics.median(ratios(cpu, name)),
            min(ratios(cpu, name)),
            max(ratios(cpu, name)),
            statistics.median(ratios(wall, name)),
        )
        for name in names
    ]


def printed(rows: list[Row], title: str) -> Table:
    table = Table(title=title)
    for heading in ("network", "contender"):
        table.add_column(heading)
    for heading in ("CPU s", "CPU ratio", "min", "max", "wall ratio"):
        table.add_column(heading, justify="right")
    for i, row in enumerate(rows):
        figures = (row.cpu_ratio, row.cpu_ratio_min, row.cpu_ratio_max, row.wall_ratio)
        table.add_row(row.network, row.contender, f"{row.cpu_seconds:.3f}", *(f"{figure:.2f}" for figure in figures))
        if i + 1 < len(rows) and rows[i + 1].network != row.network:
            table.add_section()
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=256, help="images in the batch")
    parser.add_argument("--steps", type=int, default=40, help="gradient steps of each contender")
    parser.add_argument("--repeats", type=int, default=9, help="interleaved runs of each contender")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = [
        row
        for name, model in networks().items()
        for row in measure(name, model, batch=arguments.batch, steps=arguments.steps, repeats=arguments.repeats)
    ]
    missing = [name for name in ("torchattacks", "foolbox") if not installed(name)]
    if arguments.json:
        print(json.dumps({**vars(arguments), "missing": missing, "rows": [asdict(row) for row in rows]}, indent=2))
        return
    console = Console()
    console.print(
        printed(rows, f"PGD, {arguments.steps} steps, batch {arguments.batch}, {arguments.threads} thread(s)")
    )
    for name, limit in LIMITS.items():
        console.print(f"{name} is meant to stay within {limit} times the minimal loop, the best iterate included.")
    if missing:
        console.print(f"Not installed: {', '.join(missing)}. To include them: {INSTALL}")


if __name__ == "__main__":
    main()
