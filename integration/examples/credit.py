"""German credit: what an applicant could change, within what limits, and whether the decision withstands it.

    python integration/examples/credit.py [--data ../shared/data/german/german.data] [--samples 100] [--epochs 20]

The data are the UCI set "Statlog (German Credit Data)", german.data: 20 attributes and a class, 1 for good. Categories
are one-hot, numbers are whole numbers in their own units, and the network has their normalisation in front. A ball
holds an applicant who asks for a few months and for some Marks more or less, names another purpose, shows other
savings and has a telephone or none; nobody becomes another person. Prints the bracket of the accuracy for a network
trained as usual and for one trained on the worst cases that an attack finds in that ball.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import robust_plugins as rp

NUMBERS = {1: "months", 4: "amount", 7: "rate", 10: "residence", 12: "age", 15: "credits", 17: "dependants"}
MOVES = {"months": 6.0, "amount": 500.0}
OPEN = {3: "purpose", 5: "savings", 18: "telephone"}
COMPONENTS = ("rp:margin-pgd", "interval:ibp", "interval:crown", "interval:branch-and-bound(timeout=2)")


@dataclass(frozen=True)
class Table:
    """Rows of numbers and one-hot groups, their classes, and the ball around a row."""

    x: Tensor
    y: Tensor
    ball: rp.Box


def read(path: Path) -> Table:
    rows = [line.split() for line in path.read_text().splitlines() if line.strip()]
    columns, radius, whole, groups, immutable = [], [], [], [], []
    for i in range(20):
        values = [row[i] for row in rows]
        first = len(columns)
        if i in NUMBERS:
            columns.append(torch.tensor([float(v) for v in values]))
            radius.append(MOVES.get(NUMBERS[i], 0.0))
            whole.append(first)
            continue
        kinds = sorted(set(values))
        columns += [torch.tensor([float(v == kind) for v in values]) for kind in kinds]
        radius += [0.0] * len(kinds)
        groups.append(list(range(first, first + len(kinds))))
        if i not in OPEN:
            immutable += groups[-1]
    x = torch.stack(columns, 1).double()  # single precision rounds thousands of Marks more coarsely than small margins
    ball = rp.Box(
        eps=1, radius=radius, clip=(x.amin(0), x.amax(0)), one_hot=groups, integers=whole, immutable=immutable
    )
    return Table(x, torch.tensor([int(row[20] == "1") for row in rows]), ball)


def trained(x: Tensor, y: Tensor, *, epochs: int, seed: int, ball: rp.Box | None = None) -> torch.nn.Module:
    torch.manual_seed(seed)
    layers = rp.model("mlp(widths=(16,))", input_shape=x.shape[1:], classes=2)
    model = rp.normalised(layers.double(), x.mean(0), x.std(0).clamp(min=0.1))
    loss = torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3, weight_decay=1e-3)
    attack = rp.attack("rp:margin-pgd(steps=8)")
    for _ in range(epochs):
        for part in torch.randperm(len(x)).split(64):
            inputs = x[part] if ball is None else attack.search(model, x[part], y[part], ball)
            optimizer.zero_grad()
            loss(model(inputs), y[part]).backward()
            optimizer.step()
    return model.eval()


def compared(
    table: Table, *, samples: int, epochs: int, seed: int = 0, components: Sequence[str] = COMPONENTS
) -> dict[str, rp.Comparison]:
    """The brackets of both networks on rows that they were not trained on."""
    train, test = slice(0, 800), slice(1000 - samples, 1000)
    found = {}
    for name, ball in (("as usual", None), ("on worst cases", table.ball)):
        model = trained(table.x[train], table.y[train], epochs=epochs, seed=seed, ball=ball)
        found[name] = rp.compare(model, table.x[test], table.y[test], table.ball, components, seed=seed)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).resolve().parents[3] / "shared" / "data" / "german" / "german.data"
    parser.add_argument("--data", type=Path, default=default)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=20)
    options = parser.parse_args()
    if not options.data.is_file():
        parser.exit(
            2, f"{options.data} is missing: download german.data from the UCI repository and name it by --data\n"
        )
    for name, comparison in compared(read(options.data), samples=options.samples, epochs=options.epochs).items():
        print(f"Trained {name}\n{comparison}\n")


if __name__ == "__main__":
    main()
