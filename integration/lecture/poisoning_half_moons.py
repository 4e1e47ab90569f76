"""The lecture's pictures of poisoned training on half-moons: certified regions, and parameters in their boxes.

    python -m integration.lecture.poisoning_half_moons [--domain box] [--attacks 0] [--reference halfmoons.npz]
        [--seed 0] [--out DIR]

3000 points with features [x, x^2, x^3], a network 6-128-2, one batch, 4 updates at lr 2 / (1 + 0.6 t). The poisoner
moves n points by eps in every feature. The table has the certified accuracy, and the lowest that attacks leave, for n =
50, 100, 200, 300 at eps = 0.01 and for n = 10 at eps = 0.05 to 0.2. Drawn are the regions (colours: the class is
certified; grey: poison may change it), and parameters in their boxes. `--reference` takes initial parameters and data
from an archive with p0 to p3, Xtr, Ytr, Xte and Yte; otherwise they are drawn from the seed. `--domain zonotope` is
tighter and takes longer.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

import robust_plugins as rp
from integration.lecture.parts import SEED, Option, Part, Table, picture, run
from robust_plugins.brackets.poisoning_plots import region_figure, trajectory_figure
from robust_plugins.poisoning.concrete.batches import PoisonedBatch
from robust_plugins.poisoning.concrete.trainings import Trainings

OPTIONS = (
    SEED,
    Option(name="domain", default="box", choices=("box", "zonotope"), help="what is trained on"),
    Option(name="attacks", default=1, quick=0, choices=(0, 1), help="whether trainings are attacked"),
    Option(name="reference", default=None, kind=Path, help="an archive of data and initial parameters"),
    Option(name="points", default=3000, quick=100, help="how many points are trained on"),
)  # fmt: skip
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


def budgets(share: float = 1.0) -> dict[str, rp.PoisoningBudget]:
    """What the poisoner may do; `share` of the points where there are fewer of them."""
    cases = [(n, 0.01) for n in NUMBERS] + [(10, eps) for eps in RADII]
    scaled = [(max(1, round(share * n)), eps) for n, eps in cases]
    return {f"n = {n}, eps = {eps:g}": rp.PoisoningBudget(points=n, eps=eps) for n, eps in scaled}


def bracket(
    moons: Moons, budget: rp.PoisoningBudget, domain: Literal["box", "zonotope"], attacks: bool
) -> tuple[rp.PoisoningRun, float, float | None]:
    """The run, the certified accuracy, and the lowest that attacks leave."""
    arguments: dict[str, Any] = {
        "loss": "cross_entropy",
        "optimizer": OPTIMIZER,
        "epochs": EPOCHS,
        "domain": domain,
        "progress": False,
    }
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


def fewer(moons: Moons, points: int) -> Moons:
    return Moons(model=moons.model, train=(moons.train[0][:points], moons.train[1][:points]), test=moons.test)


def make(options: argparse.Namespace) -> Part:
    moons = drawn(options.seed) if options.reference is None else stored(options.reference)
    moons = fewer(moons, options.points)
    share = len(moons.train[0]) / 3000
    runs, scores, rows = {}, {}, []
    for title, budget in budgets(share).items():
        run_of, certified, achieved = bracket(moons, budget, options.domain, bool(options.attacks))
        with torch.no_grad():
            nominal = (run_of.nominal(moons.test[0]).argmax(1) == moons.test[1]).double().mean().item()
        runs[title], scores[title] = run_of, f"certified {certified:.3f}"
        rows.append((title, f"{certified:.3f}", "" if achieved is None else f"{achieved:.3f}", f"{nominal:.3f}"))
    x, y = moons.train
    low, high = x[:, :2].amin(0) - 0.3, x[:, :2].amax(0) + 0.3
    edge = (low[0].item(), high[0].item(), low[1].item(), high[1].item())
    regions = region_figure(runs, powers, (x[::3, :2], y[::3]), limits=edge, scores=scores, columns=4)
    chosen = pairs(moons)
    shown = sorted({index for pair in chosen for index in pair})
    few = rp.PoisoningBudget(points=max(1, round(200 * share)), eps=0.01)
    boxes, clean, poisoned = trajectories(moons, few, options.domain, shown)
    ways = trajectory_figure(boxes, clean, poisoned, chosen, names=name)
    table = Table(
        name="poisoning_half_moons",
        columns=("budget", "certified accuracy", "lowest accuracy that attacks leave", "without poison"),
        rows=tuple(rows), caption=f"n points moved by eps in every feature; 4 updates, domain {options.domain}.",
    )  # fmt: skip
    return Part(
        title="Abstract gradient training: every model that poison can make",
        sentence="Training on intervals keeps every parameter in a box that holds it whatever the poisoner does within "
        "his budget; what all models of the last box decide alike is certified, and the grey border grows with both n "
        "and eps.",
        data=f"two half-moons, {len(x)} points for training and {len(moons.test[0])} for the test; a network 6-128-2.",
        pictures=(
            picture(ways, "trajectories",
                    f"{STEPS} updates with n = {few.points}, eps = {few.eps:g}: pairs of parameters, their boxes after "
                    "each update, and trainings on the poison that attacks chose, all of which stay inside."),
            picture(regions, "regions", "Red and blue: the class is certified; grey: poison may change it. Black: the "
            "decision without poison."),
        ),
        tables=(table,),
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    run("poisoning_half_moons", make, OPTIONS, arguments, describe=__doc__)


if __name__ == "__main__":
    main()
