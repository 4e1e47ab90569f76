"""`split_inputs`: a chain of layers with few inputs is decided by halving boxes of inputs.

A conjunction is excluded from a box by its best convex combination of rows; what its rows exclude is cut off the box
before it is halved, along the input that matters most to the rows and to the neurons that are open still. Where many
boxes are needed, ReLUs are bounded more closely, and their slopes are optimised together with the combination.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from robust_plugins.decisions.verifier.attack import Confirm
from robust_plugins.decisions.verifier.boxes import Bounded, Bounds, Boxes, applied
from robust_plugins.decisions.verifier.chains import Chain
from robust_plugins.decisions.verifier.clock import Clock
from robust_plugins.decisions.verifier.combining import certain, combined, least_of, lowest_corner, programme
from robust_plugins.decisions.verifier.linear import solvable
from robust_plugins.decisions.verifier.proofs.boxes import BoxNotes
from robust_plugins.decisions.verifier.properties import Unsafe
from robust_plugins.decisions.verifier.search import Found
from robust_plugins.decisions.verifier.slopes import optimised

BATCH = 512
"""Boxes that are bounded at once."""
COMBINATIONS = 12
"""Steps towards a conjunction's best combination of rows."""
LAST = 30
"""The same where no neuron is open, so that this combination decides."""
FIRST = 2**9
"""After so many boxes each is worth more effort: until then simple bounds may well do."""
SLOPES = 6
"""Steps towards the best slopes of a box's ReLUs then,"""
PAYS = 0.25
"""and closer bounds of all its ReLUs, while they exclude such a share of the boxes; else tried every so often."""
STORED = 2**11
"""With more open boxes than that, the last ones are split first, so that they need no more memory."""
CLOSEST, EVERY = 64, 8
"""So many of the inputs that are closest to the unsafe set are moved towards it, in every so manieth batch of boxes."""
DEEPENED = 8
"""How many inputs are moved further into the unsafe set, where the model does not confirm them as they are."""


def split_inputs(
    chain: Chain,
    unsafe: Unsafe,
    confirm: Confirm,
    clock: Clock,
    tell: Callable[[int, int, float], None] = lambda domains, open_domains, bound: None,
    notes: BoxNotes | None = None,
) -> Found:
    """Whether the chain maps some input of its box into the unsafe set.

    `unsat` holds in real arithmetic: bounds are computed in double precision, and what that can be off by is bounded
    too, box by box, and taken off. `confirm` judges the witness of `sat`, (1, inputs), all of them and flattened.
    `unknown`: inputs reach the set in double precision, or up to its rounding, and none that `confirm` accepts was
    found. With `notes`, what a proof needs is written down, of ReLU networks: boxes have their simple bounds alone
    then.
    """
    search = _Search(chain, unsafe, confirm, notes)
    stack = [search.root()]
    while stack:
        if clock.left <= 0:
            bounds = search.bounds(Boxes.cat(stack))
            return Found("timeout", None, bounds, search.count, "the time is used up")
        boxes = _next(stack)
        witness, children = search.step(boxes)
        if witness is not None:
            return Found("sat", witness, torch.full_like(search.least, -torch.inf), search.count)
        if children is not None:
            stack.append(children)
        tell(search.count, sum(map(len, stack)), float(min((b.proved.min() for b in stack), default=0.0)))
    if search.aside:
        message = "the margin is zero up to rounding: neither a proof nor a witness holds"
        return Found("unknown", None, search.least, search.count, message)
    if notes is not None:
        notes.end(search.made, len(chain.lower), 2 * search.rows.shape[1], search.bounding.gamma)
    return Found("unsat", None, search.least.clamp(min=0).masked_fill(search.least == torch.inf, 0.0), search.count)


def _next(stack: list[Boxes]) -> Boxes:
    if sum(map(len, stack)) < STORED:
        stack.sort(key=lambda boxes: -float(boxes.proved.amin(1).mean()))
    boxes = stack.pop()
    while stack and len(boxes) < BATCH:
        boxes = Boxes.cat([boxes, stack.pop()])
    if len(boxes) > BATCH:
        stack.append(boxes.take(slice(BATCH, None)))
        boxes = boxes.take(slice(BATCH))
    return boxes


