"""The lecture's certification table: nine published networks by `interval:branch-and-bound`, published figures beside.

    python -m integration.lecture.certification --models DIR [--images 100] [--timeout 60] [--network mlp-5x100]
        [--clock cpu] [--out out/certification]

Every image of the test set's beginning is attacked (`art:pgd`), bounded by `interval:crown`, and certified completely;
each on its own, so that an attack can contradict a certificate. `--models` is the folder with the published files (of
the repositories of ERAN and alpha-beta-CROWN); a network whose file is not there has a row that names it.

Writes to `--out`: records.jsonl, a line for each image, appended as soon as it is known, from which a run that was
killed goes on; certification.csv and certification.md, the table; images.csv; and cactus.svg, how many images are
verified within how many seconds. Percentages are of all images, as in the published table. Seconds are those of
branch and bound alone, on one thread, the mean over images that are classified correctly, timeouts included.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import robust_plugins as rp

sys.path.insert(0, str(Path(__file__).parent))
from certification_networks import NETWORKS, MissingFileError, Subject, load

ATTACK = "art:pgd(steps=100, restarts=3)"
BOUND = "interval:crown"


@dataclass(frozen=True, kw_only=True)
class Record:
    """What was found out about one image."""

    network: str
    image: int
    weights: str
    eps: float
    timeout: float
    clock: str
    correct: bool
    attacked: bool
    """Whether the attack succeeded."""
    crown: bool
    verdict: str
    margin: float | None
    seconds: float
    """CPU or wall-clock seconds, as `clock` says, of branch and bound."""
    version: str

    @property
    def key(self) -> tuple[object, ...]:
        """All that the answer depends on."""
        return self.network, self.image, self.weights, self.eps, self.timeout, self.clock

    @property
    def verified(self) -> bool:
        return self.verdict == rp.Verdict.CERTIFIED

    @property
    def broken(self) -> bool:
        return self.attacked or self.verdict == rp.Verdict.FALSIFIED


class Store:
    """Records in a file, one in a line; a line that a killed run has left unfinished is dropped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: dict[tuple[object, ...], Record] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text() if path.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            path.write_text(whole)
        for line in whole.splitlines():
            record = Record(**json.loads(line))
            self.records[record.key] = record

    def add(self, record: Record) -> None:
        self.records[record.key] = record
        with self.path.open("a") as file:
            file.write(json.dumps(asdict(record)) + "\n")
            file.flush()
            os.fsync(file.fileno())


def certified(name: str, subject: Subject, image: int, timeout: float, clock: str) -> Record:
    """One image by the attack, by CROWN and by branch and bound."""
    x, y = subject.x[image : image + 1], subject.y[image : image + 1]
    eps = float(subject.ball.largest)
    about: dict[str, Any] = {"network": name, "image": image, "weights": subject.weights, "eps": eps,
                             "timeout": timeout, "clock": clock, "version": version("robust_plugins")}  # fmt: skip
    with torch.no_grad():
        correct = int(subject.model(x).argmax(1)) == int(y)
    if not correct:
        return Record(correct=False, attacked=True, crown=False, verdict=str(rp.Verdict.FALSIFIED), margin=None,
                      seconds=0.0, **about)  # fmt: skip
    attacked = rp.attack(ATTACK)(subject.model, x, y, subject.ball, seed=image)
    crown = rp.certifier(BOUND)(subject.model, x, y, subject.ball)
    complete = rp.certifier("interval:branch-and-bound", timeout=timeout, clock=clock)
    now = time.process_time if clock == "cpu" else time.perf_counter
    start = now()
    found = complete(subject.model, x, y, subject.ball)
    seconds = now() - start
    margin = found.margin.item()
    return Record(
        correct=True, attacked=bool(attacked.success), crown=bool(crown.certified), verdict=str(found.verdicts[0]),
        margin=margin if abs(margin) < float("inf") else None, seconds=round(seconds, 3), **about,
    )  # fmt: skip


COLUMNS = ("network", "eps", "images", "clean %", "CROWN %", "verified %", "mean s", "upper bound %", "open",
           "contradictions", "CROWN %, published", "beta-CROWN % (s), published",
           "upper bound %, published")  # fmt: skip


def row(name: str, records: Sequence[Record], missing: str) -> list[str]:
    """A line of the table; `missing` says why there is none."""
    published = NETWORKS[name]
    beside = [f"{published.crown}", f"{published.verified} ({published.seconds:g})", f"{published.upper}"]
    eps = f"{published.eps * 255:.0f}/255" if published.colour else f"{published.eps:g}"
    if missing or not records:
        return [published.title, eps, f"not run: {missing or 'no image'}", *[""] * 7, *beside]
    correct = [r for r in records if r.correct]

    def share(chosen: Sequence[Record]) -> str:
        return f"{100 * len(chosen) / len(records):.1f}"

    verified = [r for r in records if r.verified]
    return [
        published.title, eps, str(len(records)), share(correct), share([r for r in records if r.crown]),
        share(verified), f"{sum(r.seconds for r in correct) / max(1, len(correct)):.2f}",
        share([r for r in records if not r.broken]), str(sum(not r.verified and not r.broken for r in records)),
        str(sum((r.verified and r.attacked) or (r.crown and r.broken) for r in records)), *beside,
    ]  # fmt: skip


def write(out: Path, rows: Sequence[Sequence[str]], records: dict[str, list[Record]]) -> str:
    """Table, images and picture; returns the table."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (COLUMNS, ["---"] * len(COLUMNS), *rows)]
    table = "\n".join(lines) + "\n"
    (out / "certification.md").write_text(table)
    with (out / "certification.csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    with (out / "images.csv").open("w", newline="") as file:
        every = [asdict(record) for found in records.values() for record in found]
        writer = csv.DictWriter(file, list(Record.__dataclass_fields__))
        writer.writeheader()
        writer.writerows(every)
    cactus(out / "cactus.svg", records)
    return table


def cactus(path: Path, records: dict[str, list[Record]]) -> None:
    """How many images of each network are verified within how many seconds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, found in records.items():
        seconds = sorted(record.seconds for record in found if record.verified)
        if seconds:
            axes.plot(range(1, len(seconds) + 1), seconds, marker=".", label=NETWORKS[name].title)
    axes.set(xlabel="images verified", ylabel="seconds for each of them", yscale="log")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize="small")
    figure.savefig(path, metadata={"Date": None})


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--timeout", type=float, default=60.0)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--network", action="append", choices=list(NETWORKS))
    parser.add_argument("--out", type=Path, default=Path("out/certification"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    store = Store(options.out / "records.jsonl")
    rows: list[list[str]] = []
    records: dict[str, list[Record]] = {}
    for name in options.network or NETWORKS:
        try:
            subject = load(name, options.models, options.images)
        except MissingFileError as error:
            rows.append(row(name, [], str(error)))
            continue
        found = records[name] = []
        for image in range(len(subject.x)):
            eps = float(subject.ball.largest)
            key = (name, image, subject.weights, eps, options.timeout, options.clock)
            if key not in store.records:
                store.add(certified(name, subject, image, options.timeout, options.clock))
                record = store.records[key]
                print(f"{name} {image}: {record.verdict}, {record.seconds:.2f} s", file=sys.stderr, flush=True)
            found.append(store.records[key])
        rows.append(row(name, found, ""))
    print(write(options.out, rows, records), end="")


if __name__ == "__main__":
    main()
