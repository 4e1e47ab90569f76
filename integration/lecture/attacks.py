"""The lecture's table of attacks: mean L-infinity distortion and success, for three kinds of targets.

    python -m integration.lecture.attacks [--data ../shared/data/mnist] [--images 20] [--seed 0] [--out DIR]

Carlini and Wagner's L-infinity attack, the fast gradient sign (FGS) and the iterated one (IGS), and the margin's PGD
with its radius bisected; each untargeted, towards one uniformly random wrong class (the average case), and towards the
class with the smallest clean logit (the least likely). Images are classified correctly; a mean is over successes only,
of each image's distance to the closest example that the attack finds. FGS tries every radius of 1/256 to 1; IGS goes
by steps of 1/256 and has its radius bisected, up to 0.5 like all others, at which every image can be grey. Beside them
stand the figures for MNIST of Carlini and Wagner 2017, table IV, of another network: their "best case" is the closest
of all targets, their "worst case" the farthest.

Writes records.jsonl to `--out`, a line for each attack and kind of target, from which a run that was killed goes on,
and the table. 20 images take half a minute of CPU time.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch

import robust_plugins as rp
from integration.lecture.attack_networks import Subject, subject
from integration.lecture.parts import DATA, SEED, Option, Part, Table, run

OPTIONS = (
    DATA, SEED,
    Option(name="images", default=20, quick=2, help="how many images, all classified correctly"),
    Option(name="updates", default=1875, quick=100, help="batches of the network's training"),
)  # fmt: skip

GOALS = {"untargeted": None, "average case": "random", "least likely": "least_likely"}
ATTACKS = {
    "C&W L-infinity": "rp:cw-linf(targets=0)",
    "FGS": "rp:fgsm",
    "IGS": "rp:minimal(attack=\"rp:pgd(start='none', steps=128, step_size=0.00390625)\")",
    "margin PGD, bisected": "rp:minimal(attack='rp:margin-pgd(steps=20)')",
}
PUBLISHED = {
    "C&W L-infinity": ("0.13", "0.16", "0.23"),
    "FGS": ("0.22", "0.26 (42 %)", "- (0 %)"),
    "IGS": ("0.14", "0.19", "0.26"),
    "margin PGD, bisected": ("", "", ""),
}


@dataclass(frozen=True, kw_only=True)
class Record:
    """What one attack found for one kind of target; a distance for each image, None for none."""

    name: str
    attack: str
    goal: str
    weights: str
    seed: int
    distances: list[float | None]
    seconds: float
    """CPU seconds for all images."""
    version: str

    @property
    def key(self) -> tuple[object, ...]:
        """All that the answer depends on."""
        return self.attack, self.goal, self.weights, self.seed

    @property
    def successes(self) -> list[float]:
        return [distance for distance in self.distances if distance is not None]


def measured(name: str, goal: str, subject: Subject, seed: int) -> Record:
    """One cell of the table."""
    attack, x, y, target = rp.attack(ATTACKS[name]), subject.x, subject.y, GOALS[goal]
    start = time.process_time()
    if name == "FGS":  # every radius, for it may fail at one and succeed at a smaller one
        radii = [k / 256 for k in range(1, 257)]
        results = attack(subject.model, x, y, rp.Linf(eps=1.0, clip=(0.0, 1.0)), target=target, seed=seed, eps=radii)
    else:
        results = [attack(subject.model, x, y, rp.Linf(eps=0.5, clip=(0.0, 1.0)), target=target, seed=seed)]
    seconds = time.process_time() - start
    distances = torch.stack([torch.where(r.success, r.distance, torch.inf) for r in results]).amin(0)
    found = [distance if distance < float("inf") else None for distance in distances.tolist()]
    return Record(
        name=name, attack=ATTACKS[name], goal=goal, weights=subject.weights, seed=seed, distances=found,
        seconds=round(seconds, 2), version=version("robust_plugins"),
    )  # fmt: skip


def read(path: Path) -> dict[tuple[object, ...], Record]:
    """The records of an earlier run; a line that it left unfinished is dropped."""
    text = path.read_text() if path.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole)
    records = [Record(**json.loads(line)) for line in whole.splitlines()]
    return {record.key: record for record in records}


def cells(record: Record) -> tuple[str, str]:
    """The mean over successes, and their share."""
    found = record.successes
    mean = f"{sum(found) / len(found):.3f}" if found else "-"
    return mean, f"{100 * len(found) / len(record.distances):.0f} %"


COLUMNS = ("attack", *(f"{goal}: {what}" for goal in GOALS for what in ("mean", "success")), "CPU s",
           *(f"paper, {case}" for case in ("best case", "average case", "worst case")))  # fmt: skip


def rows(records: Sequence[Record]) -> list[list[str]]:
    table = []
    for name in ATTACKS:
        mine = {record.goal: record for record in records if record.name == name}
        figures = [cell for goal in GOALS for cell in cells(mine[goal])]
        table.append([name, *figures, f"{sum(r.seconds for r in mine.values()):.1f}", *PUBLISHED[name]])
    return table


def make(options: argparse.Namespace) -> Part:
    networks = options.out.parent / "networks"
    attacked = subject(options.data, networks, images=options.images, seed=options.seed, updates=options.updates)
    path = options.out / "records.jsonl"
    known, records = read(path), []
    for name in ATTACKS:
        for goal in GOALS:
            key = (ATTACKS[name], goal, attacked.weights, options.seed)
            if key not in known:
                known[key] = measured(name, goal, attacked, options.seed)
                with path.open("a") as file:
                    file.write(json.dumps(asdict(known[key])) + "\n")
                mean, success = cells(known[key])
                print(f"{name}, {goal}: {mean}, {success}, {known[key].seconds} s", file=sys.stderr, flush=True)
            records.append(known[key])
    table = Table(
        name="attacks", columns=COLUMNS, rows=tuple(map(tuple, rows(records))),
        caption=f"Mean L-infinity distance over successes, and share of successes: {len(attacked.x)} images. CPU "
        "seconds are for all three. The paper's figures are Carlini and Wagner's for MNIST and another network.",
    )  # fmt: skip
    return Part(
        title="How far attacks have to go", data=f"{attacked.title}.", tables=(table,),
        sentence="One step (FGS) fails where a target is far away, and has to go farther where it succeeds; many steps "
        "(IGS), an optimised distance (C&W) and a bisected radius come to about the same place, the last two in a "
        "fraction of the time.",
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    run("attacks", make, OPTIONS, arguments, describe=__doc__)


if __name__ == "__main__":
    main()