class _Left(NamedTuple):
    """Boxes that are not excluded."""

    found: Bounded
    a: Tensor
    b: Tensor
    """Lines `a x + b` below the rows."""
    weights: Tensor
    """Of these lines, where they matter together."""
    points: list[Tensor]
    """Inputs in each box that may be witnesses."""


class _Search:
    def __init__(self, chain: Chain, unsafe: Unsafe, confirm: Confirm, notes: BoxNotes | None) -> None:
        self.chain, self.confirm, self.count, self.aside, self.deepened = chain, confirm, 0, False, 0
        self.notes, self.batches = notes, 0
        sizes = unsafe.member.sum(1).long()
        # Conjunctions of one row each are one question: a box is done when all of these rows are positive.
        self.joint = len(sizes) > 1 and int(sizes.max()) == 1
        at = [part.nonzero().flatten() for part in unsafe.member]
        if self.joint:
            at = [torch.cat(at)]
        most = max(map(len, at))
        picked = torch.stack([part[torch.arange(most).clamp(max=len(part) - 1)] for part in at])
        self.rows, self.offsets = unsafe.weights[picked], unsafe.offsets[picked]
        self.bounding = Bounds(chain, self.rows.shape[2], 1.0 if notes is None else notes.room)
        self.gain = 1.0
        """The share of boxes that closer bounds excluded last."""
        self.made = len(self.rows)
        """Boxes that have a number."""
        self.least = torch.full((len(sizes),), torch.inf, dtype=torch.float64)
        """The least bounds of boxes that were closed or set aside."""

    def root(self) -> Boxes:
        """The whole box, for every question."""
        count = len(self.rows)
        wide = torch.full((count, self.bounding.neurons), torch.inf, dtype=torch.float64)
        return Boxes(
            torch.arange(count), self.chain.lower.expand(count, -1), self.chain.upper.expand(count, -1),
            torch.arange(count), -wide, wide,
            wide.new_full((count, self.rows.shape[1] if self.joint else 1), -torch.inf),
        )  # fmt: skip

    def bounds(self, boxes: Boxes) -> Tensor:
        """The bound proved for every conjunction when these boxes are open."""
        if self.joint:
            return torch.minimum(boxes.proved.amin(0), self.least) if len(boxes) else self.least
        return self.least.scatter_reduce(0, boxes.asked, boxes.proved[:, 0], "amin")

    def step(self, boxes: Boxes) -> tuple[Tensor | None, Boxes | None]:
        """A witness; or the parts of the boxes that are not excluded."""
        self.count += len(boxes)
        left = self._left(self.bounding.bounded(boxes))
        if self.notes is None and self.chain.bends and self.bounding.neurons and self.count > FIRST:
            left = self._optimised(left)
            before = len(left.found.boxes)
            if before and (self.gain >= PAYS or self.batches % EVERY == 0):
                left = self._optimised(self._left(self.bounding.closer(left.found)))
                self.gain = 1 - len(left.found.boxes) / before
        return self._parts(left) if len(left.found.boxes) else (None, None)

    def _left(self, found: Bounded) -> _Left:
        """The boxes that their rows do not exclude."""
        boxes = found.boxes
        rows, offsets = self.rows[boxes.asked], self.offsets[boxes.asked]
        a, b = self.bounding.rows(found, rows, offsets)
        size = applied(rows.abs(), found.size) + offsets.abs()
        b = b - (1 if self.notes is None else 2) * self.bounding.gamma * size.repeat(1, 2)
        least = least_of(a, b, boxes)
        count = rows.shape[1]
        best = torch.maximum(least[:, :count], least[:, count:])
        better = best if self.joint else best.amax(1, keepdim=True)
        boxes = replace(boxes, proved=torch.maximum(boxes.proved, better))
        # Bounds that contradict each other are those of no input.
        none = (boxes.low > boxes.up + (0 if self.notes is None else self.notes.spared)).any(1)
        left = ~((boxes.proved.amin(1) > 0) | none)
        self.least = self.bounds(boxes.take(~left & ~none))
        at = left.nonzero().flatten()
        found, a, b, least = found._replace(boxes=boxes).select(at), a[at], b[at], least[at]
        if not len(at):
            return _Left(found, a, b, b, [])
        row = least.argmin(1) if self.joint else least.argmax(1)
        lowest = lowest_corner(a[torch.arange(len(row)), row], found.boxes)
        if not self.joint:
            return self._combining(found, a, b, lowest)
        open_rows = (least <= 0) & ~(found.boxes.proved > 0).repeat(1, 2)
        return _Left(found, a, b, open_rows.double(), [lowest])

    def _combining(self, found: Bounded, a: Tensor, b: Tensor, lowest: Tensor) -> _Left:
        """The boxes that no combination of the rows excludes."""
        value, weights, between = combined(a, b, found.boxes, COMBINATIONS)
        open_neurons = self.bounding.open(found.boxes).sum(1)
        last = ((open_neurons == 0) & ~(value > 0)).nonzero().flatten()
        if len(last):
            value[last], weights[last], between[last] = self._last(a[last], b[last], found.boxes.take(last))
        if self.notes is not None:
            self.notes.combine(found.boxes.number, weights, value, b)
        at = (~(value > 0)).nonzero().flatten()
        boxes = found.boxes.take(at)
        if len(at) < len(value):
            self.least = self.least.clamp(max=0)  # a combination says nothing about the rows' own size
        of_rows = value[at] / weights[at].sum(1).clamp(min=1e-300)
        boxes = replace(boxes, proved=torch.maximum(boxes.proved, of_rows.unsqueeze(1)))
        return _Left(found.select(at)._replace(boxes=boxes), a[at], b[at], weights[at], [lowest[at], between[at]])

    def _optimised(self, left: _Left) -> _Left:
        """The boxes that no choice of slopes excludes that is found."""
        found, weights = left.found, left.weights
        if not len(found.boxes):
            return left
        count = weights.shape[1] // 2
        begun = weights[:, :count] + weights[:, count:]
        proved = found.boxes.proved.clone()
        if self.joint:  # each row by itself
            at, row = (~(proved > 0)).nonzero().unbind(1)
            rows, offsets = self.rows[0, row].unsqueeze(1), self.offsets[0, row].unsqueeze(1)
            lines = optimised(self.bounding, found.select(at), rows, offsets, torch.ones_like(offsets), SLOPES)
            proved[at, row] = torch.maximum(proved[at, row], lines.value)
        else:
            rows, offsets = self.rows[found.boxes.asked], self.offsets[found.boxes.asked]
            lines = optimised(self.bounding, found, rows, offsets, begun, SLOPES)
            proved[:, 0] = torch.maximum(proved[:, 0], lines.value)
        found = found._replace(boxes=replace(found.boxes, proved=proved))
        closed = (proved > 0).all(1)
        self.least = self.bounds(found.boxes.take(closed))
        at = (~closed).nonzero().flatten()
        a, b, weights, points = left.a[at], left.b[at], weights[at], [point[at] for point in left.points]
        found = found.select(at)
        if self.joint:
            weights = weights * ~(found.boxes.proved > 0).repeat(1, 2)
        else:  # the best line is what matters from here on
            a, b = torch.cat([lines.a[at].unsqueeze(1), a], 1), torch.cat([lines.b[at].unsqueeze(1), b], 1)
            weights = torch.zeros_like(b)
            weights[:, 0] = 1
            points.append(lowest_corner(lines.a[at], found.boxes))
        return _Left(found, a, b, weights, points)

    def _last(self, a: Tensor, b: Tensor, boxes: Boxes) -> tuple[Tensor, Tensor, Tensor]:
        """The same where the chain is linear: what a longer ascent leaves open, linear programmes decide."""
        value, weights, between = combined(a, b, boxes, LAST)
        for i in (~(value > 0)).nonzero().flatten().tolist() if solvable() else ():
            one = boxes.take(slice(i, i + 1))
            best, point = programme(a[i], b[i], one)
            found = certain(best, a[i : i + 1], b[i : i + 1], applied(a[i : i + 1].mT, best), one.centre, one.radius)
            between[i] = point
            if float(found) > float(value[i]):
                value[i], weights[i] = found[0], best[0]
        return value, weights, between

    def _parts(self, left_over: _Left) -> tuple[Tensor | None, Boxes | None]:
        found, a, b, weights, points = left_over
        boxes = found.boxes
        witness, left = self._witness(found, [*points, boxes.centre])
        if witness is not None:
            return witness, None
        if not self.joint:
            self.least = self.least.clamp(max=0)  # of what is cut off, no more is known
            whole, (boxes, inside) = boxes, _cut(boxes, a, b, 0.0 if self.notes is None else self.notes.spared)
            left &= inside
            if self.notes is not None:
                self.notes.cut(whole, boxes)
        narrow = left & ~self._halvable(boxes).any(1)
        if bool(narrow.any()):
            left, self.aside = left & ~narrow, True
            self.least = self.bounds(boxes.take(narrow))
        at = left.nonzero().flatten()
        if not len(at):
            return None, None
        found, a, weights = found._replace(boxes=boxes).select(at), a[at], weights[at]
        slopes = torch.einsum("br,bri->bi", weights, a.abs())
        return None, self._halves(found, slopes)

    def _halvable(self, boxes: Boxes) -> Tensor:
        """Which sides of boxes are wide enough that a half of one differs by more than rounding, (boxes, inputs)."""
        lower, upper = boxes.lower, boxes.upper
        least = 2.0**-50 * torch.maximum(lower.abs(), upper.abs()) + 2.0**-60 * (self.chain.upper - self.chain.lower)
        return upper - lower > least

    def _halves(self, found: Bounded, slopes: Tensor) -> Boxes:
        """Both halves, along the input that matters most to the rows and to the open neurons of each layer."""
        boxes = found.boxes
        score = slopes / slopes.sum(1, keepdim=True).clamp(min=1e-9)
        opened = self.bounding.open(boxes)
        for start, known in zip(self.bounding.starts, found.middles, strict=False):
            if known is not None:
                part = applied(known.a.abs().mT, opened.gather(1, start + known.at).double())
                score = score + part / part.sum(1, keepdim=True).clamp(min=1e-9)
        score = (score * (boxes.upper - boxes.lower)).masked_fill(~self._halvable(boxes), -1.0)
        at = score.argmax(1, keepdim=True)
        middle = boxes.centre.gather(1, at)
        first = self._numbered(len(boxes))
        if self.notes is not None:
            self.notes.halve(boxes.number, at.flatten(), first)
        below = replace(boxes, upper=boxes.upper.scatter(1, at, middle), number=first)
        return Boxes.cat([below, replace(boxes, lower=boxes.lower.scatter(1, at, middle), number=first + 1)])

    def _numbered(self, boxes: int) -> Tensor:
        """The numbers of the first parts of boxes; those of the second ones are by one larger."""
        found = self.made + 2 * torch.arange(boxes)
        self.made += 2 * boxes
        return found

    def _witness(self, found: Bounded, points: list[Tensor]) -> tuple[Tensor | None, Tensor]:
        """An input that reaches the set, among some in each box; else the boxes without those set aside."""
        boxes = found.boxes
        x, asked = torch.cat(points), boxes.asked.repeat(len(points))
        excess = self._excess(x, asked)
        reached = (excess <= 0).nonzero().flatten()
        left = torch.ones(len(boxes), dtype=torch.bool)
        self.batches += 1
        most = self._error(found.size, boxes.asked).amax(1).repeat(len(points))
        close = ((excess > 0) & (excess <= most)).nonzero().flatten()
        close = close[self._in_doubt(x[close], asked[close], excess[close])]
        if len(close):
            left[close % len(boxes)] = False
            self.aside = True
            self.least = self.bounds(boxes.take(~left))
        if not len(reached):
            return self._nearby(x, asked, excess) if self.batches % EVERY == 0 else None, left
        for i in reached[excess[reached].argsort()[:3]].tolist():
            whole = self.chain.input_at(x[i]).unsqueeze(0)
            if self.confirm(whole):
                return whole, left
            if self.deepened < DEEPENED:
                self.deepened += 1
                whole = self.chain.input_at(self._deeper(x[i : i + 1], asked[i : i + 1])[0]).unsqueeze(0)
                if self.confirm(whole):
                    return whole, left
        left[reached % len(boxes)] = False
        self.aside = True
        self.least = self.bounds(boxes.take(~left))
        return None, left

    def _nearby(self, x: Tensor, asked: Tensor, excess: Tensor) -> Tensor | None:
        """An input that reaches the set, near those that are closest to it."""
        at = excess.topk(min(CLOSEST, len(excess)), largest=False).indices
        found = self._deeper(x[at], asked[at])
        for i in (self._excess(found, asked[at]) <= 0).nonzero().flatten()[:3].tolist():
            whole = self.chain.input_at(found[i]).unsqueeze(0)
            if self.confirm(whole):
                return whole
        return None

    def _excess(self, x: Tensor, asked: Tensor) -> Tensor:
        """How far the outputs are from the set, at most 0 in it."""
        for layer in self.chain.layers:
            x = torch.addmm(layer.bias, x, layer.weight.t())
            x = x if layer.function is None else layer.function.f(x)
        values = applied(self.rows[asked], x) + self.offsets[asked]
        return values.amin(1) if self.joint else values.amax(1)

    def _error(self, size: Tensor, asked: Tensor) -> Tensor:
        """How far rounding is taken to move each row, where terms of the outputs come to `size`."""
        return self.bounding.gamma * (applied(self.rows[asked].abs(), size) + self.offsets[asked].abs())

    def _in_doubt(self, x: Tensor, asked: Tensor, excess: Tensor) -> Tensor:
        """Which inputs are so close to the set that no box that holds them will be excluded."""
        size = x.abs()
        for layer in self.chain.layers:
            size = size @ layer.weight.abs().t() + layer.size
            x = torch.addmm(layer.bias, x, layer.weight.t())
            if layer.function is not None:
                x = layer.function.f(x)
                size = torch.where(x > 0, size, 0.0) if layer.bends else x.abs()
        return excess <= self._error(size, asked).amin(1)

    def _deeper(self, x: Tensor, asked: Tensor) -> Tensor:
        """Inputs further inside the set, or closer to it, by steps down the farthest row."""
        width, best, least = self.chain.upper - self.chain.lower, x, x.new_full((len(x),), torch.inf)
        for step in range(20):
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                excess = self._excess(x, asked)
                (gradient,) = torch.autograd.grad(excess.sum(), x)
            better = excess.detach() < least
            best, least = torch.where(better.unsqueeze(1), x.detach(), best), torch.minimum(least, excess.detach())
            downhill = gradient * width
            downhill = downhill / downhill.norm(dim=1, keepdim=True).clamp(min=1e-300)
            moved = x.detach() - 0.03 * 0.85**step * width * downhill
            x = torch.maximum(torch.minimum(moved, self.chain.upper), self.chain.lower)
        return best


