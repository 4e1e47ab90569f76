"""The whole lecture: every command in its order, each in a process of its own, and one page of what they made.

    python -m integration.lecture [--out out/lecture] [--data ../shared/data/mnist] [--only NAME ...] [--quick]
        [--jobs 2] [--page]

What an earlier run made with equal settings, data and code is kept, so that a run that was interrupted goes on. Each
command is also one of its own, `python -m integration.lecture.NAME`, whose options (`--help`) ask for more than the
usual few minutes; `--page` runs nothing, and makes the page of all that the folder holds, whatever its settings.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from integration.lecture.page import COMMANDS, write_page
from integration.lecture.parts import DATA, OUT

FIRST = "search"
"""Trains the network that several commands share, before they look for it at the same time."""


def made(name: str, out: Path, options: Sequence[str], given: Sequence[str]) -> str:
    """Runs one command; returns why it failed, or nothing."""
    arguments = [*options, *(given if COMMANDS[name] else [])]
    command = [sys.executable, "-m", f"integration.lecture.{name}", "--out", str(out / name), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    start = time.monotonic()
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, cwd=Path(__file__).resolve().parents[2]
    )
    cause = (done.stderr.strip().splitlines() or ["no message"])[-1] if done.returncode else ""
    said = f"failed: {cause}" if cause else f"{time.monotonic() - start:.0f} s"
    print(f"{name}: {said}", file=sys.stderr, flush=True)
    return cause


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m integration.lecture", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=OUT, help="the folder of the page and of all results")
    parser.add_argument("--data", type=Path, default=DATA.default, help=DATA.help)
    parser.add_argument("--only", nargs="+", choices=list(COMMANDS), default=list(COMMANDS), metavar="NAME",
                        help=f"some of {', '.join(COMMANDS)}")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything runs")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="commands at the same time")
    parser.add_argument("--page", action="store_true", help="only the page, of what is there")
    options = parser.parse_args(arguments)
    out, causes = options.out.resolve(), {}
    if not options.page:
        quick = ["--quick"] if options.quick else []
        given = ["--data", str(options.data.resolve())]
        first = [name for name in options.only if name == FIRST]
        rest = [name for name in options.only if name != FIRST]
        found = {name: made(name, out, quick, given) for name in first}
        with ThreadPoolExecutor(max(1, options.jobs)) as pool:
            found |= zip(rest, pool.map(lambda name: made(name, out, quick, given), rest), strict=True)
        causes = {name: cause for name, cause in found.items() if cause}
    page = write_page(out, causes)
    print(f"The page: {page}")
    sys.exit(1 if causes else 0)


if __name__ == "__main__":
    main()
