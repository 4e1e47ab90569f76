"""Complete verification of three published networks by `interval:branch-and-bound`.

    python integration/comparisons/verification.py --models DIR [--images 20] [--timeout 60] [--network mnist]
        [--clock cpu] [--json]

For each network, the first correctly classified images of its test set are certified one by one, and the verdicts and
the CPU seconds of one thread printed; `verification.md` holds what was measured. Networks, images and radii are of
`optimised_slopes.py`; `--models` is the folder with their files.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from optimised_slopes import NETWORKS, load, tiny

import robust_plugins as rp


def measure(name: str, folder: Path, images: int, timeout: float, clock: str) -> tuple[dict[str, object], list[str]]:
    """The summary of a network, and a line for each image."""
    model, x, y, ball = load(name, folder, images)
    component = rp.certifier("interval:branch-and-bound", timeout=timeout, clock=clock)
    component(model, x[:1], y[:1], tiny(ball))  # what is loaded once is not timed
    lines, seconds, verdicts = [], [], []
    for i in range(len(x)):
        start = time.process_time()
        found = component(model, x[i : i + 1], y[i : i + 1], ball)
        seconds.append(time.process_time() - start)
        verdicts.append(found.verdicts[0])
        lines.append(f"{name} {i}: {found.verdicts[0]}, margin {found.margin.item():.4g}, {seconds[-1]:.2f} s")
        print(lines[-1], file=sys.stderr, flush=True)
    count = Counter(verdicts)
    decided = [s for s, v in zip(seconds, verdicts, strict=True) if v in (rp.Verdict.CERTIFIED, rp.Verdict.FALSIFIED)]
    return {
        "network": name,
        "images": len(x),
        "verified": count[rp.Verdict.CERTIFIED],
        "falsified": count[rp.Verdict.FALSIFIED],
        "open": len(x) - count[rp.Verdict.CERTIFIED] - count[rp.Verdict.FALSIFIED],
        "CPU s, mean of the decided": round(sum(decided) / max(1, len(decided)), 2),
        "longest": round(max(decided, default=0.0), 1),
    }, lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--timeout", type=float, default=60.0)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="cpu")
    parser.add_argument("--network", action="append", choices=list(NETWORKS))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for network in arguments.network or NETWORKS:
        row, _ = measure(network, arguments.models, arguments.images, arguments.timeout, arguments.clock)
        rows.append(row)
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    print("| " + " | ".join(rows[0]) + " |\n" + "|---" * len(rows[0]) + "|")
    for row in rows:
        print("| " + " | ".join(str(value) for value in row.values()) + " |")


if __name__ == "__main__":
    main()
