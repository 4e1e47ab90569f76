"""Fine-tuning on PneumoniaMNIST with poisoned data: certified accuracy against n and m, as in Sosnin et al. 2024.

    python integration/comparisons/poisoning_pneumonia.py --data pneumoniamnist.npz
        [--out out/poisoning_pneumonia] [--seed 0] [--no-attacks]

A small convolutional network is trained on half of the training set. Its last two dense layers are then trained on the
other half, in two epochs of large batches, while a poisoner moves n images by eps or flips m labels of every batch.
Prints, and writes as results.md and curves.svg, certified accuracy on the test set and the lowest that
attacks leave: against n at eps = 0.01 and 0.02, against eps for one n, and against m.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.brackets.poisoning_plots import Curve, curve_figure

BATCH, EPOCHS = 1177, 2
OPTIMIZER = rp.SGD(lr=0.2)
TRAINED = ("7.weight", "7.bias", "9.weight", "9.bias")
NUMBERS, RADII, LABELS = (25, 50, 100, 200, 400), (0.005, 0.01, 0.02, 0.05), (5, 10, 25, 50, 100)
Pair = tuple[Tensor, Tensor]


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=2), nn.ReLU(), nn.Conv2d(8, 16, 5, stride=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 2),
    )  # fmt: skip


def pretrained(x: Tensor, y: Tensor, seed: int) -> nn.Module:
    """The network, trained on these samples; an l1 penalty keeps small what a moved pixel can do to the features."""
    torch.manual_seed(seed)
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(15):
        for some in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            penalty = torch.stack([p.abs().sum() for p in model.parameters()]).sum()
            (F.cross_entropy(model(x[some]), y[some]) + 1e-3 * penalty).backward()
            optimizer.step()
    return model


def prepared(data: Path, seed: int) -> tuple[nn.Module, list[Pair], Pair]:
    """The pretrained network, the batches of the fine-tuning, and the test samples."""
    pneumonia = rp.dataset(str(data))
    order = torch.randperm(len(pneumonia.x_train), generator=torch.Generator().manual_seed(seed))
    first, second = order.chunk(2)
    model = pretrained(pneumonia.x_train[first], pneumonia.y_train[first], seed)
    x, y = pneumonia.x_train[second].double(), pneumonia.y_train[second]
    batches = list(zip(x.split(BATCH), y.split(BATCH), strict=True))
    return model.double(), batches, (pneumonia.x_test.double(), pneumonia.y_test)


class Measured:
    """Certified and attacked accuracy of budgets, one printed row for each."""

    def __init__(self, model: nn.Module, batches: list[Pair], test: Pair, *, attacks: bool) -> None:
        self.model, self.batches, self.test, self.attacks = model, batches, test, attacks
        self.nominal = 0.0
        self.lines = [
            "| poison | certified accuracy | lowest that attacks leave | without poison | s |",
            "|---" * 5 + "|",
        ]
        print("\n".join(self.lines))

    def __call__(self, title: str, budget: rp.PoisoningBudget) -> tuple[float, float]:
        """Certified accuracy, and the lowest that attacks leave."""
        arguments: dict[str, Any] = {
            "loss": "cross_entropy", "optimizer": OPTIMIZER, "epochs": EPOCHS, "parameters": TRAINED,
            "validation": self.test, "progress": False, "stop_when_vacuous": True,
        }  # fmt: skip
        achieved = float("nan")
        if self.attacks:
            chosen = (rp.GradientAlignment(steps=1), rp.LossAscent(steps=2))
            found = rp.poisoning_bracket(self.model, self.batches, budget, attacks=chosen, **arguments)
            if found.crossings:
                raise SystemExit("\n".join(found.crossings))
            assert found.score is not None
            run, achieved = found.run, found.score[0]
        else:
            run = rp.abstract_gradient_training(self.model, self.batches, budget, **arguments)
        last = run.history[-1]
        assert last.certified is not None
        assert last.nominal is not None
        self.nominal = last.nominal
        seconds = sum(record.seconds for record in run.history)
        left = f"{achieved:.3f}" if self.attacks else ""
        self.lines.append(f"| {title} | {last.certified:.3f} | {left} | {last.nominal:.3f} | {seconds:.1f} |")
        print(self.lines[-1], flush=True)
        return last.certified, achieved

    def curve(self, label: str, budgets: dict[float, tuple[str, rp.PoisoningBudget]]) -> Curve:
        """The scores of budgets by their sizes."""
        found = [self(title, budget) for title, budget in budgets.values()]
        return Curve(label=label, sizes=list(budgets), certified=[c for c, _ in found],
                     achieved=[a for _, a in found] if self.attacks else None)  # fmt: skip


def moved(n: int, eps: float) -> tuple[str, rp.PoisoningBudget]:
    return f"n = {n}, eps = {eps:g}", rp.PoisoningBudget(points=n, eps=eps, clip=(0.0, 1.0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("out/poisoning_pneumonia"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-attacks", action="store_true")
    options = parser.parse_args()
    measured = Measured(*prepared(options.data, options.seed), attacks=not options.no_attacks)
    panels = {
        "moved images": [measured.curve(f"eps = {eps:g}", {n: moved(n, eps) for n in NUMBERS}) for eps in (0.01, 0.02)],
        "how far they move": [measured.curve("n = 100", {eps: moved(100, eps) for eps in RADII})],
        "flipped labels": [
            measured.curve("any label", {m: (f"m = {m}", rp.PoisoningBudget(labels=m)) for m in LABELS})
        ],
    }
    sizes = {"moved images": f"n, of {BATCH} in a batch", "how far they move": "eps",
             "flipped labels": f"m, of {BATCH} in a batch"}  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "results.md").write_text("\n".join(measured.lines) + "\n")
    figure = curve_figure(panels, score="accuracy on the test set", nominal=measured.nominal, sizes=sizes)
    for suffix in ("svg", "png"):
        figure.savefig(options.out / f"curves.{suffix}", dpi=130)
    print(f"the table and the picture: {options.out}")


if __name__ == "__main__":
    main()
