"""`Property`: what a VNN-LIB file asks of a network, by boxes of inputs."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from robust_plugins.adapters.onnx.files import contents
from robust_plugins.adapters.onnx.properties.formulas import Alternatives, Formulas, Row
from robust_plugins.adapters.onnx.properties.reading import Form, Source, commands
from robust_plugins.adapters.onnx.properties.version_two import parsed
from robust_plugins.errors import ArgumentError

_VARIABLE = re.compile(r"([XY])_(0|[1-9]\d*)")


@dataclass(frozen=True, eq=False)
class Case:
    """A box of inputs, and what no output of it should satisfy: all rows of one of the conjunctions."""

    lower: tuple[Fraction, ...]
    upper: tuple[Fraction, ...]
    unsafe: tuple[tuple[Row, ...], ...]
    """Without any conjunction nothing is unsafe; one without rows is satisfied by every output."""


@dataclass(frozen=True, eq=False)
class Property:
    """Unsafe where, in one of the cases, an input of the box has an unsafe output. The numbers are exact."""

    path: Path
    inputs: int
    outputs: int
    cases: tuple[Case, ...]


def read_property(path: str | Path) -> Property:
    """The property in a VNN-LIB file, plain or gzipped.

    Covered are VNN-LIB 1.0 with real inputs `X_i` and outputs `Y_i`, and any formula of `and`, `or`, `<=`, `>=`, `<`,
    `>` and `=` over linear expressions, whose parts on single inputs bound each of them from both sides; it is taken
    apart into boxes. Version 2.0 is read through its own parser, where that is installed. Raises ArgumentError, naming
    the line, for everything else.
    """
    path = Path(path)
    data = contents(path, "property", "a property in VNN-LIB, plain or gzipped")
    try:
        source = Source(path, data.decode())
    except UnicodeDecodeError as error:
        raise ArgumentError(
            "property", f"{str(path)!r}: not text ({error.reason} at byte {error.start})",
            accepted="a property in VNN-LIB, plain or gzipped", hint="Check the path.",
        ) from error  # fmt: skip
    return _property(source)


def _property(source: Source) -> Property:
    variables: dict[str, int] = {}
    formulas = Formulas(source, variables)
    asserts: list[tuple[int, Alternatives]] = []
    for command in commands(source):
        name = None if command.atom is not None else command.items[0].atom
        if name in ("declare-const", "declare-fun"):
            _declare(source, command, variables)
        elif name == "assert":
            if len(command.items) != 2:
                raise source.refused(
                    command.position, f"assert of {len(command.items) - 1} formulas, where it takes one"
                )
            asserts.append((command.position, formulas.read(command.items[1])))
        elif name == "vnnlib-version" and command.items[1:] and not str(command.items[1].atom).startswith("<1"):
            return _property_two(source)
        elif name == "vnnlib-version":
            pass
        else:
            raise source.refused(command.position, f"the command {str(name)[:40]!r}, which is not covered")
    return _assembled(source, formulas, asserts, variables)


def _property_two(source: Source) -> Property:
    """A property in VNN-LIB 2.0. The brackets are read here first: the other parser follows them by recursion."""
    for _ in commands(source):
        pass
    variables, forms = parsed(source)
    formulas = Formulas(source, variables)
    return _assembled(source, formulas, [(position, formulas.read(form)) for position, form in forms], variables)


def _assembled(
    source: Source, formulas: Formulas, asserts: list[tuple[int, Alternatives]], variables: dict[str, int]
) -> Property:
    sizes = []
    for kind, what in (("X", "input"), ("Y", "output")):
        numbers = sorted(int(name[2:]) for name in variables if name[0] == kind)
        if numbers != list(range(len(numbers))) or not numbers:
            missing = next(i for i in itertools.count() if f"{kind}_{i}" not in variables)
            raise source.refused(0, f"the {what} {kind}_{missing} is not declared", "Declare all of them, from 0 on.")
        sizes.append(len(numbers))
    return Property(source.path, sizes[0], sizes[1], tuple(_cases(source, formulas, asserts, sizes[0])))


def _declare(source: Source, command: Form, variables: dict[str, int]) -> None:
    atoms = [item.atom for item in command.items if item.items]
    if len(atoms) != 3 or atoms[1] is None or atoms[2] != "Real":
        raise source.refused(command.position, "a declaration of something else than a real number")
    name = atoms[1]
    if not _VARIABLE.fullmatch(name):
        raise source.refused(
            command.position, f"the variable {name[:40]!r}, which is neither an input X_i nor an output Y_i",
            "Constraints on hidden nodes are not covered.",
        )  # fmt: skip
    if name in variables:
        raise source.refused(command.position, f"{name} is declared twice")
    variables[name] = command.position


def _cases(source: Source, formulas: Formulas, asserts: list[tuple[int, Alternatives]], inputs: int) -> Iterable[Case]:
    """The alternatives of all asserts together, grouped by the box that they speak of."""
    shared = [rows[0] for _, rows in asserts if len(rows) == 1]
    several = [rows for _, rows in asserts if len(rows) != 1]
    common = _Bounds({}, {})
    fixed = common.take(itertools.chain.from_iterable(shared))
    formulas.check_size(asserts[-1][0] if asserts else 0, _product(several))
    boxes: dict[tuple[object, ...], tuple[_Bounds, list[tuple[Row, ...]]]] = {}
    for chosen in itertools.product(*several):
        bounds = _Bounds(dict(common.lower), dict(common.upper)) if several else common
        rows = fixed + bounds.take(itertools.chain.from_iterable(chosen))
        key = (*sorted(bounds.lower.items()), *sorted(bounds.upper.items()))
        boxes.setdefault(key, (bounds, []))[1].append(tuple(rows))
    for bounds, unsafe in boxes.values():
        for i in range(inputs):
            for side, found in (("below", bounds.lower), ("above", bounds.upper)):
                if i not in found:
                    raise source.refused(
                        0, f"the input X_{i} has no bound from {side}", "Bound every input on both sides, by itself."
                    )
        lower, upper = (tuple(side[i] for i in range(inputs)) for side in (bounds.lower, bounds.upper))
        if all(low <= up for low, up in zip(lower, upper, strict=True)):
            yield Case(lower, upper, tuple(unsafe))


def _product(several: list[Alternatives]) -> int:
    total = 1
    for alternatives in several:
        total *= len(alternatives)
    return total


@dataclass
class _Bounds:
    """The bounds of inputs that constraints on single ones make."""

    lower: dict[int, Fraction]
    upper: dict[int, Fraction]

    def take(self, rows: Iterable[Row]) -> list[Row]:
        """Takes in the rows that bound one input, and returns those that say more."""
        others = []
        for row in rows:
            if len(row.weights) != 1 or row.weights[0][0][0] != "X":
                others.append(row)
                continue
            ((name, weight),) = row.weights
            bound, i = -row.offset / weight, int(name[2:])
            if weight > 0:
                self.upper[i] = min(bound, self.upper.get(i, bound))
            else:
                self.lower[i] = max(bound, self.lower.get(i, bound))
            if row.strict:
                others.append(row)
        return others
