from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.cli import commands
from robust_plugins.registry.registry import Registry, using


@dataclass(frozen=True, kw_only=True)
class Corner(rp.Attack):
    """Moves every input to one random corner of the ball."""

    shrink: float = 1.0

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, ball: rp.Ball, *, targeted: bool) -> Tensor:
        return x + self.shrink * (ball.sample(x, 1, draw="corner")[0] - x)


@dataclass(frozen=True, kw_only=True)
class Fixed(rp.Certifier):
    """Bounds that are sound (everything), unsound (only the clean logits), NaN, or none at all."""

    says: str = "everything"

    def propagate(self, model: nn.Module, x: Tensor, ball: rp.Ball, spec: Tensor | None) -> rp.Interval:
        if self.says == "failure":
            raise RuntimeError("the backend gave up")
        clean = rp.apply_spec(rp.Interval.point(model(x)), spec)
        width = {"everything": torch.inf, "unsound": 0.0, "nan": torch.nan}[self.says]
        return rp.Interval(clean.lower - width, clean.upper + width)


class Plugin:
    """An attack and a certifier of somebody, and three commands: one works, one does not load, one fails."""

    @rp.hookimpl
    def register_attacks(self, register: Any) -> None:
        register("toy:corner", Corner)

    @rp.hookimpl
    def register_certifiers(self, register: Any) -> None:
        register("toy:fixed", Fixed)
        register("toy:absent", Fixed, requires=("no_such_backend",))

    @rp.hookimpl
    def register_commands(self, register: Any) -> None:
        register("greet", lambda: click.Command("greet", callback=lambda: click.echo("hello"), help="Say hello."))
        register("unloadable", lambda: 1 / 0)
        register("no-command", lambda: "text")
        register("failing", lambda: click.Command("failing", callback=lambda: 1 / 0))


class Broken:
    @rp.hookimpl
    def register_attack(self, register: Any) -> None:
        """Misspelt."""


