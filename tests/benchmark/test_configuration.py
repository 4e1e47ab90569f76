"""The file of a study: what it may say, and what is said about what it may not."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import robust_plugins as rp
from robust_plugins.benchmark.example import EXAMPLE

pytest.importorskip("pydantic")

from robust_plugins.benchmark.configuration import ConfigurationError, checked, read_configuration
from robust_plugins.benchmark.planning import asked, backends_of
from robust_plugins.registry.information import Kind

STUDY: dict[str, Any] = {
    "models": [{"name": "m", "source": "mlp"}],
    "data": [{"name": "digits", "samples": 3}],
    "balls": [{"eps": [0.1]}],
    "components": [{"use": "interval:ibp"}],
}


def test_defaults() -> None:
    found = checked(STUDY, "study.toml")
    assert found.seeds == [0]
    assert found.run.backend == "threading"
    assert found.balls[0].norm == "linf"


WRONG: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda s: s.update(modles=[]), "unknown key 'modles'; accepted: balls, comp.*Did you mean 'models'"),
    (lambda s: s["models"][0].update(sorce="x"), r"'models\[0\].sorce'; accepted: data, name.*Did you mean 'source'"),
    (lambda s: s["models"][0].pop("source"), r"'models\[0\].source' is missing"),
    (lambda s: s["balls"][0].update(norm="linv"), r"'balls\[0\].norm' is 'linv'; accepted: 'linf', 'l2', 'l1'.*'linf'"),
    (lambda s: s["balls"][0].update(eps=0.1), r"'balls\[0\].eps' is 0.1; accepted: a valid list"),
    (lambda s: s["balls"][0].update(eps=[-1]), r"'balls\[0\].eps\[0\]' is -1; accepted: greater than or equal to 0"),
    (lambda s: s["balls"][0].update(eps=[math.inf]), r"'balls\[0\].eps\[0\]' is inf; accepted: a finite number"),
    (lambda s: s.update(run={"backend": "daks"}), "'run.backend' is 'daks'; accepted: .*Did you mean 'dask'"),
    (lambda s: s.update(run={"jobs": 0}), "jobs: accepted: a number of at least 1, or -1"),
    (lambda s: s.update(run={"adress": "x"}), "'run.adress'; accepted: address.*Did you mean 'address'"),
    (lambda s: s.update(run={"address": "x"}), 'address: goes with backend = "dask" or "ray"'),
    (lambda s: s.update(run={"jobs": 2, "isolate": False}), "isolate: .*; set jobs = 1"),
    (lambda s: s.update(keep=["example"]), r"'keep\[0\]' is 'example'; accepted: 'examples'"),
    (lambda s: s.update(seed=[0, 0]), "seed: accepted: one number, or several different ones"),
    (lambda s: s.update(timeout=0), "'timeout' is 0; accepted: greater than 0"),
    (lambda s: s["models"][0].update(data=["digit"]), "models.m.data: unknown name 'digit'; accepted: digits.*'digits"),
    (lambda s: s["models"][0].update(train={"epoch": 1}), r"'models\[0\].train.epochs' is missing"),
    (lambda s: s["components"].append({"use": "interval:ibp"}), "'interval:ibp' is there twice"),
    (lambda s: s.update(components=[]), "components: missing; name at least one"),
    (lambda s: s.update(balls=[]), "balls: missing"),
    (lambda s: s["balls"][0].update(norm="box"), r"balls\[0\]: radius: missing; a box needs one number"),
    (lambda s: s["balls"][0].update(integers=[1]), r"balls\[0\]: integers: goes with norm = \"box\""),
    (lambda s: s["balls"][0].update(clip=[[0, 1], [1, 2]]), r"balls\[0\]: clip: accepted: two numbers; one for each"),
    (lambda s: s["balls"][0].update(norm="box", radius=-1), r"balls\[0\]: `radius` is -1.0; accepted: numbers >= 0"),
    (lambda s: s["balls"][0].update(norm="box", radius="wide"), r"`radius` is 'wide'; accepted: a number, or one for"),
    (lambda s: s["balls"][0].update(norm="box", radius=1, one_hot=[[3]]), "accepted: groups of two features or more"),
    (lambda s: s["balls"][0].update(data=["digit"]), r"balls\[0\].data: unknown name 'digit'.*Did you mean 'digits'"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_messages_name_file_key_and_what_is_accepted(change: Callable[[dict[str, Any]], Any], message: str) -> None:
    study = copy.deepcopy(STUDY)
    change(study)
    with pytest.raises(ConfigurationError, match=rf"^study\.toml: (?s:.*){message}"):
        checked(study, "study.toml")


def test_the_example_is_a_study(tmp_path: Path) -> None:
    """With all that is commented out, too: its comments are tried."""
    (tmp_path / "s.toml").write_text(EXAMPLE.format(name="s.toml"))
    found = read_configuration(tmp_path / "s.toml")
    assert [m.name for m in found.models] == ["plain", "certified"]
    lines = EXAMPLE.format(name="s.toml").splitlines()
    start = lines.index("# [[balls]]")
    wanted = (
        "# [[", "# norm =", "# eps =", "# radius =", "# one_hot =", "# integers =", "# immutable =", "# use =",
        "# name =", "# timeout =", "# model =", "# data =", "# budget =", "# epochs =", "# batch_size =", "# lr =",
        "# attacks =", "# isolate =", "# threads =", "# device =",
    )  # fmt: skip
    said = [line[2:] if i >= start and line.startswith(wanted) else line for i, line in enumerate(lines)]
    (tmp_path / "all.toml").write_text("\n".join(said))
    everything = read_configuration(tmp_path / "all.toml")
    assert [p.name for p in everything.poisoning] == ["a few labels"]
    assert everything.run.device == "cuda"
    assert everything.balls[1].ball(1.0, (0.0, 1.0)).one_hot == ((2, 3, 4),)
    assert {c.use for c in everything.components} >= {"art:auto", "interval:branch-and-bound"}


def test_the_example_asks_from_both_sides_without_any_backend(tmp_path: Path) -> None:
    """The first report that somebody sees has brackets: an attack from above, and certifiers from below."""
    (tmp_path / "s.toml").write_text(EXAMPLE.format(name="s.toml"))
    components = asked(read_configuration(tmp_path / "s.toml"))
    kinds = [contender.kind for contender in components]
    assert {Kind.ATTACK.value, Kind.CERTIFIER.value} <= set(kinds)
    assert not any(backends_of(contender.method) for contender in components)


@pytest.mark.parametrize(
    ("content", "message"), [(None, "no file.*bench init"), ("seed = ", "Invalid value.*bench init")]
)
def test_files_that_are_none(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "s.toml").write_text(content)
    with pytest.raises(rp.ArgumentError, match=message):
        rp.load_study(tmp_path / "s.toml")


def test_studies_say_what_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    from robust_plugins.benchmark import study

    monkeypatch.setattr(study, "find_spec", lambda name: None)
    with pytest.raises(rp.PluginError, match=r"cloudpickle, joblib, pydantic.*robust_plugins\[bench\]"):
        rp.Study(**STUDY)
