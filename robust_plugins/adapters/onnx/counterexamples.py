"""Counterexamples: the competition's files of them, and what onnxruntime makes of one."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np

from robust_plugins.adapters.onnx.files import contents
from robust_plugins.adapters.onnx.properties.property import Case, Property
from robust_plugins.adapters.onnx.properties.rows import holds, value
from robust_plugins.adapters.onnx.reference import Session
from robust_plugins.errors import ArgumentError

DIGITS = 60
"""The digits of a number whose decimal expansion does not end."""

_PAIR = re.compile(r"\(\s*([XY])_(\d+)\s+([^\s()]+)\s*\)")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?")


@dataclass(frozen=True)
class Replay:
    """The run of the network on an input, against a property; all numbers are exact but for the run itself.

    - `outputs`: of the network.
    - `outside`: how far the input is outside of the nearest box, in its farthest entry; 0 inside.
    - `excess`: how far the outputs are from the nearest unsafe set, in the farthest row; not above 0 inside.
    - `unsafe`: whether the input lies in a box and the outputs are unsafe there, exactly.
    """

    outputs: tuple[float, ...]
    outside: float
    excess: float
    unsafe: bool


def replay(session: Session, property: Property, x: Sequence[Fraction]) -> Replay:
    """Runs the network in onnxruntime on `x`, rounded to the network's numbers, and compares exactly."""
    outputs = session(np.array([float(v) for v in x]))
    if not np.isfinite(outputs).all():
        return Replay(tuple(map(float, outputs)), math.inf, math.inf, False)
    y = [Fraction(float(v)) for v in outputs]
    nearest, unsafe = (Fraction(2) ** 1000, math.inf), False
    for case in property.cases:
        distance = _outside(case, x)
        for rows in case.unsafe:
            excess = float(max((value(row, x, y) for row in rows), default=Fraction(0)))
            nearest = min(nearest, (distance, excess))
            unsafe = unsafe or (distance == 0 and holds(rows, x, y))
    return Replay(tuple(map(float, outputs)), float(nearest[0]), nearest[1], unsafe)


def _outside(case: Case, x: Sequence[Fraction]) -> Fraction:
    sides = zip(case.lower, x, case.upper, strict=True)
    return max((max(low - v, v - up, Fraction(0)) for low, v, up in sides), default=Fraction(0))


def into(case: Case, x: Sequence[Fraction]) -> tuple[Fraction, ...]:
    """The point of the case's box that is nearest to `x`."""
    sides = zip(case.lower, x, case.upper, strict=True)
    return tuple(_decimal(min(max(v, low), up), low, up) for low, v, up in sides)


def _decimal(number: Fraction, low: Fraction, up: Fraction) -> Fraction:
    """`number`, or a number close to it that can be written in decimals, in the same range."""
    if Fraction(text_of(number)) == number:
        return number
    for rounding in (ROUND_FLOOR, ROUND_CEILING):
        context = Context(prec=DIGITS, rounding=rounding)
        near = Fraction(context.divide(Decimal(number.numerator), Decimal(number.denominator)))
        if low <= near <= up:
            return near
    return number


def text_of(number: Fraction) -> str:
    """The decimals of a number, all of them where they end."""
    rest, twos, fives = number.denominator, 0, 0
    while rest % 2 == 0:
        rest, twos = rest // 2, twos + 1
    while rest % 5 == 0:
        rest, fives = rest // 5, fives + 1
    digits = max(twos, fives) if rest == 1 else DIGITS
    whole = abs(number.numerator) * 10**digits // number.denominator
    sign, shown = "-" if number < 0 else "", str(whole).rjust(digits + 1, "0")
    return f"{sign}{shown[:-digits]}.{shown[-digits:]}" if digits else f"{sign}{shown}.0"


def write_counterexample(path: Path, x: Sequence[Fraction], y: Sequence[float]) -> None:
    """Writes inputs and outputs as the competition has them: `((X_0 0.5) ... (Y_0 1.0))`, a pair a line."""
    pairs = [f"(X_{i} {text_of(v)})" for i, v in enumerate(x)] + [f"(Y_{i} {v!r})" for i, v in enumerate(y)]
    path.write_text("(" + "\n".join(pairs) + ")\n")


def read_counterexample(path: str | Path, inputs: int) -> tuple[Fraction, ...]:
    """The inputs in a file of the competition's format, plain or gzipped; a `sat` before them is skipped.

    Raises ArgumentError where one is missing or is no finite number. What is said of outputs is not read.
    """
    path = Path(path)
    text = contents(path, "counterexample", "pairs such as (X_0 0.5)").decode(errors="replace")
    found: dict[int, Fraction] = {}
    for kind, index, number in _PAIR.findall(text):
        if kind == "X" and _NUMBER.fullmatch(number):
            found[int(index)] = Fraction(number)
    missing = [i for i in range(inputs) if i not in found]
    if missing or len(found) != inputs:
        has = f"no finite number for X_{missing[0]}" if missing else f"{len(found)} inputs, where {inputs} are expected"
        raise ArgumentError(
            "counterexample", f"{str(path)!r}: {has}", accepted="pairs such as (X_0 0.5), one for each input",
            hint="Check that it is of this network.",
        )  # fmt: skip
    return tuple(found[i] for i in range(inputs))
