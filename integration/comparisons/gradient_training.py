"""Training for robust explanations against plain training: what it costs, and what can be proved afterwards.

    python integration/comparisons/gradient_training.py digits [--seeds 0 1 2] [--epochs 100] [--json]
    python integration/comparisons/gradient_training.py pneumonia --data DATA [--seeds 0] [--epochs 10] [--json]

`digits`: a network with two hidden layers of 64 ReLUs, eps .05; plain training, the two penalties that prove nothing,
and the width of the proved bounds with alpha 1. Each seed is a split and an initialisation. Printed: test accuracy, and
over the test samples the mean deviation of the explanation that an attack reaches and that is proved, the share whose
most important feature withstands the attack, and the share for which that is proved; and the CPU time of training.

`pneumonia`: PneumoniaMNIST, a network with two hidden layers of 128, eps = gamma = .01, alpha .5. DATA is its .npz
archive, or a folder that holds it. Printed: accuracy, and the share of test samples whose explanation moves by at most
THRESHOLD (relative): under attacks on the input, proved for the input, under attacks on the weights, proved for the
weights. That is the bar chart of the paper (Wicker et al. 2023, "Robust explanation constraints for neural networks")
with one criterion for all bars.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.losses import HessianPenalty, L2Penalty, Ramp

THRESHOLD = 0.25
Penalty = Callable[[nn.Module, Tensor, Tensor, float], Tensor]


def trained(
    data: rp.Dataset, widths: tuple[int, ...], penalty: Penalty | None, *, epochs: int, lr: float, batch: int, seed: int
) -> tuple[nn.Module, float]:
    """The network, and the CPU seconds of its training: Adam, a learning rate that rises and falls once."""
    torch.manual_seed(seed)
    model = rp.model("mlp", input_shape=data.input_shape, classes=data.classes, widths=widths)
    optimizer = torch.optim.Adam(model.parameters())
    count = len(data.x_train)
    steps = -(-count // batch)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * steps)
    start = time.process_time()
    for epoch in range(epochs):
        for step, part in enumerate(torch.randperm(count).split(batch)):
            x, y = data.x_train[part], data.y_train[part]
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            if penalty is not None:
                loss = loss + penalty(model, x, y, epoch + step / steps)
            loss.backward()
            optimizer.step()
            rate.step()
    return model.eval(), time.process_time() - start


def accuracy(model: nn.Module, data: rp.Dataset) -> float:
    with torch.no_grad():
        return (model(data.x_test).argmax(1) == data.y_test).double().mean().item()


def digits(
    seed: int,
    *,
    epochs: int,
    methods: tuple[str, ...] = ("plain", "L2", "Hessian", "width"),
    attack: str = "gradient:corner-pgd",
) -> dict:
    data = rp.dataset("digits", seed=seed)
    ball = rp.Linf(eps=0.05, clip=data.clip)
    width = rp.GradientCertLoss(alpha=1.0, ball=ball, schedule=Ramp(start=0, end=epochs, shape="linear"))
    l2, hessian = L2Penalty(alpha=0.01), HessianPenalty(alpha=0.001)
    penalties: dict[str, Penalty | None] = {
        "plain": None,
        "L2": lambda m, x, y, e: l2(m, x, y),
        "Hessian": lambda m, x, y, e: hessian(m, x, y),
        "width": lambda m, x, y, e: width(m, x, y, epoch=e),
    }
    rows = {}
    for name in methods:
        model, seconds = trained(data, (64, 64), penalties[name], epochs=epochs, lr=1e-2, batch=100, seed=seed)
        y = model(data.x_test).argmax(1)
        table = rp.compare_explanations(model, data.x_test, y, ball, [attack, "interval:relaxed"], k=1, seed=seed)
        _hold(table)
        (low, high), (withstood, proved) = table.deviation, table.share("keeps_top_1")
        rows[name] = {
            "accuracy": accuracy(model, data),
            "deviation attacked": low.mean().item(),
            "deviation proved": high.mean().item(),
            "top 1 withstands": withstood,
            "top 1 proved": proved,
            "seconds": seconds,
        }
    return rows


def pneumonia(seed: int, *, data: rp.Dataset, epochs: int, samples: int = 100) -> dict:
    ball, still = rp.Linf(eps=0.01, clip=data.clip), rp.Linf(eps=0.0, clip=data.clip)
    gamma = 0.01
    width = rp.GradientCertLoss(
        alpha=0.5, ball=ball, radius=gamma, schedule=Ramp(start=0, end=0.75 * epochs, shape="linear")
    )
    rows = {}
    for name, penalty in (("plain", None), ("width", lambda m, x, y, e: width(m, x, y, epoch=e))):
        model, seconds = trained(data, (128, 128), penalty, epochs=epochs, lr=1e-3, batch=64, seed=seed)
        x = data.x_test[:samples]
        y = model(x).argmax(1)
        attack = "gradient:corner-pgd(corners=20, steps=10, batch_size=50)"
        row = {"accuracy": accuracy(model, data)}
        for what, around, radius in (("input", ball, 0.0), ("weights", still, gamma)):
            table = rp.compare_explanations(
                model, x, y, around, [attack, "interval:ibp", "interval:relaxed"], k=1, radius=radius, seed=seed
            )
            _hold(table)
            low, high = table.deviation
            row[f"{what}: withstands"] = (low <= THRESHOLD).double().mean().item()
            row[f"{what}: proved"] = (high <= THRESHOLD).double().mean().item()
            by_ibp = table["interval:ibp"].deviation
            row[f"{what}: proved by ibp"] = (by_ibp <= THRESHOLD).double().mean().item()
        rows[name] = row | {"seconds": seconds}
    return rows


def archive(path: Path) -> rp.Dataset:
    """The .npz archive at `path`, or the only one in that folder."""
    found = sorted(path.glob("*.npz")) if path.is_dir() else [path]
    if len(found) != 1:
        raise SystemExit(f"{path} holds {len(found)} .npz archives; name the one to use")
    return rp.dataset(str(found[0]))


def _hold(table: rp.ExplanationComparison) -> None:
    if table.crossings:
        raise SystemExit(f"an attack contradicts a certificate: {table.crossings[0]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("digits", "pneumonia"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if (arguments.task == "pneumonia") != (arguments.data is not None):
        parser.error("--data goes with pneumonia, and is needed there")
    results = []
    for seed in arguments.seeds:
        if arguments.task == "digits":
            rows = digits(seed, epochs=arguments.epochs or 100)
        else:
            rows = pneumonia(seed, data=archive(arguments.data), epochs=arguments.epochs or 10)
        results.append(rows)
        if not arguments.json:
            print(f"seed {seed}")
            for name, figures in rows.items():
                print(f"  {name:8}" + "  ".join(f"{key} {value:.3f}" for key, value in figures.items()), flush=True)
    if arguments.json:
        print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
