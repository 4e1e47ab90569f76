"""Whatever is replaced of what torch's functions call is seen, by the quick look at all of them too."""

from __future__ import annotations

from typing import Any

import pytest

from robust_plugins.intervals.network import known


def other(*arguments: Any, **named: Any) -> None:
    """Something else."""


def test_each_function_that_is_replaced_is_seen() -> None:
    assert known.all_unpatched()
    for called in known._EVERY:
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(called.place, called.name, other)  # type: ignore[arg-type]
            assert not called.same()
            assert not known.all_unpatched(), called.name
    assert known.all_unpatched()


@pytest.mark.parametrize(
    ("attribute", "value"), [("__code__", other.__code__), ("__defaults__", (7,)), ("__kwdefaults__", {"x": 1})]
)
def test_each_function_that_is_rewritten_is_seen(attribute: str, value: object) -> None:
    functions = {called.function: called for called in known._EVERY if called.code}
    assert len(functions) > 20
    for function, called in functions.items():
        if attribute == "__code__" and function.__closure__:
            continue  # python refuses a code without as many free variables
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(function, attribute, value)
            assert not called.same()
            assert not known.all_unpatched(), called.name
    assert known.all_unpatched()
