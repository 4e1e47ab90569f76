"""Proofs of small networks, and faults planted in them."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from robust_plugins.decisions.verifier import Engine, Halfspaces, verify_property
from robust_plugins.decisions.verifier.proofs.comparing import evaluated
from robust_plugins.decisions.verifier.proofs.writing import framed, plain_record
from robust_plugins.decisions.verifier.refinement import GrowingTrees
from robust_plugins.proof_check import ProofError, check, network, records
from robust_plugins.proof_check.reading import MAGIC, Record

NEURONS = Engine(few=0)
"""Splits at neurons however few inputs there are."""
EARLY = Engine(refinement=GrowingTrees(growth=2, most=8, search=1e-9, gain=-1e9, share=1e9), few=0)
"""Refines bounds besides, however little a search needs them."""


def dense(seed: int, inputs: int = 4, width: int = 10, layers: int = 3) -> nn.Sequential:
    torch.manual_seed(seed)
    sizes = [inputs, *[width] * (layers - 1), 3]
    steps = [step for a, b in pairwise(sizes) for step in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*steps[:-1]).eval()


def proved(model: nn.Module, x: torch.Tensor, eps: float, path: Path, engine: Engine | None = NEURONS) -> bool:
    """Whether the decision at x holds over a box, with its proof in a file."""
    outputs = model(x.unsqueeze(0))[0]
    y = int(outputs.argmax())
    rows = [Halfspaces(r.unsqueeze(0), torch.zeros(1)) for r in torch.eye(3)[y] - torch.eye(3)[torch.arange(3) != y]]
    return verify_property(model, x - eps, x + eps, rows, timeout=600, engine=engine, proof=path).answer == "unsat"


def read(path: Path) -> tuple[Record, list[Record]]:
    """The network of a file, and its samples."""
    first, *samples = records(path)
    return first, samples


def rejected(sample: Record, net: Record) -> str:
    """Why a proof is rejected; empty where it is not."""
    try:
        check(sample, network(net))
    except ProofError as error:
        return str(error)
    return ""


def write(path: Path, *given: Record) -> None:
    """A file of records as they are, with the checksums that belong to them."""
    path.write_bytes(MAGIC + b"".join(framed(plain_record(r.about, r.arrays)) for r in given))


def copied(record: Record) -> Record:
    """A copy whose arrays can be changed."""
    return Record(json.loads(json.dumps(record.about)), {n: a.copy() for n, a in record.arrays.items()}, record.digest)


Mutation = Callable[[Record, Record, np.random.Generator], bool]
"""Changes a sample's record, or its network's, so that it proves nothing any more; False where there is nothing to
change."""


def _named(record: Record, end: str, rng: np.random.Generator, fits: Callable[[np.ndarray], Any] = len) -> str | None:
    names = [n for n, a in record.arrays.items() if n.endswith(end) and fits(a)]
    return str(rng.choice(names)) if names else None


def child_dropped(sample: Record, net: Record, rng: np.random.Generator) -> bool:
    """Of one split a half goes, with all that is said of it."""
    name = _named(sample, ".tree", rng, lambda tree: (tree >= 0).any())
    if name is None:
        return False
    tree, stem = sample.arrays[name], name.removesuffix("tree")
    at = rng.choice(np.flatnonzero(tree == -1))
    ends = _depths(tree)
    leaf = int((tree[:at] == -1).sum())
    if ends[leaf] == 0:
        at = next(i for i in np.flatnonzero(tree == -1) if ends[(tree[:i] == -1).sum()])
        leaf = int((tree[:at] == -1).sum())
    start = int(sum(ends[:leaf]))
    sample.arrays[name] = np.delete(tree, at)
    sample.arrays[f"{stem}slopes"] = np.delete(sample.arrays[f"{stem}slopes"], leaf, 0)
    paid = sample.arrays[f"{stem}multipliers"]
    sample.arrays[f"{stem}multipliers"] = np.delete(paid, slice(start, start + ends[leaf]))
    return True


def _depths(tree: np.ndarray) -> list[int]:
    signs: list[int] = []
    found = []
    for unit in tree.tolist():
        if unit >= 0:
            signs.append(1)
            continue
        found.append(len(signs))
        while signs and signs[-1] < 0:
            signs.pop()
        if signs:
            signs[-1] = -1
    return found


def multiplier_below_zero(sample: Record, net: Record, rng: np.random.Generator) -> bool:
    name = _named(sample, ".multipliers", rng, lambda a: (a > 0).any())
    if name is None:
        return False
    at = rng.choice(np.flatnonzero(sample.arrays[name] > 0))
    sample.arrays[name][at] *= -1
    return True


def dual_no_number(sample: Record, net: Record, rng: np.random.Generator) -> bool:
    name = _named(sample, ".multipliers", rng)
    if name is None:
        return False
    sample.arrays[name][rng.integers(len(sample.arrays[name]))] = rng.choice([np.nan, np.inf, -np.inf])
    return True


def bound_tightened(sample: Record, net: Record, rng: np.random.Generator) -> bool:
    """An end moves inward by a thousandth of its size: more than what search and check differ by."""
    side, sign = [("low", 1), ("up", -1)][rng.integers(2)]
    name = _named(sample, f".{side}", rng)
    if name is None:
        return False
    at = rng.integers(len(sample.arrays[name]))
    ends = [np.abs(sample.arrays[name.removesuffix(side) + s][at]) for s in ("low", "up")]
    sample.arrays[name][at] += sign * 1e-3 * max(ends)
    return True


def own_tree_dropped(sample: Record, net: Record, rng: np.random.Generator) -> bool:
    name = _named(sample, ".own", rng, np.any)
    if name is None:
        return False
    sample.arrays[name][rng.choice(np.flatnonzero(sample.arrays[name]))] = 0
    return True


def index_swapped(sample: Record, net: Record, rng: np.random.Generator) -> bool:
    name = _named(sample, str(rng.choice([".entries", ".units"])), rng, lambda a: len(a) > 1)
    if name is None:
        return False
    at = rng.integers(len(sample.arrays[name]) - 1)
    sample.arrays[name][[at, at + 1]] = sample.arrays[name][[at + 1, at]]
    return True


def index_outside(sample: Record, net: Record, rng: np.random.Generator) -> bool:
    name = _named(sample, str(rng.choice([".tree", ".entries", ".units"])), rng)
    if name is None:
        return False
    sample.arrays[name][-1] = rng.choice([-7, 10**6])
    return True


def split_elsewhere(sample: Record, net: Record, rng: np.random.Generator) -> bool:
    """A split turns into a leaf: there are leaves without a tree then."""
    name = _named(sample, ".tree", rng, lambda tree: (tree >= 0).any())
    if name is None:
        return False
    sample.arrays[name][rng.choice(np.flatnonzero(sample.arrays[name] >= 0))] = -1
    return True


def slopes_missing(sample: Record, net: Record, rng: np.random.Generator) -> bool:
    name = _named(sample, ".slopes", rng)
    if name is None:
        return False
    sample.arrays[name] = np.delete(sample.arrays[name], 0, int(rng.integers(2)))
    return True


def conjunction_left_out(sample: Record, net: Record, rng: np.random.Generator) -> bool:
    stages = [stage for stage in sample.about["stages"] if stage["proved"]]
    stages[rng.integers(len(stages))]["proved"].pop()
    return True


def stage_on_later_one(sample: Record, net: Record, rng: np.random.Generator) -> bool:
    sample.about["stages"][0]["known"] = int(rng.choice([-1, 0, 3]))
    return True


def constant_moved(sample: Record, net: Record, rng: np.random.Generator) -> bool:
    """So far that the middle of the box reaches the unsafe set."""
    values = sample.arrays["rows"] @ _middle(sample, net)
    at = rng.integers(len(values))
    sample.arrays["offsets"][at] = -values[at] - 10.0 ** rng.integers(-9, 3)
    return True


def row_turned(sample: Record, net: Record, rng: np.random.Generator) -> bool:
    sample.arrays["rows"][rng.integers(len(sample.arrays["rows"]))] *= -1
    return True


def weight_changed(sample: Record, net: Record, rng: np.random.Generator) -> bool:
    """The last weights or biases, so that the middle of the box reaches the unsafe set."""
    last, row = len(net.about["nodes"]) - 1, sample.arrays["rows"][rng.integers(len(sample.arrays["rows"]))]
    if rng.integers(2):
        net.arrays[f"{last}.0"][:] = net.arrays[f"{last}.0"][::-1] * 1
        net.arrays[f"{last}.offset"][:] = net.arrays[f"{last}.offset"][::-1] * 1
    else:
        net.arrays[f"{last}.offset"][int(row.argmax())] -= 2 * abs(row @ _middle(sample, net))
    return bool((sample.arrays["rows"] @ _middle(sample, net) < 0).any())


def box_widened(sample: Record, net: Record, rng: np.random.Generator) -> bool:
    """So that it holds an input that reaches the unsafe set."""
    nodes, low, up = network(net), sample.arrays["lower"], sample.arrays["upper"]
    for _ in range(200):
        x = (low + up) / 2 + 4 * rng.standard_normal(len(low))
        if (sample.arrays["rows"] @ evaluated(nodes, x)[-1] < 0).any():
            sample.arrays["lower"], sample.arrays["upper"] = np.minimum(low, x), np.maximum(up, x)
            return True
    return False


def _middle(sample: Record, net: Record) -> np.ndarray:
    return evaluated(network(net), (sample.arrays["lower"] + sample.arrays["upper"]) / 2)[-1]


MUTATIONS: list[Mutation] = [
    child_dropped, multiplier_below_zero, dual_no_number, bound_tightened, own_tree_dropped, index_swapped,
    index_outside, split_elsewhere, slopes_missing, conjunction_left_out, stage_on_later_one, constant_moved,
    row_turned, weight_changed, box_widened,
]  # fmt: skip
"""What makes a proof one of nothing; a changed byte, and a file cut short, are tried on files."""
