"""Prose and shapes: docstrings that can be read alone, and a shape on every public tensor parameter."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import robust_plugins as rp
import robust_plugins.brackets
import robust_plugins.data
import robust_plugins.explanations
import robust_plugins.intervals
import robust_plugins.losses
import robust_plugins.networks
import robust_plugins.poisoning
import robust_plugins.testing
import robust_plugins.training

PACKAGE = Path(__file__).resolve().parents[2] / "robust_plugins"
FILES = sorted(PACKAGE.rglob("*.py"))
INCOMPLETE = ("What ", "Of ", "As ", "Likewise", "Ditto", "See ")
"""Beginnings of a first line that has no subject, or leans on the docstring before it."""

SHAPED = {"Float", "Int", "Integer", "Bool", "Shaped", "Num", "Inexact"}
COLLECTIONS = {"Callable", "dict", "Mapping", "Iterable"}
PUBLIC = (
    rp, rp.explain, robust_plugins.brackets, robust_plugins.data, robust_plugins.explanations, robust_plugins.intervals,
    robust_plugins.losses, robust_plugins.networks, robust_plugins.poisoning, robust_plugins.testing,
    robust_plugins.training,
)  # fmt: skip

Function = ast.FunctionDef | ast.AsyncFunctionDef


def definitions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Every class and function with its dotted name, those inside functions left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef):
            yield prefix + node.name, node
            yield from definitions(node, f"{prefix}{node.name}.")
        elif isinstance(node, Function):
            yield prefix + node.name, node


def bare(annotation: ast.AST) -> bool:
    """Whether `Tensor` stands in the annotation without a shape around it; collections hold tensors of any shape."""
    if isinstance(annotation, ast.Subscript):
        kind = ast.unparse(annotation.value)
        return kind not in SHAPED and kind not in COLLECTIONS and bare(annotation.slice)
    if isinstance(annotation, ast.Name):
        return annotation.id == "Tensor"
    return any(bare(child) for child in ast.iter_child_nodes(annotation))


def public() -> Iterator[tuple[str, Callable[..., object]]]:
    """Every public function and method by name, and the constructors of public classes."""
    seen = set()
    for module in PUBLIC:
        for name in getattr(module, "__all__", [n for n in vars(module) if not n.startswith("_")]):
            value = getattr(module, name)
            if id(value) in seen or not callable(value) or not _is_ours(value):
                continue
            seen.add(id(value))
            yield name, value
            if inspect.isclass(value):
                for method, function in inspect.getmembers(value, inspect.isfunction):
                    if (method == "__call__" or not method.startswith("_")) and _is_ours(function):
                        yield f"{name}.{method}", function


def _is_ours(value: object) -> bool:
    return (getattr(value, "__module__", "") or "").startswith("robust_plugins")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_first_lines_can_be_read_alone(path: Path) -> None:
    tree = ast.parse(path.read_text())
    faults = []
    for name, node in [(path.stem, tree), *definitions(tree)]:
        first = (ast.get_docstring(node) or "").split("\n")[0]
        if first.startswith(INCOMPLETE):
            faults.append(f"{name}: {first}")
    assert not faults, "\n".join(faults)


def test_public_tensor_parameters_have_shapes() -> None:
    faults, count = [], 0
    for name, function in public():
        if inspect.isclass(function) and issubclass(function, Exception):
            continue  # no signature of their own
        for parameter in inspect.signature(function).parameters.values():
            text = parameter.annotation if isinstance(parameter.annotation, str) else ""
            count += "Tensor" in text
            if text and bare(ast.parse(text, mode="eval")):
                faults.append(f"{name}({parameter})")
    assert not faults, "give them shapes, as Float[Tensor, 'batch *features']:\n" + "\n".join(faults)
    assert count > 200  # they were looked at
