"""The lecture's pictures of poisoned training on half-moons: certified regions, and parameters in their boxes.

    python integration/lecture/poisoning_half_moons.py [--out out/poisoning_half_moons] [--domain box] [--seed 0]
        [--reference halfmoons.npz] [--no-attacks]

3000 points with features [x, x^2, x^3], a network 6-128-2, one batch, 4 updates at lr 2 / (1 + 0.6 t). The poisoner
moves n points by eps in every feature. Prints certified accuracy, and the lowest that attacks leave, for n = 50, 100,
200, 300 at eps = 0.01 and for n = 10 at eps = 0.05 to 0.2. Writes regions.svg (colours: the class is certified; grey:
poison may change it), trajectories.svg and results.md. `--reference` takes initial parameters and data from an archive
with p0 to p3, Xtr, Ytr, Xte and Yte; otherwise they are drawn from the seed.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.brackets.poisoning_plots import region_figure, trajectory_figure
from robust_plugins.poisoning.concrete.batches import PoisonedBatch
from robust_plugins.poisoning.concrete.trainings import Trainings

NUMBERS = (50, 100, 200, 300)
RADII = (0.05, 0.1, 0.15, 0.2)
EPOCHS = 4
OPTIMIZER = rp.SGD(lr=2.0, decay=0.6, min_lr=0.001)
SMALL_STEPS, STEPS = rp.SGD(lr=0.5), 7
"""Of the picture of trajectories, where steps of size 2 would jump to and fro."""


@dataclass(frozen=True, kw_only=True)
class Moons:
    """Data of the three powers of the coordinates, and a network that is about to be trained."""

    model: nn.Module
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def powers(x: Tensor) -> Tensor:
    return torch.cat([x, x**2, x**3], 1)


def drawn(seed: int) -> Moons:
    from sklearn.datasets import make_moons

    x, y = (torch.tensor(a) for a in make_moons(3500, noise=0.1, random_state=seed))
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 128), nn.ReLU(), nn.Linear(128, 2)).double()
    return Moons(model=model, train=(powers(x[:3000]), y[:3000]), test=(powers(x[3000:]), y[3000:]))


def stored(path: Path) -> Moons:
    with np.load(path) as archive:
        found = {name: torch.tensor(archive[name]) for name in ("p0", "p1", "p2", "p3", "Xtr", "Ytr", "Xte", "Yte")}
    model = nn.Sequential(nn.Linear(6, 128), nn.ReLU(), nn.Linear(128, 2)).double()
    with torch.no_grad():
        for p, name in zip(model.parameters(), ("p0", "p1", "p2", "p3"), strict=True):
            p.copy_(found[name])
    return Moons(model=model, train=(found["Xtr"], found["Ytr"]), test=(found["Xte"], found["Yte"]))


def budgets() -> dict[str, rp.PoisoningBudget]:
    return {f"n = {n}, eps = 0.01": rp.PoisoningBudget(points=n, eps=0.01) for n in NUMBERS} | {
        f"n = 10, eps = {eps:g}": rp.PoisoningBudget(points=10, eps=eps) for eps in RADII
    }


def bracket(
    moons: Moons, budget: rp.PoisoningBudget, domain: Literal["box", "zonotope"], attacks: bool
) -> tuple[rp.PoisoningRun, float, float | None]:
    """The run, the certified accuracy, and the lowest that attacks leave."""
    arguments = {"loss": "cross_entropy", "optimizer": OPTIMIZER, "epochs": EPOCHS, "domain": domain, "progress": False}
    if not attacks:
        run = rp.abstract_gradient_training(moons.model, [moons.train], budget, **arguments)
        return run, run.certified_accuracy(*moons.test), None
    chosen = (rp.RandomPoisoning(), rp.GradientAlignment(), rp.LossAscent())
    found = rp.poisoning_bracket(moons.model, [moons.train], budget, validation=moons.test, attacks=chosen, **arguments)
    assert found.score is not None
    if found.crossings:
        raise SystemExit("\n".join(found.crossings))
    return found.run, found.score[1], found.score[0]


def trajectories(
    moons: Moons, budget: rp.PoisoningBudget, domain: Literal["box", "zonotope"], coordinates: Iterable[int]
) -> tuple[list[rp.PoisoningRun], Tensor, list[Tensor]]:
    """The boxes after every update, the clean parameters and those of attacked trainings, from the start on."""
    arguments = {"loss": "cross_entropy", "optimizer": SMALL_STEPS}
    with tempfile.TemporaryDirectory() as folder:  # each run goes on from the one before
        boxes = [
            rp.abstract_gradient_training(
                moons.model, [moons.train], budget, epochs=t + 1, domain=domain, checkpoint=folder, progress=False,
                **arguments,
            )
            for t in range(STEPS)
        ]  # fmt: skip
    attacks = (rp.CoordinatePoisoning(coordinates=tuple(coordinates)), rp.RandomPoisoning(count=4))
    paths = []
    for attack in (rp.RandomPoisoning(count=1), *attacks):
        path: list[Tensor] = []

        def remember(trainings: Trainings, batch: PoisonedBatch, path: list[Tensor] = path) -> None:
            path.append(_flat(trainings.parameters))

        clean = attack == rp.RandomPoisoning(count=1)
        found = rp.poisoned_trainings(
            attack, moons.model, [moons.train], rp.PoisoningBudget() if clean else budget, epochs=STEPS,
            observe=remember, **arguments,
        )  # fmt: skip
        paths.append(torch.stack([*path, _flat(found.parameters)]))
    return boxes, paths[0][:, 0], paths[1:]


def pairs(moons: Moons) -> tuple[tuple[int, int], ...]:
    """A bias and a weight of the second layer, a neuron's weights after and before it, and two of its weights.

    The neuron is the one whose first weight training moves most.
    """
    clean = rp.poisoned_trainings(
        rp.RandomPoisoning(count=1), moons.model, [moons.train], rp.PoisoningBudget(), loss="cross_entropy",
        optimizer=SMALL_STEPS, epochs=STEPS,
    )  # fmt: skip
    j = int((clean.parameters["0.weight"][0] - moons.model.get_parameter("0.weight")).abs()[:, 0].argmax())
    return (1152, 896 + j), (896 + j, 6 * j + 1), (6 * j, 6 * j + 1)


def _flat(parameters: dict[str, Tensor]) -> Tensor:
    return torch.cat([p.detach().flatten(1) for p in parameters.values()], 1).clone()


def name(index: int) -> str:
    """The entry of the network 6-128-2 that has this index."""
    if index < 768:
        return f"W1[{index // 6}, {index % 6}]"
    if index < 896:
        return f"b1[{index - 768}]"
    return f"W2[{(index - 896) // 128}, {(index - 896) % 128}]" if index < 1152 else f"b2[{index - 1152}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/poisoning_half_moons"))
    parser.add_argument("--domain", choices=("box", "zonotope"), default="box")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reference", type=Path)
    parser.add_argument("--no-attacks", action="store_true")
    options = parser.parse_args()
    moons = drawn(options.seed) if options.reference is None else stored(options.reference)
    runs, scores = {}, {}
    lines = [
        "| budget | certified accuracy | lowest accuracy that attacks leave | without poison |",
        "|---|---|---|---|",
    ]
    for title, budget in budgets().items():
        run, certified, achieved = bracket(moons, budget, options.domain, not options.no_attacks)
        with torch.no_grad():
            nominal = (run.nominal(moons.test[0]).argmax(1) == moons.test[1]).double().mean().item()
        runs[title], scores[title] = run, f"certified {certified:.3f}"
        lines.append(f"| {title} | {certified:.3f} | {'' if achieved is None else f'{achieved:.3f}'} | {nominal:.3f} |")
        print(lines[-1], flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "results.md").write_text("\n".join(lines) + "\n")
    x, y = moons.train
    edge = (
        x[:, 0].min().item() - 0.3,
        x[:, 0].max().item() + 0.3,
        x[:, 1].min().item() - 0.3,
        x[:, 1].max().item() + 0.3,
    )
    figure = region_figure(runs, powers, (x[::3, :2], y[::3]), limits=edge, scores=scores)
    _save(figure, options.out / "regions")
    chosen = pairs(moons)
    shown = sorted({index for pair in chosen for index in pair})
    boxes, clean, poisoned = trajectories(moons, rp.PoisoningBudget(points=200, eps=0.01), options.domain, shown)
    _save(trajectory_figure(boxes, clean, poisoned, chosen, names=name), options.out / "trajectories")
    print(f"the pictures: {options.out}")


def _save(figure: object, path: Path) -> None:
    for suffix in (".svg", ".png"):
        figure.savefig(path.with_suffix(suffix), dpi=130)  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
