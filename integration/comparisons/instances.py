"""Sweeps of verification benchmarks in one process: what is solved, in how many CPU seconds.

    python integration/comparisons/instances.py FOLDER... [--only 0:20] [--timeout 60] [--clock wall] [--json]

Each folder holds `instances.csv` or `answers.csv` in the competition's form, networks and properties. The seconds of an
instance are those that one thread computes, reading its files included and importing torch not. A line for each folder
tells how many are solved, the seconds of all, of those solved, the sum of the fastest published tool for each of these,
and every contradiction with a published answer. `instances.md` holds what was measured.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from pathlib import Path

import onnx  # noqa: F401  (loaded once, not for the first instance)
import onnxruntime  # noqa: F401
import torch

import robust_plugins as rp

SOLVED = ("unsat", "sat")


def rows(folder: Path) -> list[dict[str, str]]:
    """The instances of a folder, with published answers where there are any."""
    answers = folder / "answers.csv"
    with (answers if answers.exists() else folder / "instances.csv").open(newline="") as file:
        if answers.exists():
            return list(csv.DictReader(file))
        return [dict(zip(("onnx", "vnnlib", "timeout_s"), row, strict=False)) for row in csv.reader(file)]


def found_at(path: Path) -> Path:
    """The file, or its gzipped form."""
    return path if path.exists() else path.with_name(path.name + ".gz")


def sweep(folder: Path, only: slice, timeout: float | None, clock: str = "cpu") -> dict[str, object]:
    """The summary of a folder; a line for each instance goes to standard error."""
    solved, total, of_solved, fastest, contradictions, longest = 0, 0.0, 0.0, 0.0, [], 0.0
    chosen = rows(folder)[only]
    for i, row in enumerate(chosen):
        limit = float(row["timeout_s"]) if timeout is None else min(timeout, float(row["timeout_s"]))
        start = time.process_time()
        try:
            found = rp.verify(
                found_at(folder / row["onnx"]), found_at(folder / row["vnnlib"]), timeout=limit, clock=clock
            )
            answer, message = found.answer, found.message
        except rp.RobustPluginsError as error:
            answer, message = "error", str(error)
        seconds = time.process_time() - start
        total, longest = total + seconds, max(longest, seconds)
        if answer in SOLVED:
            solved, of_solved = solved + 1, of_solved + seconds
            fastest += float(row.get("fastest_s") or 0)
            if row.get("answer") in SOLVED and row["answer"] != answer:
                contradictions.append(f"{row['onnx']} {row['vnnlib']}: {answer}, published {row['answer']}")
        print(f"{i} {row['onnx']} {row['vnnlib']}: {answer}, {seconds:.2f} s {message}", file=sys.stderr, flush=True)
    return {
        "folder": folder.name, "instances": len(chosen), "solved": solved, "CPU s": round(total, 1),
        "CPU s of the solved": round(of_solved, 1), "longest": round(longest, 1),
        "fastest published tool on these": round(fastest, 1), "contradictions": contradictions or 0,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--only", default=":", help="a slice of each folder's instances, as 0:20")
    parser.add_argument("--timeout", type=float, help="seconds, where the instance's own are more")
    parser.add_argument("--clock", choices=("cpu", "wall"), default="cpu", help="what seconds of timeouts are")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    only = slice(*(int(end) if end else None for end in arguments.only.split(":")))
    found = [sweep(folder, only, arguments.timeout, arguments.clock) for folder in arguments.folders]
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    print("| " + " | ".join(found[0]) + " |\n" + "|---" * len(found[0]) + "|")
    for row in found:
        print("| " + " | ".join(str(value) for value in row.values()) + " |")


if __name__ == "__main__":
    main()
