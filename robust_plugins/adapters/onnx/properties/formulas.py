"""Formulas in normal form: alternatives, each of which holds where all of its linear constraints do."""

from __future__ import annotations

import itertools
import math
import operator
import re
from collections.abc import Callable, Container, Iterable
from fractions import Fraction
from typing import NamedTuple

from robust_plugins.adapters.onnx.properties.reading import Form, Source

MOST = 50_000
"""How many alternatives a formula may have in normal form."""
ROWS = 5_000_000
"""How many constraints they may have in all."""
LARGEST = Fraction(10) ** 300
"""Doubles hold numbers of this size, and its inverse."""

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE]([+-]?\d{1,3}))?")
_SIGNS = {"<=": (1, False), "<": (1, True), ">=": (-1, False), ">": (-1, True)}


class Row(NamedTuple):
    """`sum of weights times variables + offset <= 0`, or `< 0` where `strict`; the numbers are exact."""

    weights: tuple[tuple[str, Fraction], ...]
    offset: Fraction
    strict: bool


class Linear(NamedTuple):
    """A linear expression."""

    weights: dict[str, Fraction]
    constant: Fraction


Alternatives = list[list[Row]]


class Formulas:
    """Reads formulas over declared variables."""

    def __init__(self, source: Source, variables: Container[str]) -> None:
        self.source, self.variables = source, variables

    def read(self, form: Form) -> Alternatives:
        """The normal form of a formula. Raises ArgumentError, naming the line, for what is none or is not linear."""
        if form.atom is not None or form.items[0].atom is None:
            raise self.source.refused(form.position, "not a formula")
        name, rest = form.items[0].atom, form.items[1:]
        if name in ("and", "or"):
            if not rest:
                raise self.source.refused(form.position, f"`{name}` of nothing")
            if name == "or":
                self.check_size(form.position, len(rest))
            parts = [self.read(part) for part in rest]
            if name == "or":
                found = list(itertools.chain.from_iterable(parts))
                self.check_size(form.position, len(found))
                return found
            return self.conjunction(form.position, parts)
        if name == "=" or name in _SIGNS:
            if len(rest) != 2:
                raise self.source.refused(form.position, f"`{name}` of {len(rest)} expressions, where it takes two")
            return self._comparison(name, self.expression(rest[0]), self.expression(rest[1]))
        raise self.source.refused(
            form.position, f"`{name}`, which is not covered", "Write it with and, or, <=, >=, <, > and =."
        )

    def conjunction(self, position: int, parts: list[Alternatives]) -> Alternatives:
        """All of several formulas at once."""
        count = math.prod(len(part) for part in parts)
        self.check_size(position, count)
        if count * sum(max(map(len, part), default=0) for part in parts) > ROWS and count > 1:
            raise self.source.refused(position, f"more than {ROWS} constraints, when `or` is taken out of `and`")
        return [list(itertools.chain.from_iterable(chosen)) for chosen in itertools.product(*parts)]

    def check_size(self, position: int, alternatives: int) -> None:
        """Raises ArgumentError where there would be too many alternatives."""
        if alternatives > MOST:
            raise self.source.refused(
                position,
                f"{alternatives} alternatives, when `or` is taken out of `and`",
                f"At most {MOST} are covered.",
            )

    def _comparison(self, name: str, left: Linear, right: Linear) -> Alternatives:
        difference = _combined([left, right], operator.sub)
        if name == "=":
            return (
                [[row for sign in (1, -1) for row in _rows(difference, sign, False)]] if _possible(difference) else []
            )
        sign, strict = _SIGNS[name]
        row = _row(difference, sign, strict)
        if row.weights:
            return [[row]]
        return [[]] if row.offset < 0 or (row.offset == 0 and not strict) else []

    def expression(self, form: Form) -> Linear:
        """A linear expression. Raises ArgumentError, naming the line, where it is none, or no double holds a number."""
        found = self._expression(form)
        for number in (*found.weights.values(), found.constant):
            if number and not 1 / LARGEST <= abs(number) <= LARGEST:
                raise self.source.refused(
                    form.position, "a number that is too large or too small", "Covered are 0 and 1e-300 to 1e300."
                )
        return found

    def _expression(self, form: Form) -> Linear:
        if form.atom is not None:
            return self._atom(form.atom, form.position)
        name = form.items[0].atom
        if name is None:
            raise self.source.refused(form.position, "an expression that does not begin with an operator")
        parts = [self.expression(part) for part in form.items[1:]]
        if name in ("+", "-") and parts:
            if len(parts) == 1 and name == "-":
                return _scaled(parts[0], Fraction(-1))
            return _combined(parts, operator.add if name == "+" else operator.sub)
        if name == "*" and parts:
            varying = [part for part in parts if part.weights]
            if len(varying) > 1:
                raise self.source.refused(
                    form.position, "a product of variables, which is not linear", "Only linear properties are covered."
                )
            factor = math.prod((part.constant for part in parts if not part.weights), start=Fraction(1))
            return _scaled(varying[0], factor) if varying else Linear({}, factor)
        if name == "/" and len(parts) == 2 and not parts[1].weights and parts[1].constant:
            return _scaled(parts[0], 1 / parts[1].constant)
        raise self.source.refused(form.position, f"`{name}` in an expression, which is not covered or lacks arguments")

    def _atom(self, text: str, position: int) -> Linear:
        if text in self.variables:
            return Linear({text: Fraction(1)}, Fraction(0))
        if _NUMBER.fullmatch(text):
            return Linear({}, Fraction(text))
        if text[0].isdigit() or text[0] in "+-.":
            raise self.source.refused(position, f"{text[:40]!r}, which is no number that is covered")
        raise self.source.refused(
            position, f"the variable {text[:40]!r}, which is not declared", "Declare it as (declare-const X_0 Real)."
        )


def _combined(parts: Iterable[Linear], combine: Callable[[Fraction, Fraction], Fraction]) -> Linear:
    first, *rest = parts
    weights, constant = dict(first.weights), first.constant
    for part in rest:
        constant = combine(constant, part.constant)
        for name, weight in part.weights.items():
            weights[name] = combine(weights.get(name, Fraction(0)), weight)
    return Linear({name: weight for name, weight in weights.items() if weight}, constant)


def _scaled(expression: Linear, factor: Fraction) -> Linear:
    weights = {name: weight * factor for name, weight in expression.weights.items() if factor}
    return Linear(weights, expression.constant * factor)


def _row(expression: Linear, sign: int, strict: bool) -> Row:
    weights = tuple(sorted((name, sign * weight) for name, weight in expression.weights.items()))
    return Row(weights, sign * expression.constant, strict)


def _rows(expression: Linear, sign: int, strict: bool) -> list[Row]:
    return [_row(expression, sign, strict)] if expression.weights else []


def _possible(difference: Linear) -> bool:
    return bool(difference.weights) or difference.constant == 0
