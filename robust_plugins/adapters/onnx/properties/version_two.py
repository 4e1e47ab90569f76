"""VNN-LIB 2.0, read by its own parser: declarations and formulas in the form that version 1.0 has here."""

from __future__ import annotations

import math
from typing import Any

from robust_plugins.adapters.onnx.backend import library
from robust_plugins.adapters.onnx.properties.reading import Form, Source
from robust_plugins.errors import PluginError

_NAMES = {
    "And": "and", "Or": "or", "LessEqual": "<=", "GreaterEqual": ">=", "LessThan": "<", "GreaterThan": ">",
    "Equal": "=", "Plus": "+", "Minus": "-", "Negate": "-", "Multiply": "*",
}  # fmt: skip


def parsed(source: Source) -> tuple[dict[str, int], list[tuple[int, Form]]]:
    """The variables of a property in VNN-LIB 2.0, and its asserted formulas, with their positions.

    Entries of the inputs are numbered X_0, X_1, ... in the order of their declarations and row by row, as the network
    has them, and those of the outputs Y_0, Y_1, ... Raises ArgumentError for files that the parser refuses, for several
    networks and for hidden nodes, and PluginError where it is not installed.
    """
    try:
        vnnlib = library("vnnlib")
    except PluginError as error:
        raise PluginError(
            f"{str(source.path)!r} is in VNN-LIB 2.0, whose parser is not installed: "
            'pip install "robust_plugins[vnnlib]"'
        ) from error
    try:
        query = vnnlib.parse_query_string(source.text)
    except vnnlib.VNNLibException as error:
        raise source.refused(
            0, f"refused by the parser of VNN-LIB 2.0: {' '.join(str(error).split())[:300]}"
        ) from error
    if len(query.networks) != 1 or query.networks[0].hidden:
        found = "constraints on hidden nodes" if len(query.networks) == 1 else f"{len(query.networks)} networks"
        raise source.refused(0, f"{found}, which are not covered", "Only one network's inputs and outputs are covered.")
    (network,) = query.networks
    starts: dict[str, tuple[str, int]] = {}
    variables: dict[str, int] = {}
    for kind, ports in (("X", network.inputs), ("Y", network.outputs)):
        count = 0
        for port in ports:
            starts[port.name] = kind, count
            count += math.prod(port.shape)
        variables |= {f"{kind}_{i}": 0 for i in range(count)}
    lines = [0]
    for line in source.text.split("\n"):
        lines.append(lines[-1] + len(line) + 1)
    convert = _Conversion(source, starts, lines)
    return variables, [(form.position, form) for form in (convert(a.expr) for a in query.assertions)]


class _Conversion:
    def __init__(self, source: Source, starts: dict[str, tuple[str, int]], lines: list[int]) -> None:
        self.source, self.starts, self.lines = source, starts, lines

    def __call__(self, node: Any) -> Form:
        """A formula or an expression of the parser."""
        kind = type(node).__name__
        if kind == "Var":
            variable, at = self.starts[node.name]
            entry = 0
            for index, side in zip(node.indices, node.shape, strict=True):
                entry = entry * side + index
            return Form(f"{variable}_{at + entry}", self._position(node))
        if hasattr(node, "lexeme"):
            return Form(node.lexeme, self._position(node))
        parts = [self(child) for child in node.children()]
        position = parts[0].position if parts else 0
        if kind not in _NAMES:
            raise self.source.refused(position, f"{kind}, which is not covered")
        return Form([Form(_NAMES[kind], position), *parts], position)

    def _position(self, node: Any) -> int:
        line = int(node.line)
        return self.lines[min(max(line, 1), len(self.lines)) - 1]
