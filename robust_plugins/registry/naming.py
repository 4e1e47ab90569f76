"""Names of components, with parameters or without: `"art:pgd(steps=40)"`."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from typing import Any, cast

from robust_plugins.errors import ArgumentError


def parse_component(text: str) -> tuple[str, dict[str, Any]]:
    """Splits `"art:pgd(steps=40, restarts=2)"` into its name and its parameters, which are Python literals.

    Raises ArgumentError where the text is neither a name nor a name with keyword parameters.
    """
    if not isinstance(text, str):
        raise ArgumentError("name", repr(text), accepted="text", hint="For example 'art:pgd'.")
    name, bracket, _ = text.partition("(")
    if not bracket:
        return text.strip(), {}
    try:
        call = ast.parse(f"f{text[len(name) :].strip()}", mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            raise ValueError
        names = [keyword.arg for keyword in call.keywords]
        if call.args or None in names or len(set(names)) < len(names):
            raise ValueError
        return name.strip(), {cast(str, k.arg): ast.literal_eval(k.value) for k in call.keywords}
    except (SyntaxError, ValueError):
        raise ArgumentError(
            "name",
            repr(text),
            accepted="'provider:method' or 'provider:method(parameter=literal, ...)'",
            hint="Write parameters as Python literals, for example 'art:pgd(steps=40)'.",
        ) from None


def annotations_of(factory: Callable[..., Any]) -> dict[str, object]:
    """The types that `factory` states of its parameters, by their names."""
    try:
        return {p.name: p.annotation for p in inspect.signature(factory).parameters.values()}
    except ValueError:  # some built-in classes have no signature
        return {}


def parameters_of(factory: Callable[..., Any]) -> list[str]:
    """The names of the parameters that `factory` takes, `"**"` for any others."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except ValueError:  # some built-in classes have no signature
        return ["**"]
    return ["**" if p.kind is p.VAR_KEYWORD else p.name for p in parameters]


def with_article(kind: str) -> str:
    """A kind of component in a sentence: "an attack", "a certifier"."""
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"
