"""How commands behave: tracebacks, interruptions, files of others, widths, both streams, fractions."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from support.toys import Boxes, SignStep
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.cli import commands
from robust_plugins.cli.printing import one_stream
from robust_plugins.registry.registry import Registry, using


@dataclass(frozen=True, kw_only=True)
class Broken(SignStep):
    """Raises, or warns, or is interrupted."""

    how: str = "raises"

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, ball: rp.Ball, *, targeted: bool) -> Tensor:
        if self.how == "interrupted":
            raise KeyboardInterrupt
        if self.how == "warns":
            for _ in range(2):
                warnings.warn("the water is hot", stacklevel=1)
            return x
        raise ValueError("boom")


class Plugin:
    @rp.hookimpl
    def register_attacks(self, register: Any) -> None:
        register("toy:sign-step", SignStep)
        register("toy:broken", Broken)

    @rp.hookimpl
    def register_certifiers(self, register: Any) -> None:
        register("toy:boxes", Boxes)


class Failed:
    @rp.hookimpl
    def register_commands(self, register: Any) -> None:
        raise ImportError("no module named 'somewhere'")


@pytest.fixture(autouse=True)
def registry() -> Iterator[Registry]:
    with using(
        Registry(entry_points=False, block=["art", "lirpa", "rp", "verifier", "cascade", "torchattacks", "foolbox"])
    ) as fresh:
        fresh.register(Plugin(), "toy")
        yield fresh


def run(*arguments: str, **environment: str) -> Result:
    result = CliRunner(env=environment).invoke(commands, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


COMPARE = ("compare", "--data", "moons", "--model", "linear", "--eps", "0.1", "--samples", "20", "--epochs", "0")


def test_a_component_s_failure_has_its_place_and_on_request_its_traceback() -> None:
    plain = run(*COMPARE, "--component", "toy:broken")
    assert plain.exit_code == 1
    assert "failed: ValueError: boom (in perturb, " in plain.stdout
    assert f"{Path(__file__).name}:" in plain.stdout
    assert "Traceback" not in plain.output
    for asked in (run("--debug", *COMPARE, "--component", "toy:broken"),
                  run(*COMPARE, "--component", "toy:broken", ROBUST_PLUGINS_DEBUG="1")):  # fmt: skip
        assert asked.stderr.count("Traceback (most recent call last)") == 1
        assert 'raise ValueError("boom")' in asked.stderr
        assert asked.stdout == plain.stdout
    refused = run("--debug", "compare", "--data", "no_such", "--model", "linear", "--eps", "1")
    assert (refused.exit_code, "Traceback" in refused.stderr, "unknown data set" in refused.stderr) == (2, True, True)
    assert "Traceback" not in run(*COMPARE, "--component", "toy:broken", ROBUST_PLUGINS_DEBUG="0").output


def test_ctrl_c_is_130_and_says_how_to_go_on(tmp_path: Path) -> None:
    stopped = run(*COMPARE, "--component", "toy:broken(how='interrupted')")
    assert (stopped.exit_code, stopped.stderr) == (130, "interrupted; nothing was kept\n")
    options = (
        "--data",
        "moons",
        "--model",
        "mlp(widths=(4,))",
        "--eps",
        "0.1",
        "--epochs",
        "2",
        "--recipe",
        "standard",
    )
    out = tmp_path / "a folder"
    arguments = ("train", *options, "--attack", "toy:broken(how='interrupted')", "--out", str(out))
    stopped = run(*arguments)
    assert stopped.exit_code == 130
    said = stopped.stderr.splitlines()[-1]
    assert said == f"interrupted; go on with: {shlex.join(['robust-plugins', *arguments])}"
    assert "Aborted" not in stopped.output


@pytest.mark.filterwarnings("default")
def test_warnings_are_one_line_each() -> None:
    found = run(*COMPARE, "--component", "toy:broken(how='warns')")
    assert found.exit_code == 0
    assert [line for line in found.stderr.splitlines() if "Warning" in line] == ["Warning: the water is hot"]


def test_an_unknown_command_names_the_plugins_that_failed(registry: Registry) -> None:
    assert "that failed" not in run("frobnicate").stderr
    with pytest.raises(rp.PluginError):
        registry.register(Failed(), "theirs")
    found = run("frobnicate")
    assert found.exit_code == 2
    assert "No such command 'frobnicate'" in found.stderr
    assert "theirs: ImportError: no module named 'somewhere'" in " ".join(found.stderr.split())


def test_radii_are_written_as_people_write_them() -> None:
    one, other = (
        json.loads(run(*COMPARE[:5], "--eps", eps, *COMPARE[7:], "--component", "toy:boxes", "--json").stdout)
        for eps in ("8/255", str(8 / 255))
    )
    assert one["comparisons"][0]["ball"] == other["comparisons"][0]["ball"]
    assert one["comparisons"][0]["bracket"] == other["comparisons"][0]["bracket"]
    for wrong, said in (
        ("8/0", "is no fraction"),
        ("x/3", "is no fraction"),
        ("-1/255", "range"),
        ("nan", "finite"),
        ("abc", "is no number"),
    ):
        refused = run(*COMPARE, f"--eps={wrong}")
        assert (refused.exit_code, said in refused.stderr) == (2, True), refused.stderr


def test_a_device_that_is_none_is_refused_before_anything_runs(tmp_path: Path) -> None:
    poison = ("poison", "--data", "moons", "--model", "linear", "--budget", "labels=1", "--out", str(tmp_path / "p"))
    for command in (COMPARE, ("explain", *COMPARE[1:]), poison):
        refused = run(*command, "--device", "abacus")
        assert refused.exit_code == 2
        assert "'abacus' is no device of this machine" in " ".join(refused.stderr.split())
    assert run(*COMPARE, "--device", "cpu", "--component", "toy:boxes").exit_code == 0


def test_the_page_of_compare_says_where_it_comes_from(tmp_path: Path) -> None:
    page = tmp_path / "new" / "page.html"
    arguments = (
        *COMPARE,
        "--eps",
        "0.2",
        "--component",
        "toy:sign-step",
        "--component",
        "toy:boxes",
        "--page",
        str(page),
    )
    done = run(*arguments)
    assert done.exit_code == 0
    assert done.stdout.endswith(f"The page with the pictures: {page}\n")
    text = page.read_text()
    assert "<svg" in text
    assert "linear" in text
    assert shlex.join(["robust-plugins", *arguments]).replace("'", "&#39;") in text
    assert "20 samples" in text
    assert "95 % intervals (Wilson)" in text
    assert "95 % intervals (Wilson), as 20 samples are a part of all data: clean " in done.stdout
    assert run(*arguments).exit_code == 0  # our own page is replaced


def test_files_of_others_are_never_replaced(tmp_path: Path) -> None:
    page = tmp_path / "theirs.html"
    page.write_text("<html>somebody's</html>")
    for command in (COMPARE, ("explain", *COMPARE[1:])):
        refused = run(*command, "--page", str(page))
        assert (refused.exit_code, "holds something else" in refused.stderr) == (2, True)
        assert "training" not in refused.stderr
    model, x = nn.Linear(2, 2), torch.rand(3, 2)
    found = rp.compare(model, x, model(x).argmax(1), rp.Linf(eps=0.1, clip=None), [Boxes()])
    with pytest.raises(rp.ArgumentError, match="holds something else"):
        rp.write_report(page, found, title="mine")
    assert page.read_text() == "<html>somebody's</html>"
    for name in ("record.json", "bracket-0.svg", "checkpoint-0"):
        out = tmp_path / name.partition(".")[0]
        out.mkdir()
        (out / name).write_text("theirs")
        refused = run("poison", "--data", "moons", "--model", "linear", "--budget", "labels=1", "--out", str(out))
        assert (refused.exit_code, "of something else" in refused.stderr) == (2, True)
        assert (out / name).read_text() == "theirs"
        assert os.listdir(out) == [name]


@pytest.mark.parametrize("width", [40, 70])
def test_tables_follow_the_terminal_s_width(width: int) -> None:
    radii = [argument for eps in ("0.01", "0.02", "0.03", "0.04", "0.05") for argument in ("--eps", eps)]
    narrow = run(*COMPARE, *radii, "--component", "toy:boxes", COLUMNS=str(width)).stdout
    table = narrow.partition("Linf 0.1:")[0]
    assert max(map(len, table.splitlines())) <= width
    for eps in ("0.01", "0.05", "0.1"):
        assert f"Linf {eps}" in table
    listed = run("models", "list", COLUMNS=str(width)).stdout
    assert max(map(len, listed.splitlines())) <= width
    wide = run(*COMPARE, *radii, "--component", "toy:boxes", COLUMNS="200").stdout
    assert wide.count("accuracy of") == 1


def test_with_both_streams_in_one_file_nothing_is_there_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "a").open("w") as one, (tmp_path / "a").open("w") as same, (tmp_path / "b").open("w") as other:
        for out, err, together in ((one, same, True), (one, other, False)):
            with monkeypatch.context() as patch:
                patch.setattr(sys, "stdout", out)
                patch.setattr(sys, "stderr", err)
                found = one_stream()
            assert found is together
    command = ("train", "--data", "moons", "--model", "linear", "--recipe", "standard", "--eps", "0.1", "--epochs", "2")
    options = ("--samples", "20", "--attack", "toy:sign-step", "--certifier", "toy:boxes")
    for together in (True, False):
        patch_at = sys.modules["robust_plugins.cli.train"]
        with monkeypatch.context() as patch:
            patch.setattr(patch_at, "one_stream", lambda together=together: together)
            done = run(*command, *options, "--out", str(tmp_path / str(together)))
        assert done.exit_code == 0, done.output
        assert done.stderr.count("epoch") == 1  # the title of the table
        assert done.stdout.count("epoch") == (0 if together else 1)
        assert "The weights, the record and the learning curve" in done.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a file that is always full")
def test_a_full_disk_gets_one_line() -> None:
    command = [sys.executable, "-m", "robust_plugins", "data", "list"]
    with Path("/dev/full").open("w") as full:
        run = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert run.returncode == 1
    assert run.stderr == (
        "Error: the output cannot be written: No space left on device; write it where there is room\n"
    )
