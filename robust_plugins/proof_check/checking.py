"""Checks proofs of complete verification: float64 arithmetic, and nothing of the search or of the engine behind it.

A proof is about a network of affine nodes and nodes `slope z + value + change relu(z - kink)`, a box of inputs, and
conjunctions of rows of its outputs: in each, some combination of rows with weights >= 0 is above zero on the box.
Nothing in it is believed. Node by node, intervals follow from those before; tighter ones, which are claimed, from
duals: with any slopes in [0, 1] and multipliers >= 0, lines below and above the relus of units, sent back to the box,
bound a row from below. Where a tree splits the box at kinks of units, both halves are bounded.

Sums of n products in any order are off by at most gamma(n) times the sum of their absolute values (Higham, "Accuracy
and stability of numerical algorithms", chapter 3): every bound is less by more than all of that.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from robust_plugins.proof_check.reading import LIMIT, Dense, Node, ProofError, Record, need
from robust_plugins.proof_check.splitting import Proof

TINY = 1e-180
"""More than all that can underflow, times the largest numbers."""
AT_ONCE = 2**22
"""Numbers in the largest array of a batch."""


def check(record: Record, nodes: list[Node]) -> None:
    """Raises ProofError where the record of a sample does not prove what it says about the network."""
    try:
        _check(record, nodes)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ProofError(f"malformed: {type(error).__name__}: {str(error)[:100]}") from None


def _check(record: Record, nodes: list[Node]) -> None:
    lower, upper = record.array("lower", "f"), record.array("upper", "f")
    need(len(lower) == len(upper) == nodes[0].size and (lower <= upper).all(), "the box does not fit the network")
    asked, parts = question(record, nodes[-1].size)
    if "stages" not in record.about:  # no neurons are split, but inputs
        Proof(record, nodes, asked, parts).check()
        return
    nodes = [*nodes, asked._replace(inputs=[len(nodes) - 1])]
    stages: list[Relaxation] = []
    open_parts = set(range(len(parts)))
    for s, about in enumerate(record.about["stages"]):
        known = about["known"]
        need(known is None or 0 <= known < s, f"stage {s} rests on a later one")
        stage = Relaxation(nodes, lower, upper, None if known is None else stages[known])
        for k in range(1, len(nodes)):
            name = f"{s}.{k - 1}"
            if f"{name}.entries" in record.arrays:
                stage.claim(k - 1, record, name)
            units = f"{s}.{k}.units"
            stage.step(k, record.indices(units, nodes[k].size) if units in record.arrays else np.zeros(0, int))
        for c in about["proved"]:
            name, part = f"{s}.goal.{c}", parts[c]
            tree = Trees(record, name, 1, stage.units)
            weights = np.zeros((len(tree.owner), asked.size))
            weights[:, part] = record.array(f"{name}.weights", "f", 2) if f"{name}.weights" in record.arrays else 1.0
            need((weights >= 0).all() and (weights.max(1) > 0).all(), f"{name}: weights are not positive")
            least = stage.least(len(nodes) - 1, lambda at, w=weights: w[at], tree, 1)  # type: ignore[misc]
            need((least > 0).all(), f"{name}: a leaf is not above zero, but {least.min():.3g}")
            open_parts.discard(c)
        stages.append(stage)
    need(not open_parts, f"nothing is proved of the conjunctions {sorted(open_parts)}")


def question(record: Record, outputs: int) -> tuple[Node, list[slice]]:
    """The rows that a sample's proof is about, as a node, and those of each conjunction.

    Of a label they are the margins to all others, each by itself.
    """
    about = record.about["property"]
    if "label" in about:
        label = about["label"]
        need(type(label) is int and 0 <= label < outputs, "the label is none of the network's")
        rows = np.delete(np.eye(outputs)[label] - np.eye(outputs), label, 0)
        offsets, sizes = np.zeros(len(rows)), [1] * len(rows)
    else:
        rows, offsets, sizes = record.array("rows", "f", 2), record.array("offsets", "f"), about["conjunctions"]
        need(rows.shape[1] == outputs and len(offsets) == len(rows) == sum(sizes), "the rows do not fit the network")
        need(min(sizes) > 0, "a conjunction has no row")
    ends = np.cumsum([0, *sizes]).tolist()
    parts = [slice(first, last) for first, last in pairwise(ends)]
    return Node(len(rows), [], [Dense(rows)], offsets, np.zeros(len(rows)), 0.0, None), parts


class Trees:
    """Trees one after the other: -1 for a leaf; or a unit, the tree where it is above its kink, and that below."""

    def __init__(self, record: Record, name: str, trees: int, units: int) -> None:
        self.multipliers, self.slopes = record.array(f"{name}.multipliers", "f"), record.array(f"{name}.slopes", "u", 2)
        """Of the splits on the way to each leaf; of each leaf and unit, in 255ths."""
        owner, ends, taken, turns, done = [], [0], [], [], 0
        path: list[int] = []
        signs: list[int] = []
        for unit in record.array(f"{name}.tree", "i").tolist():
            need(-1 <= unit < units and done < trees, f"{name}: a split at no unit, or a tree that was not asked for")
            if unit >= 0:
                path.append(unit)
                signs.append(1)
                continue
            taken += path
            turns += signs
            need(len(taken) <= len(self.multipliers), f"{name}: a split has no multiplier")
            owner.append(done)
            ends.append(len(taken))
            while signs and signs[-1] < 0:
                signs.pop()
                path.pop()
            if signs:
                signs[-1] = -1
            else:
                done += 1
        need(not signs and done == trees, f"{name}: a half is missing, so that the tree does not cover the box")
        need(self.slopes.shape == (len(owner), units), f"{name}: leaves do not have their slopes")
        need(len(self.multipliers) == len(taken), f"{name}: there are more multipliers than splits")
        need((self.multipliers >= 0).all(), f"{name}: a multiplier is below zero")
        self.owner, self.ends = np.array(owner, int), np.array(ends, int)
        self.units, self.signs = np.array(taken, int), np.array(turns, float)

    def duals(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Slopes, signs and multipliers of some leaves, each (leaves, units)."""
        start, stop = self.ends[first], self.ends[last]
        at = np.repeat(np.arange(last - first), np.diff(self.ends[first : last + 1])), self.units[start:stop]
        signs, multipliers = np.zeros((2, last - first, self.slopes.shape[1]))
        signs[at], multipliers[at] = self.signs[start:stop], self.multipliers[start:stop]
        return self.slopes[first:last] / 255.0, signs, multipliers


