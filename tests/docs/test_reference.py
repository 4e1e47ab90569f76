"""The docstrings of public names: complete, true where they are examples, and each with a place in the reference."""

from __future__ import annotations

import dataclasses
import doctest
import importlib.util
import inspect
import re
import sys
from types import ModuleType

import pytest
import torch
from support.pages import ROOT

import robust_plugins as rp
from robust_plugins.registry.hookspecs import HookSpecs
from robust_plugins.registry.information import Kind
from robust_plugins.registry.registry import registry
from robust_plugins.testing import fresh_registry  # noqa: F401 (a fixture)

PUBLIC = {name: getattr(rp, name) for name in rp.__all__} | {
    f"explain.{name}": getattr(rp.explain, name) for name in rp.explain.__all__
}
CLASSES = {name: value for name, value in PUBLIC.items() if inspect.isclass(value)}
MAIN = (
    "L1", "L2", "Linf", "Interval", "Bracket", "MixedLoss", "PoisoningBudget", "Ramp", "abstract_gradient_training",
    "apply_spec", "attack", "attacks", "cascade", "certifier", "compare", "critical_radius", "dataset",
    "explanation_certifier", "margin_spec", "minimal", "model", "normalised", "partition_aggregation", "recipe",
    "register", "strongest", "verify_property",
)  # fmt: skip
"""Names whose docstrings have an example."""
OURS = {plugin.name for plugin in rp.plugins() if plugin.distribution == "robust_plugins"}


def fields(cls: type) -> list[str]:
    """What its constructor takes, of a dataclass or a named tuple."""
    if dataclasses.is_dataclass(cls):
        return [field.name for field in dataclasses.fields(cls) if field.init]
    return list(getattr(cls, "_fields", ()))


def unexplained(cls: type) -> list[str]:
    """Fields that the docstring does not name in backticks: strings under fields are invisible to `help()`."""
    return _unnamed(fields(cls), inspect.getdoc(cls) or "")


def _unnamed(names: list[str], text: str) -> list[str]:
    return [name for name in names if not re.search(rf"`{name}[`=]", text)]


def reached(value: object) -> list[type]:
    """The classes of ours that a function, or a class's fields, properties and methods give."""
    found = []
    for base in value.__mro__ if inspect.isclass(value) else [value]:
        if getattr(base, "__module__", "").startswith("robust_plugins"):
            parts = [getattr(part, "fget", part) for part in vars(base).values()] if inspect.isclass(base) else [base]
            said = [part.__annotations__.get("return") for part in parts if inspect.isfunction(part)]
            said += inspect.get_annotations(base).values() if inspect.isclass(base) else []
            words = re.findall(r"\w+", " ".join(map(str, said)))
            found += [vars(sys.modules[base.__module__]).get(word) for word in words]
    return [c for c in found if inspect.isclass(c) and c.__module__.startswith("robust_plugins")]


def everything_handed_out() -> dict[str, type]:
    """The public classes, and what they and the public functions hand out."""
    found: dict[str, type] = {}
    left = [*CLASSES.values(), *(cls for value in PUBLIC.values() for cls in reached(value))]
    while left:
        cls = left.pop()
        if cls.__qualname__ not in found and not cls.__name__.startswith("_"):
            found[cls.__qualname__] = cls
            left += reached(cls)
    return found


def test_help_explains_every_field() -> None:
    handed_out = everything_handed_out()
    assert {"Row", "RadiusRow", "PluginInfo", "EpochRecord", "Damage"} <= set(handed_out)
    hidden = {name: unexplained(cls) for name, cls in handed_out.items() if unexplained(cls)}
    assert not hidden, "say in the docstring what they are, as `- `eps`: the radius`"


def test_help_explains_every_parameter_of_the_components() -> None:
    hidden, kinds = {}, [kind for kind in Kind if kind is not Kind.COMMAND]
    for kind in kinds:
        for info in registry().components(kind):
            if info.plugin in OURS:
                factory = registry().factory_of(kind, info.name)
                hidden[kind, info.name] = _unnamed(list(inspect.signature(factory).parameters), factory.__doc__ or "")
    assert len(hidden) > 70
    assert not {name: found for name, found in hidden.items() if found}


def test_components_say_what_they_take_over() -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Mine(rp.Attack):
        """Searches.

        - `steps`: how many.
        """

        steps: int

        def perturb(self, model, x, y, ball, *, targeted):
            return x

    assert inspect.getdoc(Mine).splitlines()[2:4] == [
        "- `steps`: how many.",
        "- `batch_size`: how many samples are handed to the backend at a time; None lets the component choose.",
    ]


def test_a_string_under_a_field_is_not_enough() -> None:
    @dataclasses.dataclass
    class Hidden:
        """A class."""

        eps: float
        """The radius."""

    assert unexplained(Hidden) == ["eps"]
    assert sum(len(fields(cls)) for cls in CLASSES.values()) > 200


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_has_its_own_docstring(name: str) -> None:
    value = PUBLIC[name]
    text = vars(value).get("__doc__") if inspect.isclass(value) else inspect.getdoc(value)
    assert text
    assert len(text.split()) > 3
    assert not text.startswith(f"{name}(")  # the one that dataclasses make up


def test_examples_are_true(monkeypatch, fresh_registry) -> None:  # noqa: F811
    assert not set(MAIN) - set(PUBLIC)
    finder, runner = doctest.DocTestFinder(recurse=False), doctest.DocTestRunner()
    said: list[str] = []
    for name, value in PUBLIC.items():
        if isinstance(value, ModuleType) or ">>>" not in (inspect.getdoc(value) or ""):
            assert name not in MAIN, f"the docstring of {name} has no example any more"
            continue
        torch.manual_seed(0)
        for test in finder.find(value, name, globs={"rp": rp, "torch": torch}):
            runner.run(test, out=said.append)
    assert not runner.failures, "\n".join(said)
    assert runner.tries > 60


def built(name: str) -> ModuleType:
    """A module of `docs/building` that needs nothing of Sphinx."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / "building" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_public_name_has_a_place_in_the_reference() -> None:
    places = [name for _, _, group in built("groups").GROUPS for name in group]
    assert len(places) == len(set(places))
    assert set(places) == set(PUBLIC)


def test_equations_are_of_public_names() -> None:
    assert not set(built("equations").EQUATIONS) - set(PUBLIC)


def test_the_guide_for_plugin_authors_has_every_hook_with_its_signature() -> None:
    text = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    hooks = {name: hook for name, hook in vars(HookSpecs).items() if not name.startswith("_")}
    assert len(hooks) > 10
    for name, hook in hooks.items():
        call = f"`{name}({', '.join(inspect.signature(hook).parameters)})`"
        assert f"| {call} | " in text, f"docs/plugins.md needs a row {call}"
    assert set(re.findall(r"^\| `(\w+)\(self", text, flags=re.MULTILINE)) == set(hooks)
