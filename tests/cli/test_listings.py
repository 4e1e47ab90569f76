"""The commands that list components and describe one."""

from __future__ import annotations

import json
import re
from typing import Any

import click
import pytest
from click.testing import CliRunner

import robust_plugins as rp
from robust_plugins.cli import commands
from robust_plugins.testing import fresh_registry  # noqa: F401 (a fixture)


def run(*arguments: str, columns: int = 80) -> Any:
    return CliRunner(env={"COLUMNS": str(columns)}).invoke(commands, list(arguments))


@pytest.mark.parametrize(
    ("group", "names"),
    [
        ("attacks", ("rp:margin-pgd", "art:pgd", "gradient:corner-pgd", "poison:backdoor")),
        ("certifiers", ("interval:crown", "lirpa:crown", "interval:relaxed")),
    ],
)
def test_components_of_every_kind_are_listed(group: str, names: tuple[str, ...]) -> None:
    for columns in (80, 200):
        result = run(group, "list", columns=columns)
        assert result.exit_code == 0
        assert columns > 80 or " ..." in result.stdout
        assert all(name in result.stdout for name in names)
        table = result.stdout.split("Not installed")[0].splitlines()
        assert max(map(len, table)) <= columns
    rows = json.loads(run(group, "list", "--json").stdout)
    assert set(names) <= {row["name"] for row in rows}
    assert len({row["kind"] for row in rows}) > 1


def test_lists_are_whole_where_there_is_no_terminal() -> None:
    piped = CliRunner(env={"COLUMNS": None}).invoke(commands, ["certifiers", "list"])
    assert piped.exit_code == 0
    assert " ..." not in piped.stdout
    assert all(len(line.split("  ")) > 1 for line in piped.stdout.splitlines() if line.startswith(" interval:"))


def test_a_component_is_described_with_defaults_and_types() -> None:
    shown = run("describe", "rp:pgd").stdout
    lines = shown.splitlines()
    assert lines[0].startswith("rp:pgd: attack of the plugin rp")
    assert max(map(len, lines)) <= 80
    (steps,) = [line.split() for line in lines if line.startswith(" steps ")]
    assert steps[1:] == [str(rp.attack("rp:pgd").steps), "int"]
    wide = run("describe", "rp:pgd", columns=300).stdout
    assert max(map(len, wide.splitlines())) <= 100
    assert shown.split() == wide.split()
    (info,) = json.loads(run("describe", "rp:pgd", "--json").stdout)
    assert {"name": "steps", "default": steps[1], "type": "int"} in info["parameters"]
    assert info["text"].startswith(rp.attack("rp:pgd").__doc__.splitlines()[0])


def test_every_component_can_be_described() -> None:
    lists = (rp.attacks(), rp.certifiers(), rp.explanation_attacks(), rp.explanation_certifiers(),
             rp.poisoning_attacks(), rp.datasets(), rp.models(), rp.recipes())  # fmt: skip
    for info in (info for infos in lists for info in infos):
        result = run("describe", info.name)
        assert result.exit_code == 0, info.name
        assert "It has no description" not in result.stdout, info.name


class Plugin:
    """A plugin whose attack is a bare function."""

    @rp.hookimpl
    def register_attacks(self, register: Any) -> None:
        register("lab:bare", lambda **anything: None)
        register("lab:signature", click.Choice)


def test_what_plugins_leave_out_is_said(fresh_registry: Any) -> None:  # noqa: F811
    rp.register(Plugin(), "lab")
    shown = run("describe", "lab:bare").stdout
    assert "It has no description." in shown
    assert "**anything" in shown
    assert run("describe", "lab:signature").exit_code == 0


def test_unknown_names_come_with_the_nearest_ones() -> None:
    result = run("describe", "rp:pdg")
    assert result.exit_code == 2
    assert re.search("unknown component 'rp:pdg'. Did you mean .*'rp:pgd'", result.stderr)


def test_no_name_is_broken_however_narrow_the_terminal_is() -> None:
    names = {info.name for info in rp.plugins()} | {name for info in rp.plugins() for name in info.components}
    for columns in (40, 60, 80, 120, 200):
        shown = run("plugins", "list", columns=columns).stdout
        words = set(shown.replace(",", " ").split())
        assert names <= words, names - words
        longest = max(map(len, names))
        causes = tuple(f"{info.name}: {info.error}" for info in rp.plugins() if info.error)
        table = [line for line in shown.splitlines() if not line.startswith(causes)]
        assert all(len(line) <= max(columns, longest + 4) for line in table)
