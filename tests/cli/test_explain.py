"""`robust-plugins explain`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.cli import commands
from robust_plugins.registry.registry import Registry, using


@dataclass(frozen=True, kw_only=True)
class AsAtX(rp.ExplanationCertifier):
    """Unsound: claims that the explanation at x is the only one."""

    def gradient_bounds(
        self, model: nn.Module, x: Tensor, ball: rp.Ball, explained: rp.Explained, *, radius: float
    ) -> rp.Interval:
        return rp.Interval.point(explained.gradient(model, x))


class Plugin:
    @rp.hookimpl
    def register_explanation_certifiers(self, register: Any) -> None:
        register("toy:as-at-x", AsAtX)
        register("toy:absent", AsAtX, requires=("no_such_backend",))


@pytest.fixture(autouse=True)
def registry() -> Iterator[Registry]:
    with using(Registry(entry_points=False, block=["art", "lirpa"])) as fresh:
        fresh.register(Plugin(), "toy")
        yield fresh


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(commands, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


EXPLAIN = ("explain", "--data", "moons", "--model", "mlp(widths=(8,))", "--samples", "10", "--epochs", "1")
QUICK = ("--component", "gradient:corner-pgd(corners=5, steps=2, restarts=2, rung=1)")


def test_the_table_and_the_page(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    result = run(
        *EXPLAIN, "--eps", "0.01", "--eps", "0.1", *QUICK, "--component", "interval:relaxed", "--page", str(page)
    )
    assert result.exit_code == 0
    assert result.stdout.count("interval:relaxed") == 2
    assert "Linf 0.1: the median relative deviation is between" in result.stdout
    assert "No attack contradicts a certificate." in result.stdout
    text = page.read_text(encoding="utf-8")
    assert "Explanations of mlp(widths=(8,)) on moons" in text
    assert text.count("<svg") == 2


def test_json_is_the_comparison_itself() -> None:
    options = ("--eps", "0.1", "--of", "margin", "--top", "1", "--delta", "0.5", "--radius", "0.01", "--json")
    result = run(*EXPLAIN, *options, *QUICK, "--component", "interval:ibp")
    assert result.exit_code == 0
    out = json.loads(result.stdout)
    assert (out["model"], out["data"], out["epochs"]) == ("mlp(widths=(8,))", "moons", 1)
    (comparison,) = out["comparisons"]
    assert {k: comparison[k] for k in ("of", "k", "delta", "radius", "samples")} == {
        "of": "margin", "k": 1, "delta": 0.5, "radius": 0.01, "samples": 10,
    }  # fmt: skip
    assert [row["kind"] for row in comparison["rows"]] == ["explanation attack", "explanation certifier"]


def test_without_components_all_that_are_there() -> None:
    result = run(*EXPLAIN, "--eps", "0.2")
    assert "left out: toy:absent" in result.stderr
    for name in ("gradient:corner-pgd", "interval:ibp", "interval:crown", "interval:relaxed", "toy:as-at-x"):
        assert name in result.stdout


def test_a_contradiction_is_exit_code_3() -> None:
    result = run(*EXPLAIN, "--eps", "0.5", *QUICK, "--component", "toy:as-at-x")
    assert (result.exit_code, "CONTRADICTION" in result.stdout) == (3, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--component", "interval:ipb"), "Did you mean 'interval:ibp'"),
        (("--component", "interval:relaxed(effort=9)"), "effort"),
        (("--of", "softmax"), "softmax"),
        (("--weights", "file.pt"), "--epochs trains a new network"),
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: tuple[str, ...], message: str) -> None:
    result = run(*EXPLAIN, "--eps", "0.1", *arguments)
    assert (result.exit_code, message in result.stderr) == (2, True)


def test_a_page_that_cannot_be_written_is_found_before_anything_is_computed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("theirs")
    for page in (tmp_path, tmp_path / "file" / "page.html"):
        result = run(*EXPLAIN, "--eps", "0.1", *QUICK, "--page", str(page))
        assert result.exit_code == 2
        assert f"`--page` is {page}" in result.stderr
        assert "training" not in result.stderr
    assert (tmp_path / "file").read_text() == "theirs"
    before = tmp_path / "page.html"
    before.write_text("before")
    run(*EXPLAIN, "--eps", "0.1", "--component", "interval:ipb", "--page", str(before))
    assert before.read_text() == "before"  # not lost to a run that fails
