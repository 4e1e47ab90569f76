"""Complete verification of three published networks by `interval:branch-and-bound`.

    python integration/comparisons/verification.py --models DIR [--images 20] [--timeout 60] [--network mnist]
        [--clock cpu] [--proofs DIR] [--json]

For each network, the first correctly classified images of its test set are certified one by one, and the verdicts and
the CPU seconds of one thread printed; `verification.md` holds what was measured. Networks, images and radii are of
`optimised_slopes.py`; `--models` is the folder with their files. With `--proofs` what is certified is certified once
more, with a proof in that folder for each image, and the proofs are checked: the table then has their sizes, and the
seconds of certifying with them and of checking them, beside those of certifying the same images without.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from optimised_slopes import NETWORKS, load, tiny

import robust_plugins as rp
from robust_plugins.proof_check import check, network, records


def measure(
    name: str, folder: Path, images: int, timeout: float, clock: str, proofs: Path | None = None
) -> tuple[dict[str, object], list[str]]:
    """The summary of a network, and a line for each image."""
    model, x, y, ball = load(name, folder, images)
    component = rp.certifier("interval:branch-and-bound", timeout=timeout, clock=clock)
    component(model, x[:1], y[:1], tiny(ball))  # what is loaded once is not timed
    lines, seconds, verdicts, proved = [], [], [], []
    for i in range(len(x)):
        start = time.process_time()
        found = component(model, x[i : i + 1], y[i : i + 1], ball)
        seconds.append(time.process_time() - start)
        verdicts.append(found.verdicts[0])
        lines.append(f"{name} {i}: {found.verdicts[0]}, margin {found.margin.item():.4g}, {seconds[-1]:.2f} s")
        if proofs is not None and found.verdicts[0] is rp.Verdict.CERTIFIED:
            path = proofs / f"{name}-{i}.proof"
            path.unlink(missing_ok=True)
            proof = with_proof(replace(component, proof=str(path)), model, x[i : i + 1], y[i : i + 1], ball, path)
            if proof is not None:
                proved.append((seconds[-1], *proof))
                lines[-1] += ", with proof {:.2f} s, {:.2f} MB, checked in {:.2f} s".format(*proof)
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
    } | ({} if proofs is None else summary(proved)), lines


def with_proof(
    component: rp.Certifier, model: nn.Module, x: Tensor, y: Tensor, ball: rp.Ball, path: Path
) -> tuple[float, float, float] | None:
    """CPU seconds of certifying with a proof, its megabytes, and the CPU seconds of its check; None without one."""
    start = time.process_time()
    found = component(model, x, y, ball)
    with_one, start = time.process_time() - start, time.process_time()
    if found.verdicts[0] is not rp.Verdict.CERTIFIED:
        return None
    net, sample = records(path)
    check(sample, network(net))
    return with_one, path.stat().st_size / 1e6, time.process_time() - start


def summary(proved: list[tuple[float, float, float, float]]) -> dict[str, object]:
    """The columns about proofs, from seconds without and with them, megabytes, and seconds of checks."""
    without, with_one, size, checked = (sum(column) / max(1, len(proved)) for column in zip(*proved, strict=True))
    return {
        "proofs": len(proved),
        "CPU s without, with": f"{without:.2f}, {with_one:.2f}",
        "MB": round(size, 2),
        "CPU s of a check": round(checked, 2),
        "check / solving, mean, largest": f"{checked / without:.2f}, {max(p[3] / p[0] for p in proved):.2f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--timeout", type=float, default=60.0)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="cpu")
    parser.add_argument("--network", action="append", choices=list(NETWORKS))
    parser.add_argument("--proofs", type=Path, help="a folder for proofs, which are checked too")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in arguments.network or NETWORKS:
        row, _ = measure(name, arguments.models, arguments.images, arguments.timeout, arguments.clock, arguments.proofs)
        rows.append(row)
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    print("| " + " | ".join(rows[0]) + " |\n" + "|---" * len(rows[0]) + "|")
    for row in rows:
        print("| " + " | ".join(str(value) for value in row.values()) + " |")


if __name__ == "__main__":
    main()
