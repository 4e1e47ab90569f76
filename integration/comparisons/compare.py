"""All comparisons of speed on one page: this package beside others, and beside loops by hand.

    make compare [VNNCOMP=FOLDER]
    python integration/comparisons/compare.py [--out out/compare.html] [--only attacks] [--vnncomp FOLDER] [--quick]

Each comparison runs in a process of its own with one thread. Contenders take turns, and each round divides their CPU
time by that of the base in the same round, so that what else the machine does cancels out; given are the median of
these ratios and their middle half. What is not installed is left out, and the page says so. VNNCOMP is a folder with a
folder for each benchmark of the verification competition, which holds `answers.csv`, networks and properties. The page
and the same as markdown take under 20 minutes, 6 of the CPU; `--quick` only shows that everything runs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from datetime import UTC, datetime
from html import escape
from pathlib import Path

import torch
from paired import Line, number
from suite import SECTIONS, Section

LIMIT = 195.0
"""CPU seconds that one comparison has: with six of them, all ends within 20 minutes where nothing else runs."""

STUCK = 20
"""A comparison that takes so many times its limit by the clock waits for something that does not come."""


def run(name: str, *, quick: bool, vnncomp: Path | None, limit: float) -> Section:
    """One comparison in a process of its own; what fails or does not end is a section that says so."""
    command = [sys.executable, __file__, "--section", name, "--limit", str(limit), *(["--quick"] if quick else [])]
    command += ["--vnncomp", str(vnncomp)] if vnncomp else []
    before = used()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=STUCK * limit, check=False)
    except subprocess.TimeoutExpired:
        return Section(name.capitalize(), "", skipped=[f"not done within {STUCK * limit:.0f} s"])
    if done.returncode == -signal.SIGXCPU:
        return Section(name.capitalize(), "", skipped=[f"not done within {limit:.0f} CPU seconds"])
    if done.returncode:
        cause = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return Section(name.capitalize(), "", skipped=[f"failed: {cause}"])
    told = json.loads(done.stdout.splitlines()[-1]) | {"seconds": used() - before}
    return Section(**told | {"lines": [Line(**one) for one in told["lines"]], "packages": tuple(told["packages"])})


def end_at(limit: float) -> None:
    """Ends this process once it has computed for so many seconds.

    Not by RLIMIT_CPU: under it Linux counts the time of a process in ticks of the scheduler, which are as long as what
    is measured here.
    """

    def watch() -> None:
        while (left := limit - time.process_time()) > 0:
            time.sleep(max(left, 0.1))
        os.kill(os.getpid(), signal.SIGXCPU)

    threading.Thread(target=watch, daemon=True).start()


def used() -> float:
    """CPU seconds of all comparisons so far."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def machine() -> str:
    """The processor, its cores, and the versions that everything ran with."""
    model = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        lines = [text.partition(":") for text in information.read_text().splitlines()]
        model = next((value.strip() for key, _, value in lines if key.startswith("model name")), model)
    return f"{model}, {os.cpu_count()} cores; Python {platform.python_version()}, torch {torch.__version__}"


def tables(section: Section) -> list[tuple[str, list[Line]]]:
    """The lines of a section by what they did."""
    return [(s, [o for o in section.lines if o.subject == s]) for s in dict.fromkeys(o.subject for o in section.lines)]


COLUMNS = ("", "ratio", "middle half", "pairs", "CPU s of a run")


def cells(one: Line) -> tuple[str, ...]:
    return (one.contender, number(one.median), one.spread, str(one.pairs), number(one.seconds))


def markdown(sections: list[Section], heading: str) -> str:
    lines = ["# This package beside others", "", heading, ""]
    for section in sections:
        lines += [f"## {section.title}", ""]
        lines += [section.text, ""] if section.text else []
        rows = tables(section)
        if rows:
            lines += ["| " + " | ".join(("what", "contender", *COLUMNS[1:])) + " |", "|---|---|---:|---|---:|---:|"]
            lines += [f"| {subject} | " + " | ".join(cells(one)) + " |" for subject, group in rows for one in group]
            lines.append("")
        lines += [f"- Left out: {text}" for text in section.skipped]
        if section.versions:
            lines.append(f"- {', '.join(f'{name} {version}' for name, version in section.versions.items())}")
        lines += [f"- {took(section)}"] if section.lines else []
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def took(section: Section) -> str:
    """How long a comparison computed, all contenders, rounds and imports together."""
    return f"{section.seconds:.0f} CPU seconds in all"


STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.4rem; } h3 { font-size: 1rem; margin: 1.4rem 0 .3rem; }
p { max-width: 48rem; } .note { color: #595959; font-size: .9rem; overflow-wrap: anywhere; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .2rem .8rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
th { border-bottom: 2px solid #888; } th:first-child, td:first-child { text-align: left; }
th:first-child { min-width: 16rem; } th:nth-child(2) { min-width: 3rem; } th:nth-child(4) { min-width: 7rem; }
td.bar { padding: 0; } svg { display: block; }
@media (max-width: 44rem) {
  th, td { padding: .2rem .5rem; } th:first-child { min-width: 0; } td:first-child { white-space: normal; }
  .bar, th:nth-child(3), th:nth-child(5), td:nth-child(5) { display: none; }
}
@media print { body { font-size: 9.5pt; max-width: none; } h2, h3 { break-after: avoid; } tr { break-inside: avoid; } }
"""


def page(sections: list[Section], heading: str) -> str:
    parts = [
        "<!doctype html>", '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>This package beside others</title><style>{STYLE}</style></head><body>",
        f"<h1>This package beside others</h1><p>{escape(heading)}</p>",
    ]  # fmt: skip
    for section in sections:
        parts.append(f"<h2>{escape(section.title)}</h2>")
        parts.append(f"<p>{_with_code(section.text)}</p>" if section.text else "")
        for subject, group in tables(section):
            high = max(one.high for one in group)
            head = "".join(f"<th>{title}</th>" for title in (*COLUMNS[:2], "", *COLUMNS[2:]))
            parts.append(f'<h3>{escape(subject)}</h3><div class="wide"><table><thead><tr>{head}</tr></thead><tbody>')
            for one in group:
                name, ratio, *rest = (f"<td>{escape(cell)}</td>" for cell in cells(one))
                parts.append(f'<tr>{name}{ratio}<td class="bar">{bar(one, high)}</td>{"".join(rest)}</tr>')
            parts.append("</tbody></table></div>")
        parts += [f'<p class="note">Left out: {escape(text)}</p>' for text in section.skipped]
        if section.versions:
            said = ", ".join(f"{name} {version}" for name, version in section.versions.items())
            parts.append(f'<p class="note">{escape(said)}</p>')
        parts += [f'<p class="note">{took(section)}</p>'] if section.lines else []
    return "\n".join([*filter(None, parts), "</body></html>"]) + "\n"


def _with_code(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def bar(one: Line, high: float) -> str:
    """The median as a bar from 0, the middle half as a line over it, and a mark at 1."""
    scale = 160 / max(high, 1.0)
    middle, low, top, mark = (scale * value for value in (one.median, one.low, one.high, 1.0))
    return (
        f'<svg width="164" height="16" role="img" aria-label="median {number(one.median)}, {one.spread}">'
        f'<rect x="1" y="4" width="{middle:.1f}" height="8" fill="#9CC3DE"/>'
        f'<path d="M{1 + low:.1f} 8H{1 + top:.1f}" stroke="#0072B2" stroke-width="2"/>'
        f'<path d="M{1 + mark:.1f} 1v14" stroke="#595959" stroke-dasharray="2 2"/></svg>'
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/compare.html"), help="the page; markdown beside it")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--vnncomp", type=Path, help="published instances with answers.csv, a folder per benchmark")
    parser.add_argument("--limit", type=float, default=LIMIT, help="CPU seconds for each comparison")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything runs")
    parser.add_argument("--section", choices=list(SECTIONS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.section:
        torch.set_num_threads(1)
        end_at(arguments.limit)
        section = SECTIONS[arguments.section](arguments.quick, arguments.vnncomp)
        print(json.dumps(asdict(section)))
        return
    start, sections = time.monotonic(), []
    for name in arguments.only:
        print(f"{name} ...", file=sys.stderr, flush=True)
        sections.append(run(name, quick=arguments.quick, vnncomp=arguments.vnncomp, limit=arguments.limit))
        print("\n".join([took(sections[-1]), *(f"left out: {text}" for text in sections[-1].skipped)]), file=sys.stderr)
    minutes = (time.monotonic() - start) / 60
    computed = used() / 60
    others = ", beside other work" if minutes > 1.5 * computed + 1 else ""
    heading = (
        f"Measured on {datetime.now(UTC):%Y-%m-%d} in {minutes:.0f} minutes, {computed:.0f} of the CPU, on one thread"
        f"{others}: {machine()}. Ratios are medians of CPU time over that of the base in the same "
        "round; the middle half of them lies between the quartiles."
    )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(page(sections, heading), encoding="utf-8")
    arguments.out.with_suffix(".md").write_text(markdown(sections, heading), encoding="utf-8")
    print(f"{arguments.out} and {arguments.out.with_suffix('.md').name}, {minutes:.1f} minutes")
    if any(text.startswith(("failed", "not done")) for section in sections for text in section.skipped):
        sys.exit(1)


if __name__ == "__main__":
    main()