def _cut(boxes: Boxes, a: Tensor, b: Tensor, spared: float) -> tuple[Boxes, Tensor]:
    """The boxes without the margins in which some row is positive, and which of them are left.

    Of each margin a part is `spared`, and left in the box.
    """
    left = torch.ones(len(boxes), dtype=torch.bool)
    room_for_rounding = (1e-12 + spared) * (1 + boxes.lower.abs() + boxes.upper.abs()).unsqueeze(1)
    for _ in range(2):
        lower, upper = boxes.lower, boxes.upper
        least = least_of(a, b, boxes)
        # How far an input may be from the end at which the row is lowest.
        room = ((-least).clamp(min=0).unsqueeze(2) / a.abs()) * (1 + 1e-9 + spared) + room_for_rounding
        room = torch.where(a.abs() > 1e-9 + spared, room, torch.inf)
        new_upper = torch.minimum(upper, torch.where(a > 0, lower.unsqueeze(1) + room, torch.inf).amin(1))
        new_lower = torch.maximum(lower, torch.where(a < 0, upper.unsqueeze(1) - room, -torch.inf).amax(1))
        left &= (new_lower <= new_upper).all(1) & ~(least > 0).any(1)
        boxes = replace(boxes, lower=torch.minimum(new_lower, new_upper), upper=torch.maximum(new_lower, new_upper))
    return boxes, left
