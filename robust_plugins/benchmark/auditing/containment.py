"""Recorded points inside recorded sets: balls of all norms held in one another, for many records at once."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from robust_plugins.benchmark.auditing.shapes import Shape
from robust_plugins.benchmark.columns import Columns

BALL = 1e-6
"""Relative to the largest of 1, eps and the inputs: how far rounding may take a point out of its ball."""

UNCLIPPED = 100.0
"""How large inputs are taken to be where no range and no kept example tells."""

NORMS = ("linf", "l2", "l1")

_EXPONENTS = {"linf": 0.0, "l2": 0.5, "l1": 1.0}
"""A ball of radius r in one norm lies in that of d^p r in another, where p is by how much its exponent is larger."""


@dataclass(frozen=True, eq=False)
class Points:
    """Inputs that somebody found, one for each place in the columns."""

    places: NDArray[np.int64]
    values: NDArray[np.float64]
    """What each point achieved: the smaller, the worse for a claim."""


@dataclass(frozen=True, eq=False)
class Match:
    """For each claim the worst point inside its set."""

    claims: NDArray[np.int64]
    points: NDArray[np.int64]
    values: NDArray[np.float64]


def radius_of(columns: Columns, places: NDArray[np.int64], norm: str) -> NDArray[np.float64]:
    """An upper bound of the distance in `norm` of each record's point from its input; inf where none is known.

    For `box` it is the distance as the record's own box measures it, and inf for other balls.

    From the record's own distance, at most its radius where it keeps to its ball, by the factor between the norms: a
    point of the L-infinity ball of radius r in d dimensions lies in the L2 ball of sqrt(d) r and in the L1 ball of d r,
    one of the L2 ball in the L1 ball of sqrt(d) r, and a larger norm bounds a smaller one. Where the example was kept,
    from its real distance.
    """
    own, reach = columns["norm"][places], _own_reach(columns, places)
    if norm == "box":
        return np.where(own == "", 0.0, np.where(own == norm, reach, np.inf))
    dims = columns["features"][places]
    factor = np.full(len(places), np.inf)
    for name in NORMS:
        power = max(_EXPONENTS[norm] - _EXPONENTS[name], 0.0)
        # Without the number of features only what holds for every number of them is known.
        held = np.where(np.isnan(dims), np.inf, np.nan_to_num(dims, nan=1.0) ** power) if power else 1.0
        factor = np.where(own == name, held, factor)
    kept = columns[f"distance_{norm}"][places] + _rounding(columns)[places]
    with np.errstate(invalid="ignore"):  # a distance of zero by an unknown factor is not known
        reach = np.where(own == norm, reach, np.fmin(reach * factor, kept))
    return np.where(own == "", 0.0, reach)  # a clean row is about the input itself


def _own_reach(columns: Columns, places: NDArray[np.int64]) -> NDArray[np.float64]:
    """An upper bound of the distance of each record's point, as its own ball measures it."""
    eps, distance, slack = columns["eps"][places], columns["distance"][places], ball_slack(columns)[places]
    inside = np.isnan(distance) | (distance <= eps + slack)
    # The set of one ball is the same for everybody, however distances to its border are rounded; for another ball the
    # rounding counts.
    return np.where(inside, np.fmin(distance + slack, eps), distance + slack)


def ball_slack(columns: Columns) -> NDArray[np.float64]:
    """How far rounding may take each record's point out of its ball, as the ball measures it.

    Coarser for inputs in [0, 255] than in [0, 1], and for boxes by the smallest radius of a feature.
    """
    scales = {box: Shape("", "", box).scale for box in dict.fromkeys(columns["box"])}
    slack: NDArray[np.float64] = _rounding(columns) / np.fromiter((scales[b] for b in columns["box"]), float)
    return slack


def _rounding(columns: Columns) -> NDArray[np.float64]:
    """How far rounding may move a value of each record's point, in the units of the inputs."""
    sizes = {clip: _largest(clip) for clip in dict.fromkeys(columns["clip"])}
    held = np.fromiter((sizes[clip] for clip in columns["clip"]), float, len(columns))
    held = np.where(np.isnan(columns["largest"]), held, columns["largest"])
    slack: NDArray[np.float64] = BALL * np.maximum(np.maximum(1.0, columns["eps"]), held)
    return slack


def _largest(clip: str) -> float:
    """The largest value of inputs in a range; a range without an end says nothing."""
    ends = [abs(end) for end in json.loads(clip) if math.isfinite(end)] if clip else []
    return max(ends) if len(ends) == 2 else UNCLIPPED