class Bend(NamedTuple):
    """The lines of a node with a kink, with h = relu(z - kink) and w = z - kink: `least w .. most w <= h` at units."""

    units: np.ndarray
    first: int
    """The place of its first unit among all."""
    active: np.ndarray
    """1 for entries that are above the kink and are no units; the others are below it."""
    least: np.ndarray
    most: np.ndarray
    chord: np.ndarray
    top: np.ndarray
    """`h <= chord w + top`."""
    size: np.ndarray
    """The largest |w|, or more."""


class Relaxation:
    """The intervals of all nodes over a box, one by one, and lower bounds of rows of them.

    The intervals of `known` hold already.
    """

    def __init__(self, nodes: list[Node], lower: np.ndarray, upper: np.ndarray, known: Relaxation | None) -> None:
        self.nodes, self.known, self.units = nodes, known, 0
        self.low, self.up, self.bends = [lower], [upper], dict[int, Bend]()
        self.errors = [np.zeros(nodes[0].size)]
        """How far the sums for a node may be off at coefficients of 1."""
        terms = max(max(node.size, *(m.terms for m in node.maps), 1) for node in nodes) + len(nodes) + 64
        self.gamma = 8 * terms * 2.0**-53
        self.batch = max(1, AT_ONCE // max(max(node.size, *(m.room for m in node.maps), 1) for node in nodes))

    def step(self, k: int, units: np.ndarray) -> None:
        """Adds the interval of the next node; `units` are those of its entries that have slopes."""
        node = self.nodes[k]
        before = [(self.low[j], self.up[j]) for j in node.inputs]
        largest = [np.maximum(np.abs(low), np.abs(up)) for low, up in before]
        if node.bend:
            slope, value, kink, change = node.bend
            size = (abs(slope) + abs(change)) * (largest[0] + abs(kink)) + abs(value)
            points = np.stack([*before[0], np.clip(kink, *before[0])])
            found = slope * points + value + change * np.maximum(points - kink, 0)
            error, low, up = self.gamma * size + TINY, found.min(0), found.max(0)
            self._open(k, *before[0], kink, units)
        else:
            inputs = list(zip(node.maps, before, largest, strict=True))
            size = np.abs(node.offset) + sum(m.forward(most, True) for m, _, most in inputs)
            error = ((self.gamma + node.spread) * size + node.slack) * (1 + 1e-9) + TINY
            middle = node.offset + sum(m.forward(low / 2 + up / 2) for m, (low, up), _ in inputs)
            radius = sum(m.forward(up / 2 - low / 2, True) for m, (low, up), _ in inputs)
            low, up = middle - radius, middle + radius
        low, up = low - error, up + error
        if self.known is not None:
            low, up = np.maximum(low, self.known.low[k]), np.minimum(up, self.known.up[k])
        need((np.maximum(np.abs(low), np.abs(up)) <= LIMIT).all(), f"node {k} has no finite interval")
        self.low.append(low)
        self.up.append(up)
        self.errors.append(error)

    def _open(self, k: int, low: np.ndarray, up: np.ndarray, kink: float, units: np.ndarray) -> None:
        active, passing = (low >= kink).astype(float), (low < kink) & (up > kink)
        below, above = np.nextafter(low - kink, -np.inf)[units], np.nextafter(up - kink, np.inf)[units]
        opened, least, most = passing[units], active[units], (active + passing)[units]
        passing[units], active[units] = False, 0
        need(not passing.any(), f"entry {passing.argmax()} of node {k} passes its kink and is no unit")
        chord = np.where(opened, above / np.where(opened, above - below, 1), least)
        top = np.maximum(-chord * below, above - chord * above) + 2.0**-50 * (above - below) + TINY
        size = np.maximum(np.abs(low), np.abs(up)) + abs(kink)
        self.bends[k] = Bend(units, self.units, active, least, most, chord, np.where(opened, top, 0), size)
        self.units += len(units)

    def lower(
        self, k: int, rows: np.ndarray, slopes: np.ndarray, signs: np.ndarray, multipliers: np.ndarray
    ) -> np.ndarray:
        """Lower bounds of rows of coefficients of node k, where units have the signs; tensors are (rows, ...)."""
        found, mass, todo = np.zeros(len(rows)), np.zeros(len(rows)), {k: rows}
        for index in range(k, 0, -1):
            if (a := todo.pop(index, None)) is None:
                continue
            node = self.nodes[index]
            mass += np.abs(a) @ self.errors[index]
            if node.bend:
                own = slice(self.bends[index].first, self.bends[index].first + len(self.bends[index].units))
                given = slopes[:, own], signs[:, own], multipliers[:, own]
                back, constant, error = self._bent(index, a, *given)
                found, mass, parts = found + constant, mass + error, [back]
            else:
                found, parts = found + a @ node.offset, [m.back(a) for m in node.maps]
            for j, part in zip(node.inputs, parts, strict=True):
                todo[j] = todo[j] + part if j in todo else part
        a = todo.get(0, np.zeros((len(rows), self.nodes[0].size)))
        middle, radius = self.low[0] / 2 + self.up[0] / 2, self.up[0] / 2 - self.low[0] / 2
        mass += self.gamma * (np.abs(a) @ (np.abs(middle) + radius))
        least: np.ndarray = found + a @ middle - np.abs(a) @ radius - mass * (1 + 1e-9) - TINY
        return least

    def _bent(
        self, k: int, a: np.ndarray, slopes: np.ndarray, signs: np.ndarray, multipliers: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Coefficients of a node with a kink as those of its input, with the constants and errors of their lines."""
        slope, value, kink, change = self.nodes[k].bend or (0.0, 0.0, 0.0, 0.0)
        bend, scaled = self.bends[k], a if self.nodes[k].bend[3] == 1 else a * change  # type: ignore[index]
        unit, back = scaled[:, bend.units], scaled * bend.active
        slopes, chord, top = np.clip(slopes, bend.least, bend.most), bend.chord, bend.top
        error = np.zeros(len(a))
        if signs.any():
            free, above = signs == 0, signs > 0
            slopes, chord, top = np.where(free, slopes, above), chord * free + above, top * free
            error += self.gamma * (multipliers @ bend.size[bend.units])
        tops = (np.minimum(unit, 0) * top).sum(1)
        back[:, bend.units] = unit * np.where(unit < 0, chord, slopes) - signs * multipliers
        constant = tops - kink * back.sum(1) + value * a.sum(1)
        return (back + slope * a if slope else back), constant, error - self.gamma * tops

    def least(self, k: int, rows: Callable[[slice], np.ndarray], trees: Trees, count: int) -> np.ndarray:
        """For each tree a lower bound of its row of node k; `rows` gives those of some leaves."""
        best = np.full(count, np.inf)
        for first in range(0, len(trees.owner), self.batch):
            part = slice(first, min(first + self.batch, len(trees.owner)))
            found = self.lower(k, rows(part), *trees.duals(part.start, part.stop))
            need(not np.isnan(found).any(), "a bound is no number")
            np.minimum.at(best, trees.owner[part], found)
        return best

    def claim(self, k: int, record: Record, name: str) -> None:
        """Replaces a node's interval, at some entries, by what is claimed: lower ends first, then upper ones.

        The interval itself proves a claim, or a tree of its own.
        """
        size, entries = self.nodes[k].size, record.indices(f"{name}.entries", self.nodes[k].size)
        low, up = record.array(f"{name}.low", "f"), record.array(f"{name}.up", "f")
        own, count = record.array(f"{name}.own", "u"), len(entries)
        need(
            len(low) == len(up) == count and len(own) == 2 * count,
            f"{name}: there are more or fewer claims than entries",
        )
        need((low <= up).all(), f"{name}: a claim is empty")
        at, proved = np.flatnonzero(own), np.concatenate([self.low[k][entries], -self.up[k][entries]])
        if len(at):
            trees = Trees(record, name, len(at), self.units)

            def rows(part: slice) -> np.ndarray:
                which = at[trees.owner[part]]
                found = np.zeros((len(which), size))
                found[np.arange(len(which)), entries[which % count]] = np.where(which < count, 1.0, -1.0)
                return found

            proved[at] = np.maximum(proved[at], self.least(k, rows, trees, len(at)))
        need((proved >= np.concatenate([low, -up])).all(), f"{name}: a claim is tighter than what its duals prove")
        self.low[k], self.up[k] = self.low[k].copy(), self.up[k].copy()
        self.low[k][entries], self.up[k][entries] = low, up
