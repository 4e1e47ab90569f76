"""What a step of abstract gradient training costs, against a plain step of SGD: time and memory.

    python integration/comparisons/poisoning_scaling.py [--widths 64 128 256 512 1024] [--batches 100 500 2000]
        [--points 10] [--aggregation topk] [--relaxation auto none] [--threads 1] [--write FILE]

The network is 64-WIDTH-WIDTH-10 in float32, with random data of ten classes; of every batch POINTS samples move by at
most .01 in every feature. Each case runs in a process of its own. Printed: milliseconds of CPU per plain step (forward,
backward, update by torch.optim.SGD) and per abstract step (the nominal one included), their ratio, nanoseconds per
sample and parameter, and how much memory the process took at its peak beyond that of Python with the libraries loaded,
before the network and data were made. Linux, for its account of memory.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

STEPS = 4
FEATURES, CLASSES, EPS = 64, 10, 0.01
HEAD = """\
# The cost of abstract gradient training

`{command}`:
the network 64-width-width-10 in float32, {points} samples of every batch moved by at most .01 in every feature, on
{threads} thread of a CPU that others were using. With relaxation "auto" the dependence on moved features is kept where
that is affordable. Peak memory is that of the process beyond Python with the libraries loaded; some 70 MB of it are
what torch loads with its first optimizer.

"""
COLUMNS = (
    "width", "batch", "aggregation", "relaxation", "SGD ms", "abstract ms", "ratio", "ns / sample and parameter",
    "peak MB",
)  # fmt: skip


def case(width: int, batch: int, points: int, aggregation: str, relaxation: str, threads: int) -> dict[str, float]:
    """Measured in this process, which nothing else may have used before."""
    import torch
    from torch import nn

    import robust_plugins as rp

    torch.set_num_threads(threads)
    before = _peak_megabytes(reset=True)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(FEATURES, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, CLASSES)
    )
    x, y = torch.randn(batch, FEATURES), torch.randint(CLASSES, (batch,))
    marks: list[float] = []

    class Batches:
        """The same batch STEPS times; notes when each is asked for."""

        def __iter__(self):
            for _ in range(STEPS):
                marks.append(time.process_time())
                yield x, y
            marks.append(time.process_time())

    with warnings.catch_warnings():
        # What untrained networks say of random data cannot be certified.
        warnings.filterwarnings("ignore", message=".*the bounds decide no sample")
        rp.abstract_gradient_training(
            model,
            Batches(),
            rp.PoisoningBudget(points=points, eps=EPS),
            loss="cross_entropy",
            optimizer=rp.SGD(lr=0.01),
            epochs=1,
            relaxation=relaxation,
            aggregation=aggregation,
            progress=False,
        )
    peak = _peak_megabytes() - before
    # The first step starts from points, which is cheaper.
    abstract = statistics.median(b - a for a, b in itertools.pairwise(marks[1:]))

    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    plain: list[float] = []
    while len(plain) < 30 or sum(plain) < 1:
        start = time.process_time()
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        plain.append(time.process_time() - start)
    sgd = statistics.median(plain[5:])
    parameters = sum(p.numel() for p in model.parameters())
    return {
        "SGD ms": sgd * 1e3,
        "abstract ms": abstract * 1e3,
        "ratio": abstract / sgd,
        "ns / sample and parameter": abstract * 1e9 / batch / parameters,
        "peak MB": peak,
    }


def _peak_megabytes(*, reset: bool = False) -> float:
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    (line,) = (s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def _three_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def in_a_process(*arguments: object) -> dict[str, float]:
    command = [sys.executable, __file__, "--case", *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256, 512, 1024])
    parser.add_argument("--batches", type=int, nargs="+", default=[100, 500, 2000])
    parser.add_argument("--points", type=int, default=10)
    parser.add_argument("--aggregation", nargs="+", default=["topk"], choices=("topk", "cvar"))
    parser.add_argument(
        "--relaxation", nargs="+", default=["auto", "none"], choices=("auto", "none", "affine", "crown")
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", type=Path, help="a markdown file for the table")
    parser.add_argument("--case", nargs=6, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        width, batch, points, aggregation, relaxation, threads = arguments.case
        print(json.dumps(case(int(width), int(batch), int(points), aggregation, relaxation, int(threads))))
        return
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    print("\n".join(lines), flush=True)
    for width, batch, aggregation, relaxation in itertools.product(
        arguments.widths, arguments.batches, arguments.aggregation, arguments.relaxation
    ):
        found = in_a_process(width, batch, arguments.points, aggregation, relaxation, arguments.threads)
        cells = [str(width), str(batch), aggregation, relaxation]
        lines.append(f"| {' | '.join([*cells, *(_three_digits(v) for v in found.values())])} |")
        print(lines[-1], flush=True)
        if arguments.write:
            given = [a for a in sys.argv[1:] if a not in ("--write", str(arguments.write))]
            command = " ".join(["python integration/comparisons/poisoning_scaling.py", *given])
            head = HEAD.format(command=command, points=arguments.points, threads=arguments.threads)
            arguments.write.write_text(head + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
