"""Checks proofs that halve the box of inputs until, on each part, what is asked of the network holds.

Those of chains of affine nodes and ReLUs with few inputs that vary. A proof is a list of boxes: each is halved along
an input, and its halves are two others of the list, or it is not. Nothing else counts: every box is bounded here once
more, within the bounds of its parent, and one that is not halved has to be excluded by

- rows that are all above zero, where each is a conjunction of its own;
- a row, or a combination of rows with weights >= 0, that is above zero, where several rows are one conjunction;
- bounds on a neuron that contradict each other, which no input has then.

What lines of rows exclude may be cut off a box before it is halved, by as much as they are found to exclude here.

On a box a ReLU lies in a strip around a line. With `slope z + half` up to `half` for every ReLU before it, a neuron is
`a x + b` up to `off`. Sizes are what the sums that make bounds come to with all of their terms positive: a sum of
products, in any order, is off by at most gamma times that.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from robust_plugins.proof_check.reading import LIMIT, Node, Record, need

TINY = 1e-180
"""More than all that can underflow, times the largest numbers."""
AT_ONCE, BOXES = 2**22, 512
"""Numbers in the largest array of a batch; boxes in it at most."""
MATRIX = 2**26
"""Entries of a matrix, at most."""
RELU = (0.0, 0.0, 0.0, 1.0)


class Layer(NamedTuple):
    """An affine function, and whether its entries go through ReLUs then."""

    weight: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    bends: bool


class Strip(NamedTuple):
    """ReLUs, (boxes, neurons), lie between `slope z` and `slope z + over`, and above `flat z`."""

    slope: np.ndarray
    over: np.ndarray
    flat: np.ndarray


class Boxes(NamedTuple):
    """Boxes of the inputs that vary, a row for each."""

    number: np.ndarray
    question: np.ndarray
    low: np.ndarray
    up: np.ndarray
    least: np.ndarray
    """Bounds on the inputs of all ReLUs, from their parents; with `most`."""
    most: np.ndarray
    proved: np.ndarray
    """Lower bounds of rows that are conjunctions of their own, from their parents."""

    def take(self, at: Any) -> Boxes:
        """Some of them."""
        return Boxes(*(t[at] for t in self))


class Proof:
    """The list of boxes of a record, and what bounds them."""

    def __init__(self, record: Record, nodes: list[Node], rows: Node, parts: list[slice]) -> None:
        lower, upper = record.array("lower", "f"), record.array("upper", "f")
        self.vary = np.flatnonzero(upper > lower)
        self.lower, self.upper = lower[self.vary], upper[self.vary]
        count = len(self.vary)
        need(count > 0, "no input varies")
        terms = sum(node.size for node in nodes) + rows.size
        least = 8 * (terms + 64 * len(nodes) + 64) * 2.0**-53 + 2 * sum(node.spread for node in nodes)
        (self.gamma,) = record.array("boxes.gamma", "f")  # more takes off more; as much as the search, the same lines
        need(self.gamma >= least, "errors of rounding are taken to be less than they are")
        self.layers = self._layers(nodes, lower)
        sizes = [len(layer.offset) * layer.bends for layer in self.layers]
        self.ends = np.cumsum([0, *sizes]).tolist()
        # A conjunction of fewer rows than others has its last one several times.
        most = max(part.stop - part.start for part in parts)
        picked = np.stack([np.minimum(np.arange(most) + part.start, part.stop - 1) for part in parts])
        self.joint = most == 1 and len(parts) > 1
        picked = picked.reshape(1, -1) if self.joint else picked
        self.rows, self.offsets = rows.maps[0].weight[picked], rows.offset[picked]
        self.split, self.child = record.array("boxes.split", "i"), record.array("boxes.child", "i").astype(int)
        total = len(self.split)
        need(len(self.child) == total >= len(picked), "boxes are missing")
        need((self.split < count).all(), "a box is halved along no input that varies")
        self.cut, self.weighted = record.indices("boxes.cut", total), record.indices("boxes.weighted", total)
        self.low, self.up = record.array("boxes.low", "f", 2), record.array("boxes.up", "f", 2)
        self.weights = record.array("boxes.weights", "f", 2)
        need(self.low.shape == self.up.shape == (len(self.cut), count), "cuts do not fit their boxes")
        need(self.weights.shape == (len(self.weighted), 2 * self.rows.shape[1]), "weights do not fit their rows")
        need((self.weights >= 0).all(), "a weight is below zero")
        widest = max(max(layer.weight.shape) for layer in self.layers)
        self.batch = max(1, min(BOXES, AT_ONCE // widest**2))

    def _layers(self, nodes: list[Node], lower: np.ndarray) -> list[Layer]:
        layers: list[Layer] = []
        for k, node in enumerate(nodes[1:], start=1):
            need(node.inputs == [k - 1], f"node {k} is not the next one of a chain")
            if node.bend:
                need(tuple(node.bend) == RELU and layers, f"node {k} is no ReLU behind an affine node")
                if layers[-1].bends:
                    none = np.zeros(node.size)
                    layers.append(Layer(np.eye(node.size), none, none, True))
                layers[-1] = layers[-1]._replace(bends=True)
                continue
            need(node.size * nodes[k - 1].size <= MATRIX, f"node {k} is too large to be a matrix")
            weight, offset = node.maps[0].back(np.eye(node.size)), node.offset
            size = np.abs(offset) + node.slack / self.gamma
            if not layers:
                fixed = np.delete(np.arange(len(lower)), self.vary)
                offset, size = offset + weight[:, fixed] @ lower[fixed], size + np.abs(weight[:, fixed] @ lower[fixed])
                weight = weight[:, self.vary]
            layers.append(Layer(weight, offset, size, False))
        need(layers, "the network has no layers")
        return layers

    def check(self) -> None:
        """Raises ProofError where some box is neither halved nor excluded."""
        count, wide, joint = len(self.rows), (len(self.rows), self.ends[-1]), self.rows.shape[1] * self.joint
        ends = np.tile(self.lower, (count, 1)), np.tile(self.upper, (count, 1))
        whole = np.full(wide, -np.inf), np.full(wide, np.inf), np.full((count, joint), -np.inf)
        stack, seen = [Boxes(np.arange(count), np.arange(count), *ends, *whole)], np.zeros(len(self.split), bool)
        while stack:
            boxes = stack.pop()
            while stack and len(boxes.number) < self.batch:
                boxes = Boxes(*(np.concatenate(pair) for pair in zip(boxes, stack.pop(), strict=True)))
            if len(boxes.number) > self.batch:
                stack.append(boxes.take(slice(self.batch, None)))
                boxes = boxes.take(slice(self.batch))
            need(not seen[boxes.number].any() and len(np.unique(boxes.number)) == len(boxes.number), "a box twice")
            seen[boxes.number] = True
            boxes = self._left(boxes)
            axis, child = self.split[boxes.number], self.child[boxes.number]
            bad = axis < 0
            need(not bad.any(), f"box {boxes.number[bad][:1]} is neither halved nor excluded")
            need((child > 0).all() and (child + 1 < len(self.split)).all(), "a half is missing")
            if len(axis):
                at = np.arange(len(axis)), axis
                middle = boxes.low[at] / 2 + boxes.up[at] / 2
                below, above = boxes.up.copy(), boxes.low.copy()
                below[at] = above[at] = middle
                stack.append(boxes._replace(number=child, up=below))
                stack.append(boxes._replace(number=child + 1, low=above))

    def _left(self, boxes: Boxes) -> Boxes:
        """Those that are not excluded, with better bounds and without what is cut off."""
        centre, radius = boxes.low / 2 + boxes.up / 2, boxes.up / 2 - boxes.low / 2
        a, b, least, most = self._lines(boxes, centre, radius)
        lowest = b + _dot(a, centre) - _dot(np.abs(a), radius)
        left, half = ~(least > most).any(1), lowest.shape[1] // 2
        proved = boxes.proved
        if self.joint:
            proved = np.maximum(proved, np.maximum(lowest[:, :half], lowest[:, half:]))
            left &= ~(proved.min(1) > 0)
        else:
            left &= ~(lowest.max(1) > 0) & ~self._combined(boxes.number, a, b, centre, radius)
        boxes = boxes._replace(least=least, most=most, proved=proved).take(left)
        return boxes if self.joint else self._cut(boxes, a[left], b[left])

    def _lines(
        self, boxes: Boxes, centre: np.ndarray, radius: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Lower lines `a x + b` of the rows, and bounds on all inputs of ReLUs."""
        least, most, size = boxes.least.copy(), boxes.most.copy(), np.abs(centre) + radius
        strips: list[Strip | None] = []
        for k, layer in enumerate(self.layers):
            size = size @ np.abs(layer.weight).T + layer.size
            if not layer.bends:
                strips.append(None)
                continue
            low, up = (side[:, self.ends[k] : self.ends[k + 1]] for side in (least, most))
            opened = (low < 0) & (up > 0)
            count = int(opened.sum(1).max(initial=0))
            if count:
                at = np.argsort(~opened, 1, kind="stable")[:, :count]
                a, b, off = self._neurons(k, at, strips)
                middle = b + _dot(a, centre)
                spread = off + self.gamma * np.take_along_axis(size, at, 1) + _dot(np.abs(a), radius) + TINY
                for side, found, better in ((low, middle - spread, np.maximum), (up, middle + spread, np.minimum)):
                    np.put_along_axis(side, at, better(np.take_along_axis(side, at, 1), found), 1)
            need((np.maximum(np.abs(low), np.abs(up)) <= LIMIT).all(), "a neuron has no finite bounds")
            below, above = np.minimum(low, 0), np.maximum(up, 0)
            slope = above / np.maximum(above - below, 1e-300)
            over, flat = -below * slope, (above > -below * (1 + 2.0**-20)).astype(float)
            strips.append(Strip(slope, over, flat))
            size = np.maximum(slope, flat) * size + over
        rows, offsets = self.rows[boxes.question], self.offsets[boxes.question]
        error = self.gamma * (_dot(np.abs(rows), size) + np.abs(offsets)) + TINY
        a, b, count = np.concatenate([rows, rows], 1), np.concatenate([offsets, offsets], 1), rows.shape[1]
        for layer, strip in zip(self.layers[::-1], strips[::-1], strict=True):
            if strip is not None:
                b = b + _dot(np.minimum(a, 0), strip.over)
                first = np.where(a[:, :count] > 0, strip.flat[:, None], strip.slope[:, None])
                a = np.concatenate([a[:, :count] * first, a[:, count:] * strip.slope[:, None]], 1)
            b, a = b + a @ layer.offset, _times(a, layer.weight)
        return a, b - np.concatenate([error, error], 1), least, most

    def _neurons(self, k: int, at: np.ndarray, strips: list[Strip | None]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Some neurons of a layer as `a x + b` up to `off`."""
        a, b = self.layers[k].weight[at], self.layers[k].offset[at]
        off = np.zeros(at.shape)
        for layer, strip in zip(self.layers[:k][::-1], strips[::-1], strict=True):
            if strip is not None:
                half = strip.over / 2
                b, off = b + _dot(a, half), off + _dot(np.abs(a), half)
                a *= strip.slope[:, None]
            b, a = b + a @ layer.offset, _times(a, layer.weight)
        return a, b, off

    def _combined(
        self, number: np.ndarray, a: np.ndarray, b: np.ndarray, centre: np.ndarray, radius: np.ndarray
    ) -> np.ndarray:
        """Which boxes the combinations of lines that the proof gives for them exclude."""
        found = np.zeros(len(number), bool)
        at = np.flatnonzero(np.isin(number, self.weighted))
        if len(at):
            weights, a, b = self.weights[np.searchsorted(self.weighted, number[at])], a[at], b[at]
            line = _dot(np.swapaxes(a, 1, 2), weights)
            value = (weights * b).sum(1) + (line * centre[at]).sum(1) - (np.abs(line) * radius[at]).sum(1)
            size = (weights * (np.abs(b) + _dot(np.abs(a), np.abs(centre[at]) + radius[at]))).sum(1)
            found[at] = value - self.gamma * size > TINY
        return found

    def _cut(self, boxes: Boxes, a: np.ndarray, b: np.ndarray) -> Boxes:
        """The boxes are cut as the proof says where the lines exclude all else."""
        low, up, left = boxes.low, boxes.up, np.ones(len(boxes.number), bool)
        for _ in range(2):
            centre, radius = low / 2 + up / 2, up / 2 - low / 2
            lowest = b + _dot(a, centre) - _dot(np.abs(a), radius)
            # How far an input may be from the end at which the row is lowest.
            with np.errstate(divide="ignore", invalid="ignore"):
                room = np.maximum(-lowest, 0)[:, :, None] / np.abs(a) * (1 + 1e-9)
            room = np.where(np.abs(a) > 1e-9, room, np.inf) + 1e-12 * (1 + np.abs(low) + np.abs(up))[:, None]
            shorter = np.minimum(up, np.where(a > 0, low[:, None] + room, np.inf).min(1))
            longer = np.maximum(low, np.where(a < 0, up[:, None] - room, -np.inf).max(1))
            left &= (longer <= shorter).all(1) & ~(lowest > 0).any(1)
            low, up = np.minimum(longer, shorter), np.maximum(longer, shorter)
        boxes, low, up = boxes.take(left), low[left], up[left]
        at = np.flatnonzero(np.isin(boxes.number, self.cut))
        place = np.searchsorted(self.cut, boxes.number[at])
        kept = boxes.low.copy(), boxes.up.copy()
        need(
            (self.low[place] <= low[at]).all() and (self.up[place] >= up[at]).all(),
            "more is cut off a box than its rows exclude",
        )
        kept[0][at], kept[1][at] = np.maximum(kept[0][at], self.low[place]), np.minimum(kept[1][at], self.up[place])
        return boxes._replace(low=kept[0], up=kept[1])


def _dot(matrices: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """The product of each matrix and its vector."""
    return np.asarray(np.matmul(matrices, vectors[:, :, None]))[:, :, 0]


def _times(rows: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return np.asarray((rows.reshape(-1, rows.shape[2]) @ matrix).reshape(*rows.shape[:2], matrix.shape[1]))
