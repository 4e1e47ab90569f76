"""How training data are divided into partitions, so that a changed sample is in one or two of them and in no other."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Integer, Shaped
from torch import Tensor

from robust_plugins.errors import ArgumentError
from robust_plugins.poisoning.budget import PoisoningBudget

By = Literal["features", "sample", "place"]


def divided(
    x: Shaped[Tensor, "samples *features"],
    y: Shaped[Tensor, "samples *labels"],
    partitions: int,
    by: By,
) -> list[Integer[Tensor, " members"]]:
    """The indices of each partition's samples, in an order that no other sample has a part in.

    By `"features"` and `"sample"` a partition is that of a hash, of the features or of the label too, and its samples
    are sorted by their hashes: wherever a sample stands in the data, it is in the same partition. By `"place"` sample
    i is in partition i mod `partitions`.
    """
    if by not in get_args(By):
        raise ArgumentError("by", repr(by), accepted=", ".join(map(repr, get_args(By))),
                            hint="'features' holds for samples added, removed and relabelled.")  # fmt: skip
    if by == "place":
        return [torch.arange(start, len(x), partitions) for start in range(partitions)]
    own = _hashes(x)
    whole = own ^ _mixed(_hashes(y))
    key = own if by == "features" else whole
    order = np.lexsort((whole, key))
    place = (key % np.uint64(partitions)).astype(np.int64)[order]
    order = order[np.argsort(place, kind="stable")]
    return list(torch.from_numpy(order).split(np.bincount(place, minlength=partitions).tolist()))


def reached(budget: PoisoningBudget, by: By) -> int:
    """In how many partitions at most the poisoner of `budget` can change a sample, of all data as one batch.

    A sample with another hash leaves one partition and enters another: it counts twice. A sample added or removed
    counts once, and so does every change that keeps a sample's partition. Raises ArgumentError for samples added or
    removed where partitions go by place, for all later samples then move.
    """
    if by == "place":
        if budget.change in ("addition", "removal"):
            raise ArgumentError("budget", f"a {budget.change}", accepted="moved, relabelled or replaced samples "
                                "where partitions go by place", hint="Divide the data by='features'.")  # fmt: skip
        both = max(budget.points, budget.labels) if budget.paired else budget.points + budget.labels
        return both + budget.k
    if budget.change != "none":
        return budget.k * (2 if budget.change == "substitution" else 1)
    relabelled = max(budget.labels - budget.points, 0) if budget.paired else budget.labels
    return 2 * budget.points + relabelled * (2 if by == "sample" else 1)


def _hashes(values: Tensor) -> np.ndarray:
    """64 bits of each sample, of what is stored and nothing else."""
    values = values.detach().cpu()
    values = values.float() if values.dtype == torch.bfloat16 else values  # numpy does not know it
    rows = np.ascontiguousarray(values.numpy()).reshape(len(values), -1)
    if rows.dtype.kind == "f":
        rows = rows + 0.0  # -0.0 and 0.0 are one number
    octets = np.frombuffer(rows.tobytes(), dtype=np.uint8).reshape(len(values), rows.shape[1] * rows.itemsize)
    padded = np.zeros((len(octets), -(-max(octets.shape[1], 1) // 8) * 8), dtype=np.uint8)
    padded[:, : octets.shape[1]] = octets
    words = padded.view(np.uint64)
    factors = np.random.default_rng(0).integers(2**64, size=words.shape[1], dtype=np.uint64) | np.uint64(1)
    found = np.zeros(len(words), dtype=np.uint64)
    for column in range(0, words.shape[1], 64):  # parts, so that the products need little memory
        found += (_mixed(words[:, column : column + 64]) * factors[column : column + 64]).sum(1, dtype=np.uint64)
    return _mixed(found)


def _mixed(bits: np.ndarray) -> np.ndarray:
    """A bijection of 64 bits in which every bit depends on all (Steele et al. 2014, the finaliser of SplitMix)."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = bits ^ (bits >> np.uint64(31))
    return mixed
