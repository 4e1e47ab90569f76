"""`milp:exact` beside `interval:branch-and-bound` on random networks: verdicts, and CPU seconds of one thread.

    python integration/comparisons/exact.py [--networks 8] [--width 8 16] [--timeout 60]

Networks have two hidden layers of each width and four inputs; each is certified at fractions of the radius at which an
attack breaks it. A line for each width: decisions, those on which both agree, those that either left open, and the mean
CPU seconds of a decision. `verification.md` holds what was measured.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

import robust_plugins as rp

COMPONENTS = ("milp:exact", "interval:branch-and-bound")
FACTORS = (0.7, 0.95, 1.1)
DECIDED = (rp.Verdict.CERTIFIED, rp.Verdict.FALSIFIED)


def drawn(seed: int, width: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A network, an input and its class."""
    torch.manual_seed(seed)
    layers = [layer for a, b in pairwise((4, width, width, 3)) for layer in (nn.Linear(a, b), nn.ReLU())]
    model, x = nn.Sequential(*layers[:-1]).eval(), torch.rand(1, 4)
    return model, x, model(x).argmax(1)


def measure(width: int, networks: int, timeout: float) -> str:
    """A line of the table."""
    agree, undecided, decisions = 0, 0, 0
    seconds = dict.fromkeys(COMPONENTS, 0.0)
    for seed in range(networks):
        model, x, y = drawn(seed, width)
        broken = rp.critical_radius("rp:margin-pgd", model, x, y, rp.Linf(eps=4.0, clip=None)).empirical
        if not bool(broken.isfinite()):
            continue
        for factor in FACTORS:
            verdicts, ball = [], rp.Linf(eps=factor * float(broken), clip=None)
            for name in COMPONENTS:
                start = time.process_time()
                verdicts.append(rp.certifier(name, timeout=timeout)(model, x, y, ball).verdicts[0])
                seconds[name] += time.process_time() - start
            decisions, agree = decisions + 1, agree + (verdicts[0] == verdicts[1])
            undecided += sum(verdict not in DECIDED for verdict in verdicts)
            print(f"{width} {seed} {factor}: {', '.join(verdicts)}", file=sys.stderr, flush=True)
    means = [f"{seconds[name] / max(1, decisions):.3f}" for name in COMPONENTS]
    return "| " + " | ".join([str(width), str(decisions), str(agree), str(undecided), *means]) + " |"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=8)
    parser.add_argument("--width", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--timeout", type=float, default=60.0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print("| width | decisions | agree | open | " + " | ".join(f"`{name}`, CPU s" for name in COMPONENTS) + " |")
    print("|---" * (4 + len(COMPONENTS)) + "|")
    for width in options.width:
        print(measure(width, options.networks, options.timeout), flush=True)


if __name__ == "__main__":
    main()
