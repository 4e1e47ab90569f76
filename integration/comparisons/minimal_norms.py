"""Carlini and Wagner's L-infinity attack: `rp:cw-linf` against ART's, distance and CPU time on the same images.

    python -m integration.comparisons.minimal_norms [--images 20] [--data ../shared/data/mnist] [--out DIR]
        [--art-steps 10] [--art-learning-rate 0.01]

Both attack the same network on the same images with their own defaults, untargeted and towards one random wrong class
each; `--art-steps` and `--art-learning-rate` give ART's others, with which it finds more. Means are also over the
images on which both succeed; the ratio is of CPU seconds in one run. Beside them stand `rp:fmn`, `rp:pdpgd` and the
margin's PGD with its radius bisected. Prints a table in Markdown; `--out` holds the trained network between runs.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import robust_plugins as rp

sys.path.insert(0, str(Path(__file__).parents[1] / "lecture"))
from attack_networks import Subject, subject

CLIP = (0.0, 1.0)
OURS = ("rp:cw-linf", "rp:cw-linf(targets=0)", "rp:fmn", "rp:pdpgd",
        "rp:minimal(attack='rp:margin-pgd(steps=20)')")  # fmt: skip
LIMIT = 10.0
"""How many times faster than ART's the attack has to be, at its mean distance."""


@dataclass(frozen=True)
class Row:
    """What one attack found: a distance for each image, inf for none."""

    name: str
    goal: str
    distance: Tensor
    seconds: float

    @property
    def success(self) -> Tensor:
        return self.distance.isfinite()


def art_linf(subject: Subject, target: Tensor | None, steps: int = 10, learning_rate: float = 0.01) -> Tensor:
    """ART's attack, by default with its own settings; what it returns, judged by the network."""
    from art.attacks.evasion import CarliniLInfMethod
    from art.estimators.classification import PyTorchClassifier

    shape = tuple(subject.x.shape[1:])
    estimator = PyTorchClassifier(
        subject.model, torch.nn.CrossEntropyLoss(), shape, 10, clip_values=CLIP, device_type="cpu"
    )
    attack = CarliniLInfMethod(
        estimator, targeted=target is not None, batch_size=len(subject.x), verbose=False, max_iter=steps,
        learning_rate=learning_rate,
    )  # fmt: skip
    labels = torch.nn.functional.one_hot(subject.y if target is None else target, 10).numpy()
    z = torch.from_numpy(attack.generate(subject.x.numpy(), labels))
    decision = subject.model(z).argmax(1)
    won = decision != subject.y if target is None else decision == target
    return torch.where(won, rp.Linf(eps=1.0, clip=CLIP).distance(z, subject.x), torch.inf)


def ours(name: str, subject: Subject, target: Tensor | None) -> Tensor:
    result = rp.attack(name)(subject.model, subject.x, subject.y, rp.Linf(eps=1.0, clip=CLIP), target=target, seed=0)
    return torch.where(result.success, result.distance, torch.inf)


def timed(name: str, goal: str, run: Callable[[], Tensor]) -> Row:
    start = time.process_time()
    distance = run()
    return Row(name, goal, distance, time.process_time() - start)


def compared(subject: Subject, *, names: Sequence[str] = OURS, seed: int = 0, **art: float) -> list[Row]:
    """ART's attack and ours, for both kinds of targets."""
    step = torch.randint(1, 10, subject.y.shape, generator=torch.Generator().manual_seed(seed))
    goals = {"untargeted": None, "random target": (subject.y + step) % 10}
    found = []
    for goal, target in goals.items():
        found.append(timed("ART CarliniLInfMethod", goal, partial(art_linf, subject, target, **art)))
        found += [timed(name, goal, partial(ours, name, subject, target)) for name in names]
    return found


def table(found: Sequence[Row]) -> str:
    lines = ["| attack | target | success | mean distance | where ART succeeds | ART there | CPU s | ART / ours |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for row in found:
        theirs = next(r for r in found if r.goal == row.goal)
        both = row.success & theirs.success
        cells = [f"{float(d.mean()):.4f}" if len(d) else "-" for d in
                 (row.distance[row.success], row.distance[both], theirs.distance[both])]  # fmt: skip
        name = f"`{row.name}`" if row.name.startswith("rp:") else row.name
        share = f"{int(row.success.sum())} of {len(row.success)}"
        ratio = f"{theirs.seconds / row.seconds:.1f}"
        lines.append("| " + " | ".join([name, row.goal, share, *cells, f"{row.seconds:.2f}", ratio]) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/mnist"))
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("out/minimal_norms"))
    parser.add_argument("--art-steps", type=int, default=10, help="ART's max_iter")
    parser.add_argument("--art-learning-rate", type=float, default=0.01)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    attacked = subject(options.data, options.out, images=options.images, seed=0)
    found = compared(attacked, steps=options.art_steps, learning_rate=options.art_learning_rate)
    print(f"L-infinity, {len(attacked.x)} images, {attacked.title}.\n")
    print(table(found))
    theirs, mine = found[0], found[1]
    both = theirs.success & mine.success
    ratio = f"`{mine.name}` is {theirs.seconds / mine.seconds:.1f} times as fast as ART's (wanted: {LIMIT:g})"
    if not bool(both.any()):
        print(f"\nUntargeted, {ratio}, which finds no example that ours does.")
        return
    near = float(mine.distance[both].mean()) <= float(theirs.distance[both].mean())
    print(f"\nUntargeted, {ratio}, at a mean distance that is {'no larger' if near else 'LARGER'}.")


if __name__ == "__main__":
    main()