def worst_inside(
    columns: Columns, claims: NDArray[np.int64], points: Points, keys: NDArray[np.int64], *, tolerant: bool = False
) -> Match:
    """For each claim the point with the smallest value among those of its key inside its ball; claims without are out.

    `keys` are the records' keys: only what agrees in them is about the same model and input. With `tolerant`, points
    are looked for in the ball that is larger by what rounding may account for, twice.
    """
    found = np.full(len(claims), -1, np.int64)
    best = np.full(len(claims), np.inf)
    for shape, mine in _shapes(columns, claims):
        reach = _reach(columns, points.places, shape)
        theirs = np.flatnonzero(np.isfinite(reach))
        if not len(theirs):
            continue
        limit = columns["eps"][claims[mine]]
        if tolerant:
            room = 2 * ball_slack(columns)[claims[mine]]
            limit = limit + (np.where(limit > 0, room, 0.0) if shape.anywhere else room)
        at = _least(
            keys[claims[mine]], limit, keys[points.places[theirs]], reach[theirs], points.values[theirs]
        )  # places in theirs
        hit = at >= 0
        found[mine[hit]] = theirs[at[hit]]
        best[mine[hit]] = points.values[theirs[at[hit]]]
    hit = found >= 0
    return Match(claims[hit], points.places[found[hit]], best[hit])


def _least(
    claim_keys: NDArray[np.int64],
    limits: NDArray[np.float64],
    point_keys: NDArray[np.int64],
    reaches: NDArray[np.float64],
    values: NDArray[np.float64],
) -> NDArray[np.int64]:
    """For each claim the place of the smallest value among the points of its key with `reach <= limit`; -1 for none."""
    usable = np.flatnonzero(~np.isnan(values) & np.isfinite(reaches))
    if not len(usable):
        return np.full(len(claim_keys), -1, np.int64)
    count = len(usable)
    keys = np.concatenate((point_keys[usable], claim_keys))
    _, keys = np.unique(keys, return_inverse=True)
    order = np.lexsort(
        (
            np.repeat((0, 1), (count, len(claim_keys))),  # at equal radii points come first: they lie on the border
            np.concatenate((reaches[usable], limits)),
            keys,
        )
    )
    ranks = np.empty(count, np.int64)
    ranks[np.argsort(values[usable], kind="stable")] = np.arange(count)
    # One running minimum does for all keys: a later key's scores are all smaller than those of the keys before it.
    scores = np.full(len(keys), np.iinfo(np.int64).max)
    last = int(keys.max())
    scores[:count] = (last - keys[:count]) * count + ranks
    least = np.minimum.accumulate(scores[order])
    by_rank = np.empty(count, np.int64)
    by_rank[ranks] = usable
    result = np.full(len(keys), -1, np.int64)
    known = (least != np.iinfo(np.int64).max) & (last - least // count == keys[order])
    result[order[known]] = by_rank[least[known] % count]
    return result[count:]


def _shapes(columns: Columns, places: NDArray[np.int64]) -> Iterator[tuple[Shape, NDArray[np.int64]]]:
    """The sets of these records, radius apart, each with where in `places` it is."""
    codes = columns.codes("norm", "clip", "box")[places]
    for code in dict.fromkeys(codes.tolist()):
        mine = np.flatnonzero(codes == code)
        norm, clip, box = (columns[name][places[mine[0]]] for name in ("norm", "clip", "box"))
        yield Shape(norm, clip, box), mine


def _reach(columns: Columns, places: NDArray[np.int64], outer: Shape) -> NDArray[np.float64]:
    """For each point the radius from which on the set holds it; inf where it may hold none. Clean inputs always lie in.

    Two balls of norms are held against each other by their norms and ranges, boxes feature by feature.
    """
    reach = radius_of(columns, places, outer.norm)
    own = _own_reach(columns, places)
    for inner, theirs in _shapes(columns, places):
        if not inner.norm:
            continue
        if outer.box or inner.box:
            found = outer.reach(inner, own[theirs], columns["eps"][places[theirs]])
            # The real distance of an example that was kept is known in every norm.
            kept = reach[theirs] if _within(inner.clip, outer.clip) and not outer.box else np.inf
            reach[theirs] = np.fmin(found, kept)
        elif not _within(inner.clip, outer.clip):
            reach[theirs] = np.inf
    return reach


def _within(inner: str, outer: str) -> bool:
    if not outer or inner == outer:
        return True
    if not inner:
        return False
    (low, high), (least, most) = json.loads(inner), json.loads(outer)
    return bool(least <= low and high <= most)
