"""Discovery: every plugin is loaded, validated and reported on its own."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from support.toys import Boxes, Plugin, SignStep

import robust_plugins as rp
from robust_plugins.registry import backends
from robust_plugins.registry.hookspecs import HookSpecs
from robust_plugins.registry.information import Kind, Status
from robust_plugins.registry.naming import parse_component
from robust_plugins.registry.registry import Registry, using
from robust_plugins.testing import fresh_registry  # noqa: F401 (a fixture)

ENTRY_POINTS = {
    "good": "import robust_plugins as rp\nfrom support.toys import SignStep\n"
    "@rp.hookimpl\ndef register_attacks(register):\n    register('good:step', SignStep)\n",
    "broken-import": "import no_such_package_at_all\n",
    "misspelt": "import robust_plugins as rp\n@rp.hookimpl\ndef register_attack(register):\n    pass\n",
    "half": "import robust_plugins as rp\nfrom support.toys import Boxes, SignStep\n"
    "@rp.hookimpl\ndef register_attacks(register):\n    register('half:step', SignStep)\n"
    "@rp.hookimpl\ndef register_certifiers(register):\n    raise OSError('disk on fire')\n",
    "twice": "import robust_plugins as rp\nfrom support.toys import SignStep\n"
    "@rp.hookimpl\ndef register_attacks(register):\n    register('good:step', SignStep)\n",
    "leaves": "raise SystemExit('bye')\n",
    "zero-hooks": "x = 1\n",
    "unmarked": "import robust_plugins as rp\nfrom support.toys import Boxes, SignStep\n"
    "@rp.hookimpl\ndef register_attacks(register):\n    register('unmarked:step', SignStep)\n"
    "def register_certifiers(register):\n    register('unmarked:boxes', Boxes)\n",
    "none-marked": "def register_attacks(register):\n    pass\ndef register_models(register):\n    pass\n",
    "backendless": "import robust_plugins as rp\nfrom support.toys import SignStep\n"
    "@rp.hookimpl\ndef register_attacks(register):\n"
    "    register('backendless:a', SignStep, requires=(rp.Backend('no_such_backend', 'pip install it-really'),))\n",
}


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A distribution with one entry point per source above, as a package manager would have left it."""
    for name, source in ENTRY_POINTS.items():
        (tmp_path / f"plugin_{name.replace('-', '_')}.py").write_text(source)
    info = tmp_path / "acme-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.2\n")
    lines = [f"{name} = plugin_{name.replace('-', '_')}" for name in ENTRY_POINTS]
    (info / "entry_points.txt").write_text("[robust_plugins]\n" + "\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in ENTRY_POINTS:
        sys.modules.pop(f"plugin_{name.replace('-', '_')}", None)


def _status(registry: Registry) -> dict[str, Status]:
    return {plugin.name: plugin.status for plugin in registry.plugins()}


def test_each_plugin_has_its_own_status(installed) -> None:
    registry = Registry(builtins=False, block=(), load=None)
    assert _status(registry) == {
        "backendless": Status.BACKEND_MISSING,
        "broken-import": Status.FAILED,
        "good": Status.LOADED,
        "half": Status.FAILED,
        "leaves": Status.FAILED,
        "misspelt": Status.FAILED,
        "none-marked": Status.FAILED,
        "twice": Status.FAILED,
        "unmarked": Status.LOADED,
        "zero-hooks": Status.FAILED,
    }
    plugins = {plugin.name: plugin for plugin in registry.plugins()}
    assert (plugins["good"].distribution, plugins["good"].version) == ("acme", "1.2")
    assert plugins["good"].hooks == ("register_attacks",)
    assert plugins["good"].components == ("good:step",)
    assert "No module named 'no_such_package_at_all'" in plugins["broken-import"].error
    assert "Did you mean 'register_attacks'" in plugins["misspelt"].error
    assert "OSError: disk on fire" in plugins["half"].error
    assert f"{installed / 'plugin_half.py'}:8" in plugins["half"].error
    assert "SystemExit: bye" in plugins["leaves"].error
    assert "provided twice: by plugin 'good' and by plugin 'twice'" in plugins["twice"].error
    assert "implements no hook" in plugins["zero-hooks"].error
    assert "backendless:a needs no_such_backend; install it: pip install it-really" in plugins["backendless"].error
    assert registry.create(Kind.ATTACK, "good:step") == SignStep()


def test_a_function_that_only_looks_like_a_hook_is_named(installed) -> None:
    plugins = {plugin.name: plugin for plugin in Registry(builtins=False, block=(), load=None).plugins()}
    assert plugins["unmarked"].unmarked == ("register_certifiers",)
    assert plugins["unmarked"].components == ("unmarked:step",)
    assert plugins["unmarked"].error == (
        "its function register_certifiers has the name of a hook and is not marked with @rp.hookimpl: "
        "it registers nothing"
    )
    assert "its functions register_attacks, register_models have the names of hooks" in plugins["none-marked"].error
    assert plugins["good"].unmarked == ()


def test_what_lacks_its_backend_is_named(fresh_registry) -> None:  # noqa: F811
    class Mixed:
        @rp.hookimpl
        def register_attacks(self, register):
            register("mixed:here", SignStep)
            register("mixed:away", SignStep, requires=(rp.Backend("torch", "pip install newer", at_least="99.1"),))
            register("mixed:gone", SignStep, requires=("no_such_backend",))

    info = rp.register(Mixed(), "mixed")
    assert info.status is Status.LOADED
    assert "mixed:away needs torch 99.1; install it: pip install newer" in info.error
    assert "mixed:gone needs no_such_backend; install it: pip install no_such_backend" in info.error
    assert "mixed:here" not in info.error


def test_a_component_of_a_failed_plugin_raises_with_the_cause(installed) -> None:
    registry = Registry(builtins=False, block=(), load=None)
    with pytest.raises(rp.PluginError, match="disk on fire") as caught:
        registry.create(Kind.ATTACK, "half:step")
    assert isinstance(caught.value.__cause__, OSError)
    with pytest.raises(rp.PluginError, match="no_such_package_at_all"):
        registry.create(Kind.CERTIFIER, "broken-import:anything")
    with pytest.raises(rp.PluginError, match=r"needs no_such_backend.*pip install it-really"):
        registry.create(Kind.ATTACK, "backendless:a")


def test_blocking_and_choosing(installed, monkeypatch) -> None:
    monkeypatch.setenv("ROBUST_PLUGINS_BLOCK", "good, art")
    blocked = Registry()
    assert _status(blocked)["good"] is Status.BLOCKED
    assert _status(blocked)["art"] is Status.BLOCKED
    assert _status(blocked)["twice"] is Status.LOADED  # its rival is gone
    with pytest.raises(rp.PluginError, match="blocked by ROBUST_PLUGINS_BLOCK"):
        blocked.create(Kind.ATTACK, "art:pgd")
    monkeypatch.setenv("ROBUST_PLUGINS_BLOCK", "godo")
    misspelt = Registry(builtins=False)
    assert _status(misspelt)["good"] is Status.LOADED
    assert "no installed plugin has that name" in next(p.error for p in misspelt.plugins() if p.name == "godo")
    monkeypatch.setenv("ROBUST_PLUGINS_BLOCK", "acme")
    assert {s for n, s in _status(Registry(builtins=False)).items()} == {Status.BLOCKED}
    monkeypatch.delenv("ROBUST_PLUGINS_BLOCK")
    monkeypatch.setenv("ROBUST_PLUGINS_LOAD", "good,absent")
    chosen = Registry(builtins=False)
    assert _status(chosen) == {"good": Status.LOADED, "absent": Status.FAILED}
    monkeypatch.setenv("ROBUST_PLUGINS_LOAD", "")
    assert _status(Registry(builtins=False)) == {}


def test_one_name_for_two_plugins_is_reported(installed, tmp_path) -> None:
    registry = Registry(builtins=False, block=(), load=["good"])
    with pytest.raises(rp.PluginError, match="registered already"):
        registry.register(Plugin(), "good")


def test_registering_in_this_process(fresh_registry) -> None:  # noqa: F811
    info = rp.register(Plugin(), "toys")
    assert info.status is Status.LOADED
    assert info.components == ("toy:sign-step", "toy:boxes")
    assert "toy:sign-step" in [a.name for a in rp.attacks()]
    assert rp.attack("toy:sign-step(batch_size=3)") == SignStep(batch_size=3)
    assert rp.certifier("toy:boxes", batch_size=2) == Boxes(batch_size=2)
    rp.unregister("toys")
    with pytest.raises(rp.UnknownNameError):
        rp.attack("toy:sign-step")
    rp.register(Plugin(), "toys")


def test_a_plugin_that_fails_leaves_nothing_behind(fresh_registry) -> None:  # noqa: F811
    class Half:
        @rp.hookimpl
        def register_attacks(self, register) -> None:
            register("half:ok", SignStep)
            register("HALF:bad", SignStep)

    with pytest.raises(rp.PluginError, match="'HALF:bad'; accepted: lower case"):
        rp.register(Half())
    assert "half:ok" not in [a.name for a in rp.attacks()]
    rp.register(Plugin(), "Half")  # the name is free again


@pytest.mark.parametrize("bad", ["no factory", 3, None])
def test_a_factory_must_be_callable(bad, fresh_registry, unchecked) -> None:  # noqa: F811
    class Bad:
        @rp.hookimpl
        def register_attacks(self, register) -> None:
            register("bad:one", bad)

    with pytest.raises(rp.PluginError, match="a class or function"):
        rp.register(Bad())


def test_a_factory_of_the_wrong_kind_is_named(fresh_registry) -> None:  # noqa: F811
    class Wrong:
        @rp.hookimpl
        def register_attacks(self, register) -> None:
            register("wrong:dict", dict)

    rp.register(Wrong())
    with pytest.raises(rp.PluginError, match=r"returned \{\}, which is no rp.Attack"):
        rp.attack("wrong:dict")


def test_unknown_names_and_parameters_name_the_nearest(fresh_registry, unchecked) -> None:  # noqa: F811
    rp.register(Plugin(), "toys")
    with pytest.raises(rp.UnknownNameError, match=r"unknown attack 'toy:sign-stop'. Did you mean 'toy:sign-step'"):
        rp.attack("toy:sign-stop")
    with pytest.raises(rp.UnknownNameError, match=r"'batchsize'. Did you mean 'batch_size'"):
        rp.attack("toy:sign-step", batchsize=3)


def test_a_parameter_that_the_factory_refuses_is_named(fresh_registry) -> None:  # noqa: F811
    class Needs:
        @rp.hookimpl
        def register_attacks(self, register) -> None:
            register("needs:radius", lambda radius: SignStep(batch_size=radius + 0))

    rp.register(Needs())
    with pytest.raises(rp.ArgumentError, match=r"`parameters of needs:radius` is \{\}; accepted: radius"):
        rp.attack("needs:radius")
    with pytest.raises(rp.ArgumentError, match=r"`parameters of needs:radius` is \{'radius': 'x'\}"):
        rp.attack("needs:radius", radius="x")


@pytest.mark.parametrize(
    ("text", "name", "parameters"),
    [
        ("art:pgd", "art:pgd", {}),
        ("art:pgd(steps=40, start='gaussian')", "art:pgd", {"steps": 40, "start": "gaussian"}),
        ("mlp(widths=(64, 64))", "mlp", {"widths": (64, 64)}),
        ("a:b()", "a:b", {}),
    ],
)
def test_components_are_written_as_calls(text, name, parameters) -> None:
    assert parse_component(text) == (name, parameters)


@pytest.mark.parametrize(
    "text", ["art:pgd(40)", "art:pgd(steps=40", "art:pgd(steps=open('x'))", "a(**{})", "a(b=1)(c=2)", "a(b=1, b=2)"]
)
def test_only_literals_are_read(text) -> None:
    with pytest.raises(rp.ArgumentError, match="parameter=literal"):
        parse_component(text)


def test_observers_hear_of_a_run_and_cannot_end_it(fresh_registry) -> None:  # noqa: F811
    heard = []

    class Observer:
        @rp.hookimpl
        def on_run_start(self, run) -> None:
            heard.append(("start", run["components"], run["samples"]))

        @rp.hookimpl
        def on_record(self, run, name, result) -> None:
            heard.append((name, type(result).__name__))

        @rp.hookimpl
        def on_run_end(self, run, error) -> None:
            heard.append(("end", error))
            raise OSError("no space left")

    from robust_plugins.testing.networks import mlp_case

    rp.register(Plugin(), "toys")
    rp.register(Observer(), "observer")
    case = mlp_case()
    with pytest.warns(UserWarning, match="'observer': on_run_end raised OSError: no space left"):
        rp.compare(case.model, case.x, case.y, case.ball, ["toy:sign-step", "toy:boxes"], seed=0)
    assert heard == [
        ("start", ["toy:sign-step", "toy:boxes"], 6),
        ("toy:sign-step", "AttackResult"),
        ("toy:boxes", "Certificate"),
        ("end", None),
    ]


def test_every_hook_is_documented_and_tested() -> None:
    tests = "".join(path.read_text() for path in Path(__file__).parents[1].rglob("test_*.py"))
    for name, hook in vars(HookSpecs).items():
        if not name.startswith("_"):
            assert inspect.getdoc(hook), f"{name} has no documentation"
            assert f"def {name}(" in tests, f"no test implements {name}"


def test_missing_backends_are_a_status(monkeypatch) -> None:
    monkeypatch.setattr(backends, "importable", lambda module: False)
    with using(Registry(entry_points=False)) as registry:
        assert _status(registry)["art"] is Status.BACKEND_MISSING
        assert _status(registry)["lirpa"] is Status.BACKEND_MISSING
        assert "pip install" in next(p.error for p in registry.plugins() if p.name == "art")
        with pytest.raises(rp.PluginError, match="pip install"):
            rp.attack("art:pgd")
        with pytest.raises(rp.PluginError, match="pip install"):
            rp.certifier("lirpa:ibp")


def test_the_package_works_without_its_backends() -> None:
    """In a process where neither can be imported: a plugin's own components still run."""
    code = """
import sys
sys.modules["art"] = sys.modules["auto_LiRPA"] = None
import robust_plugins as rp
from support.toys import Plugin
from robust_plugins.testing.networks import mlp_case
rp.register(Plugin(), "toys")
case = mlp_case()
print(rp.compare(case.model, case.x, case.y, case.ball, ["toy:sign-step", "toy:boxes"], seed=0))
print({"art", "lirpa"} <= {p.name for p in rp.plugins() if p.status == "backend missing"})
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
    )
    assert "No attack contradicts a certificate." in done.stdout
    assert done.stdout.rstrip().endswith("True")


def test_a_public_call_that_was_replaced_later_is_refused(fresh_registry) -> None:  # noqa: F811
    class Late(SignStep):
        pass

    class Offers:
        @rp.hookimpl
        def register_attacks(self, register):
            register("late:step", Late)

    rp.register(Offers(), "late")
    assert isinstance(rp.attack("late:step"), Late)
    Late.__call__ = lambda *arguments, **named: None
    with pytest.raises(rp.ComponentError, match=r"replaces Attack\.__call__, which is final"):
        rp.attack("late:step")
