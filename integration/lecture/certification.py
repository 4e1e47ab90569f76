"""The lecture's certification table: nine published networks by `interval:branch-and-bound`, published figures beside.

    python -m integration.lecture.certification [--models DIR] [--images 5] [--timeout 5] [--network mlp-5x100 ...]
        [--clock cpu] [--out DIR]

Every image of the test set's beginning is attacked (`art:pgd`), bounded by `interval:crown`, and certified completely;
each on its own, so that an attack can contradict a certificate. `--models` is the folder with the published files (of
the repositories of ERAN and alpha-beta-CROWN); a network whose file is not there has a row that names it. Without the
folder, what was measured earlier is shown (certification.md).

Writes to `--out`: records.jsonl, a line for each image, appended as soon as it is known, from which a run that was
killed goes on; the table; images.csv; and a picture of how many images are verified within how many seconds.
Percentages are of all images, as in the published table. Seconds are those of branch and bound alone, on one thread,
the mean over images that are classified correctly, timeouts included.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import robust_plugins as rp
from integration.lecture.certification_networks import NETWORKS, MissingFileError, Subject, load
from integration.lecture.parts import Option, Part, Table, picture, run
from robust_plugins.benchmark.reporting.style import COLOURS, MARKS, PANEL

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OPTIONS = (
    Option(name="models", default=Path("../shared/models/eran"), kind=Path, help="the folder of the published files"),
    Option(name="images", default=5, quick=1, help="of the beginning of the test set, for each network"),
    Option(name="timeout", default=5.0, quick=0.5, help="seconds for each image"),
    Option(name="clock", default="cpu", choices=("cpu", "wall"), help="what the seconds are of"),
    Option(name="network", default=("mlp-5x100", "mnist-conv-small", "cifar-conv-small"), quick=("mnist-conv-small",),
           kind=str, choices=list(NETWORKS), help="which networks"),
)  # fmt: skip
EARLIER = Path(__file__).with_name("certification.md")
"""Of what was measured earlier, with the settings that it says."""

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


def write_images(out: Path, records: dict[str, list[Record]]) -> None:
    """What was found out about every image."""
    with (out / "images.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(Record.__dataclass_fields__))
        writer.writeheader()
        writer.writerows(asdict(record) for found in records.values() for record in found)


def cactus(records: dict[str, list[Record]]) -> Figure:
    """How many images of each network are verified within how many seconds."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=PANEL, layout="constrained")
    axes = figure.subplots()
    for number, (name, found) in enumerate(records.items()):
        seconds = sorted(record.seconds for record in found if record.verified)
        if seconds:
            axes.plot(range(1, len(seconds) + 1), seconds, marker=MARKS[number % len(MARKS)], markersize=4,
                      color=COLOURS[number % len(COLOURS)], label=NETWORKS[name].title)  # fmt: skip
    axes.set(xlabel="images verified", ylabel="seconds for each of them", yscale="log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    if axes.lines:
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize="small")
    return figure


def earlier() -> Table:
    """The table that was measured earlier."""
    text = EARLIER.read_text(encoding="utf-8")
    said = " or ".join(f"{found} seconds" for found in re.findall(r"`--timeout (\d+) --clock cpu`", text))
    lines = [line for line in text.splitlines() if line.startswith("|")]
    columns, _, *rows = (tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines)
    return Table(
        name="earlier", columns=columns, rows=tuple(rows),
        caption=f"Measured earlier: {said} of CPU time for each image. Shares of so few say little about the published "
        "ones, which are of 1000 images, with 180 and 120 seconds on a GPU.",
    )  # fmt: skip


def make(options: argparse.Namespace) -> Part:
    title = "Complete verification: branch and bound beside beta-CROWN"
    sentence = (
        "Splitting the ReLUs that matter certifies images that CROWN alone cannot; what neither an attack nor a proof "
        "decides within the time stays open."
    )
    data = "published networks of ERAN and alpha-beta-CROWN, on the first images of MNIST and CIFAR-10."
    if not options.models.is_dir():
        print(f"{options.models} is missing: what was measured earlier is shown", file=sys.stderr)
        return Part(title=title, sentence=sentence, data=data, tables=(earlier(),))
    store = Store(options.out / "records.jsonl")
    rows: list[tuple[str, ...]] = []
    records: dict[str, list[Record]] = {}
    for name in options.network:
        try:
            subject = load(name, options.models, options.images)
        except MissingFileError as error:
            rows.append(tuple(row(name, [], str(error))))
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
        rows.append(tuple(row(name, found, "")))
    write_images(options.out, records)
    clock = "CPU time" if options.clock == "cpu" else "time"
    table = Table(
        name="certification", columns=COLUMNS, rows=tuple(rows),
        caption=f"The first {options.images} images, {options.timeout:g} seconds of {clock} for each. Shares of so few "
        "say little about the published ones, which are of 1000 images.",
    )  # fmt: skip
    drawn = picture(cactus(records), "cactus", "How many images are verified within how many seconds.")
    return Part(title=title, sentence=sentence, data=data, pictures=(drawn,), tables=(table, earlier()))


def main(arguments: Sequence[str] | None = None) -> None:
    run("certification", make, OPTIONS, arguments, describe=__doc__)


if __name__ == "__main__":
    main()