@pytest.fixture(autouse=True)
def registry() -> Iterator[Registry]:
    """The plugin above and the built-in ones, without their attacks and certifiers: the toys are all there are."""
    blocked = ["art", "lirpa", "rp", "interval", "verifier", "cascade", "torchattacks", "foolbox"]
    with using(Registry(entry_points=False, block=blocked)) as fresh:
        fresh.register(Plugin(), "toy")
        yield fresh


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(commands, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


COMPARE = ("compare", "--data", "moons", "--model", "linear", "--eps", "0.3", "--samples", "20")


def test_help_names_the_exit_codes() -> None:
    for arguments in (("--help",), ("compare", "--help")):
        result = run(*arguments)
        assert result.exit_code == 0
        assert "Exit codes: 0 success; 1 a component" in result.stdout


@pytest.mark.parametrize("arguments", [("plugins", "list"), ("data", "list"), ("models", "list"), ("recipes", "list")])
def test_lists(arguments: tuple[str, ...]) -> None:
    expected = {"plugins": "toy:corner", "data": "moons", "models": "mlp", "recipes": "ibp"}[arguments[0]]
    result = run(*arguments)
    assert (result.exit_code, expected in result.stdout) == (0, True)
    rows = json.loads(run(*arguments, "--json").stdout)
    assert any(expected in (row["name"], *row.get("components", ())) for row in rows)


def test_plugins_list_shows_what_failed(registry: Registry) -> None:
    with pytest.raises(rp.PluginError):
        registry.register(Broken(), "broken")
    result = run("plugins", "list")
    assert result.exit_code == 0
    assert "broken: UnknownNameError: unknown hook 'register_attack'. Did you mean 'register_attacks'" in result.stdout
    status = {row["name"]: row["status"] for row in json.loads(run("plugins", "list", "--json").stdout)}
    assert status == {
        "art": "blocked", "lirpa": "blocked", "rp": "blocked", "interval": "blocked", "verifier": "blocked",
        "cascade": "blocked", "torchattacks": "blocked", "foolbox": "blocked",
        "data": "loaded", "models": "loaded", "explanations": "loaded", "losses": "loaded", "poison": "loaded",
        "toy": "loaded", "broken": "failed",
    }  # fmt: skip


def test_plugins_check(registry: Registry) -> None:
    with pytest.raises(rp.PluginError):
        registry.register(Broken(), "broken")
    assert run("plugins", "check", "data").exit_code == 0
    broken = run("plugins", "check", "broken")
    assert (broken.exit_code, "Did you mean 'register_attacks'" in broken.stdout) == (1, True)
    blocked = run("plugins", "check", "art")
    assert (blocked.exit_code, "ROBUST_PLUGINS_BLOCK" in blocked.stdout) == (1, True)
    absent = run("plugins", "check", "toy")
    assert (absent.exit_code, "pip install no_such_backend" in absent.stdout) == (1, True)
    assert "shrink" in absent.stdout
    assert json.loads(run("plugins", "check", "toy", "--json").stdout)["components"][0]["name"] == "toy:corner"
    unknown = run("plugins", "check", "toyy")
    assert unknown.exit_code == 2
    assert unknown.stderr.startswith("Error: unknown plugin 'toyy'. Did you mean 'toy'?")
    assert unknown.stderr.count("\n") == 1


def test_compare_trains_and_prints_one_table() -> None:
    result = run(*COMPARE, "--eps", "0.1", "--epochs", "3")
    assert result.exit_code == 0
    assert "Linf 0.3" in result.stdout
    assert "Linf 0.1" in result.stdout
    assert "toy:corner" in result.stdout
    assert "training on 800 samples of moons for 3 epochs" in result.stderr
    assert "left out: toy:absent, backend missing; install it: pip install no_such_backend" in result.stderr


@dataclass(frozen=True, kw_only=True)
class Search(Fixed):
    timeout: float = 60.0


class Searches:
    @rp.hookimpl
    def register_certifiers(self, register: Any) -> None:
        register("toy:search", Search)


def test_compare_runs_searches_where_they_are_named(registry: Registry) -> None:
    registry.register(Searches(), "searches")
    result = run(*COMPARE, "--epochs", "0")
    assert (result.exit_code, "toy:search" in result.stdout) == (0, False)
    assert "left out: toy:search, which may take its timeout for each sample" in result.stderr
    assert "toy:search" in run(*COMPARE, "--epochs", "0", "--component", "toy:search").stdout


def test_compare_json_is_the_comparison_itself() -> None:
    out = json.loads(run(*COMPARE, "--json", "--seed", "7", "--norm", "l2", "--epochs", "2").stdout)
    torch.manual_seed(7)
    model = rp.load_model("linear", input_shape=(2,), classes=2)
    data = rp.dataset("moons")
    from robust_plugins.networks import train

    train(model, data.x_train, data.y_train, epochs=2, seed=7)
    ball = rp.L2(eps=0.3, clip=(0, 1))
    table = rp.compare(model, data.x_test[:20], data.y_test[:20], ball, ["toy:corner", "toy:fixed"], seed=7).to_dict()
    found = out["comparisons"][0]
    for part in (table, found):
        for row in part["rows"]:
            del row["seconds"]
    assert (out["model"], out["data"], out["epochs"]) == ("linear", "moons", 2)
    assert found == json.loads(json.dumps(table))


def test_compare_chooses_components_with_parameters() -> None:
    out = json.loads(run(*COMPARE, "--json", "--component", "toy:corner(shrink=0.0)").stdout)
    (row,) = out["comparisons"][0]["rows"]
    assert row["name"] == "toy:corner(shrink=0.0)"
    assert row["accuracy"] == out["comparisons"][0]["clean"]
    assert out["epochs"] == 10


def test_compare_reads_weights_files_and_archives(tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((40, 3))
    np.savez(tmp_path / "own.npz", x_train=x, y_train=x[:, 0], x_test=x, y_test=(x[:, 0] > 0.5).astype(int))
    arguments = ["compare", "--data", str(tmp_path / "own.npz"), "--eps", "0.1", "--json"]
    wrong = run(*arguments, "--model", "linear")
    assert (wrong.exit_code, "accepted: integers" in wrong.stderr) == (2, True)
    y = (x[:, 0] > 0.5).astype(int)
    np.savez(tmp_path / "own.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 2)).double()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[-1, 0, 0], [1, 0, 0]]))
        model[1].bias.copy_(torch.tensor([0.5, -0.5]))
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    weighted = run(*arguments, "--model", "linear", "--weights", str(tmp_path / "weights.pt"))
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(model, (torch.rand(2, 3, dtype=torch.float64),), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "model.pt2")
    exported = run(*arguments, "--model", str(tmp_path / "model.pt2"), "--clip", "0", "1")
    for result, clip in ((weighted, None), (exported, [0, 1])):
        assert result.exit_code == 0
        out = json.loads(result.stdout)
        assert (out["epochs"], out["comparisons"][0]["clean"]) == (0, 1)
        assert out["comparisons"][0]["ball"]["clip"] == clip


def test_a_contradiction_is_exit_code_3() -> None:
    crossing = ("--component", "toy:corner", "--component", "toy:fixed(says='unsound')")
    result = run(*COMPARE, *crossing)
    assert result.exit_code == 3
    assert "CONTRADICTION" in result.stdout
    # Also where something failed as well.
    failed = ("--component", "toy:fixed(says='failure')")
    assert (
        run(*COMPARE, "--component", "toy:corner", "--component", "toy:fixed(says='unsound')", *failed).exit_code == 3
    )


@pytest.mark.parametrize("says", ["failure", "nan"])
def test_a_failed_component_is_exit_code_1(says: str) -> None:
    result = run(*COMPARE, "--component", f"toy:fixed(says={says!r})", "--component", "toy:corner")
    assert result.exit_code == 1
    if says == "failure":
        assert "the backend gave up" in result.stdout
    else:
        assert "toy:fixed(says='nan'): error on 20 of 20 samples: the bounds are NaN" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--component", "toy:cornr"), "Did you mean 'toy:corner'"),
        (("--component", "toy:corner(skrink=1)"), "Did you mean 'shrink'"),
        (("--component", "toy:corner(shrink=a)"), "Python literals"),
        (("--model", "lin"), "Did you mean 'linear'"),
        (("--model", "none.pt2"), "no file"),
        (("--data", "moon"), "Did you mean 'moons'"),
        (("--data", "none.npz"), "existing .npz file"),
        (("--eps", "-1"), "-1.0 is not in the range"),
        (("--clip", "1", "0"), "`clip` is"),
        (("--norm", "l3"), "'l3' is not one of"),
        (("--samples", "0"), "--samples"),
        (("--weights", "none.pt"), "no file"),
        (("--weights", "none.pt", "--epochs", "3"), "--epochs trains a new network"),
        (("--frob",), "--frob"),
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: tuple[str, ...], message: str) -> None:
    result = run(*COMPARE, "--epochs", "0", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not result.stdout


def test_without_any_component_there_is_nothing_to_compare(registry: Registry) -> None:
    registry.unregister("toy")
    result = run(*COMPARE, "--epochs", "0")
    assert (result.exit_code, "no attack or certifier is available" in result.stderr) == (1, True)


def test_a_missing_backend_is_exit_code_1() -> None:
    result = run(*COMPARE, "--epochs", "0", "--component", "toy:absent")
    assert (result.exit_code, "pip install no_such_backend" in result.stderr) == (1, True)


def test_commands_of_plugins() -> None:
    listed = run("--help").stdout
    assert "Say hello." in listed
    assert "(failed: division by zero)" in listed
    assert run("greet").stdout == "hello\n"
    for name, cause in (
        ("unloadable", "ZeroDivisionError: division by zero"),
        ("no-command", "PluginError: its factory returned 'text', which is no click.Command"),
        ("failing", "ZeroDivisionError: division by zero"),
    ):
        result = run(name)
        assert result.exit_code == 1
        assert result.stderr.startswith(f"Error: command {name!r} of plugin 'toy' failed: {cause}")
        assert result.stderr.count("\n") == 1
        assert (f"{Path(__file__).name}:" in result.stderr) == (name != "no-command")  # whose code it is
    assert run("gret").exit_code == 2


def test_our_own_bugs_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(name: str) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(sys.modules["robust_plugins.cli.subject"], "dataset", bug)
    with pytest.raises(ZeroDivisionError):
        run(*COMPARE)


def test_installed_command_finds_models_in_the_working_folder(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("from torch import nn\nbuild = lambda: nn.Linear(2, 2)\n")
    command = [str(Path(sys.executable).with_name("robust-plugins")), "compare", "--data", "moons", "--eps", "0.1"]
    options = ["--model", "mine:build", "--component", "art:fgsm", "--samples", "5", "--json"]
    done = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["epochs"] == 0


@pytest.mark.parametrize("group", [[], ["bench"]], ids=["all", "bench"])
def test_every_command_is_summed_up_in_a_whole_sentence(group: list[str]) -> None:
    told = CliRunner().invoke(commands, [*group, "--help"], terminal_width=80).output
    assert "Commands:" in told
    assert "..." not in told.split("Commands:")[1]


def test_a_misspelt_command_is_answered_with_the_nearest_one() -> None:
    found = CliRunner().invoke(commands, ["comparee"])
    assert found.exit_code == 2
    assert "Did you mean 'compare'?" in found.output


def test_a_misspelt_name_is_answered_with_the_nearest_ones_alone() -> None:
    many = [f"lab:{word}" for word in map(str, range(100, 160))]
    assert str(rp.UnknownNameError("component", "rp:pgdd", ["rp:pgd", *many])) == (
        "unknown component 'rp:pgdd'. Did you mean 'rp:pgd'? 61 are known."
    )
    assert "lab:159." in str(rp.UnknownNameError("component", "@@", many)), "none is near: all are named"
    assert "Known: lab:100, rp:pgd." in str(rp.UnknownNameError("component", "rp:pgdd", ["rp:pgd", "lab:100"]))
