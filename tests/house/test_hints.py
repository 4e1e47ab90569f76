"""What errors advise exists: names, arguments, commands and options that their messages mention."""

from __future__ import annotations

import ast
import inspect
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import torch

import robust_plugins as rp
from robust_plugins.cli import commands

PACKAGE = Path(rp.__file__).parent
PROJECT = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
NAMES = {"rp": rp, "torch": torch}


def texts(node: ast.AST) -> Iterator[str]:
    """The strings below a node; a formatted one with `{}` for its values."""
    if isinstance(node, ast.JoinedStr):
        yield "".join(str(v.value) if isinstance(v, ast.Constant) else "{}" for v in node.values)
    elif isinstance(node, ast.Constant):
        if isinstance(node.value, str):
            yield node.value
    else:
        for child in ast.iter_child_nodes(node):
            yield from texts(child)


def messages() -> list[tuple[str, str]]:
    """Every string of a `raise`, and every `hint=`, by its place in the package."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise) or (isinstance(node, ast.keyword) and node.arg == "hint"):
                place = f"{path.relative_to(PACKAGE)}:{node.lineno}"  # type: ignore[attr-defined]
                found += [(place, text) for text in texts(node)]
    return found


MESSAGES = messages()


def mentioned(pattern: str) -> list[Any]:
    """What the pattern finds in messages, once for each text."""
    found = {m.group(0): place for place, text in MESSAGES for m in re.finditer(pattern, text)}
    return [pytest.param(text, id=f"{text} in {place}") for text, place in sorted(found.items())]


def resolved(dotted: str) -> Any:
    first, *rest = dotted.split(".")
    thing = NAMES[first]
    for name in rest:
        thing = getattr(thing, name)
    return thing


@pytest.mark.parametrize("name", mentioned(r"\b(rp|torch)(\.[A-Za-z_]\w*)+(?![\w{])"))
def test_names_exist(name: str) -> None:
    resolved(name)


@pytest.mark.parametrize("call", mentioned(r"\brp(\.[A-Za-z_]\w*)+\([^()]*\)?"))
def test_arguments_exist(call: str) -> None:
    name, _, inside = call.partition("(")
    parameters = inspect.signature(resolved(name)).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    unknown = set(re.findall(r"(?<![\w.])(\w+)=", inside)) - set(parameters)
    assert not unknown, f"{name} takes {list(parameters)}"


@pytest.mark.parametrize("line", mentioned(r"robust-plugins( [a-z][a-z-]*)*"))
def test_commands_exist(line: str) -> None:
    group: click.Command = commands
    for word in line.split()[1:]:
        if not isinstance(group, click.Group):
            return  # what follows is a value
        assert word in group.commands, f"robust-plugins has {list(group.commands)}"
        group = group.commands[word]


@pytest.mark.parametrize("option", mentioned(r"(?<![\w-])--[a-z][a-z-]+"))
def test_options_exist(option: str) -> None:
    assert option in OF_OTHERS or option in set(options(commands))


OF_OTHERS = {"--no-deps"}
"""Options of pip."""


def options(command: click.Command) -> Iterator[str]:
    for parameter in command.params:
        yield from (*parameter.opts, *parameter.secondary_opts)
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            yield from options(inner)


@pytest.mark.parametrize("line", mentioned(r"robust_plugins\[[a-z0-9, ]+\]"))
def test_extras_exist(line: str) -> None:
    extras = re.split(r", *", line.split("[")[1][:-1])
    assert set(extras) <= set(PROJECT["optional-dependencies"])


def test_a_wrong_name_would_be_found() -> None:
    with pytest.raises(AttributeError):
        resolved("rp.no_such_function")
    assert len(MESSAGES) > 300
    assert any("rp." in text for _, text in MESSAGES)
