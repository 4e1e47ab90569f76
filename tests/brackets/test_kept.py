"""Results as people handle them: short in print, whole in files, rows in data frames."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
import sys

import numpy as np
import pytest
import torch
from support.results import COMPONENTS, made
from support.toys import Boxes, Plugin, SignStep
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.brackets.components import resolved
from robust_plugins.harness.result import Result
from robust_plugins.registry.information import Kind
from robust_plugins.testing import fresh_registry  # noqa: F401 (a fixture)
from robust_plugins.testing.networks import mlp_case


@pytest.fixture(autouse=True)
def toys(fresh_registry) -> None:  # noqa: F811
    rp.register(Plugin(), "toys")


STORED = ["attack", "certificate", "comparison", "balls", "labels", "errors", "explanations", "radius",
          "explanation attack", "explanation certificate", "votes"]  # fmt: skip


def same(a: object, b: object) -> bool:
    """Whether two results are equal in every field, to the bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, nn.Module):
        return same(a.state_dict(), b.state_dict())
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num())
    if dataclasses.is_dataclass(a):
        kept = [f.name for f in dataclasses.fields(a) if f.metadata.get("stored", True)]
        return all(same(getattr(a, n), getattr(b, n)) for n in kept)
    if isinstance(a, rp.CriticalRadius):
        return same(tuple(a), tuple(b)) and same(a.state(), b.state())
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(v, b[k]) for k, v in a.items())
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)


NETWORKS = ["poisoning", "poisoning run", "poisoned trainings", "poisoned learning", "private prediction"]
"""Results with networks, and one that their queries give."""


@pytest.mark.parametrize("name", [*STORED, *NETWORKS])
def test_results_are_short_in_print_and_whole_in_frames_and_files(name, tmp_path) -> None:
    pandas = pytest.importorskip("pandas")
    found = made(name)
    assert len(repr(found)) < 300
    assert "\n" not in repr(found)
    assert "tensor(" not in repr(found)
    frame = found.to_frame()
    assert isinstance(frame, pandas.DataFrame)
    assert len(frame) == len(found.to_records()) > 0
    html = found._repr_html_()
    assert html.count("<table>") == html.count("</table>") >= 1
    assert "<script" not in html
    assert isinstance(found, Result)
    other = nn.Linear(3, 2).double() if name in NETWORKS[:-1] else None
    path = found.save(tmp_path / "new" / "result.npz")
    again = type(found).load(path, other)
    assert same(found, again)
    assert not same(found, type(found).load(made_other(tmp_path, found), other))  # the check of equality can fail
    assert str(again) == str(found)
    found.save(path)  # a result may be replaced


def made_other(folder, found: Result):
    """The same kind of result with one figure changed."""
    if isinstance(found, rp.CriticalRadius):
        other = rp.CriticalRadius.joined(**found.state() | {"seed": found.seed + 1})
    else:
        first = {"PoisoningBracket": "pushed", "PoisoningRun": "history", "PoisonedTrainings": "seconds"}.get(
            type(found).__name__, dataclasses.fields(found)[0].name
        )
        value = getattr(found, first)
        changed = (
            value + 1
            if isinstance(value, float) or (isinstance(value, Tensor) and value.dtype != torch.bool)
            else value[:1] * 2
        )
        other = dataclasses.replace(found, **{first: changed})
    return other.save(folder / "other.npz")


def test_rows_are_short_and_the_interval_is_wilsons() -> None:
    found = made("comparison")
    assert all("tensor(" not in repr(row) for row in found.rows)
    low, high = found["boxes"].interval
    k, n = round(30 * found["boxes"].accuracy), 30
    z = 1.959964
    middle, half = (k + z * z / 2) / (n + z * z), z * math.sqrt(k * (n - k) / n + z * z / 4) / (n + z * z)
    assert (low, high) == pytest.approx((max(0.0, middle - half), min(1.0, middle + half)))
    assert found["broken"].interval is None
    assert found.to_frame().set_index("component").loc["boxes", "low"] == low
    assert found["mine"].name == "mine"


def test_foreign_files_are_neither_read_nor_replaced(tmp_path, monkeypatch) -> None:
    found = made("certificate")
    foreign = {
        "text.npz": b"somebody's notes", "empty.npz": b"", "pickle.npz": pickle.dumps([1, 2]),
        "arrays.npz": None, "objects.npz": None, "model.pt": None,
    }  # fmt: skip
    for name, content in foreign.items():
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        elif name == "model.pt":
            torch.save({"a": torch.zeros(2)}, path)
        else:
            value = np.zeros(3) if name == "arrays.npz" else np.array([print], dtype=object)
            np.savez(path, robust_plugins=value)
        before = path.read_bytes()
        with pytest.raises(rp.ArgumentError, match=r"accepted: a file that the `save` of a result has written"):
            rp.Certificate.load(path)
        with pytest.raises(rp.ArgumentError, match="which holds something else"):
            found.save(path)
        assert path.read_bytes() == before
    with pytest.raises(rp.ArgumentError, match="No such file"):
        rp.Certificate.load(tmp_path / "none.npz")
    found.save(tmp_path / "a.npz")
    with pytest.raises(rp.ArgumentError, match=r"holds one Certificate.*Load it with Certificate\.load"):
        rp.AttackResult.load(tmp_path / "a.npz")
    damaged = dict(np.load(tmp_path / "a.npz"))
    said = json.loads(damaged["robust_plugins"].tobytes())
    newer, cut = {"format": 99}, {"result": {"record": "Certificate"}}
    for change, cause in ((newer, "Update robust_plugins"), (cut, "Save the result again")):
        text = np.frombuffer(json.dumps(said | change).encode(), dtype=np.uint8)
        np.savez(tmp_path / "b.npz", **damaged | {"robust_plugins": text})
        with pytest.raises(rp.ArgumentError, match=cause):
            rp.Certificate.load(tmp_path / "b.npz")
    found.save(tmp_path / "b.npz")  # as the message says
    assert same(rp.Certificate.load(tmp_path / "b.npz"), found)
    assert not list(tmp_path.glob("*.part"))
    (tmp_path / "file").write_text("")
    with pytest.raises(rp.ArgumentError, match="cannot be written"):
        found.save(tmp_path / "file" / "a.npz")
    monkeypatch.setattr(sys.modules["robust_plugins.harness.result"], "find_spec", lambda module: None)
    with pytest.raises(rp.PluginError, match="pip install pandas"):
        found.to_frame()


def test_what_no_file_can_hold_is_refused(tmp_path) -> None:
    class Odd(rp.Linf):
        pass

    case = mlp_case(batch=4)
    found = rp.compare(case.model, case.x, case.y, Odd(eps=0.1, clip=None), COMPONENTS, seed=0)
    with pytest.raises(rp.ArgumentError, match="`result` is one with an Odd"):
        found.save(tmp_path / "a.npz")
    assert not list(tmp_path.iterdir())
    assert found.to_dict()  # as the message says
    assert len(found.to_frame()) == 3


def test_several_balls_are_held_together() -> None:
    case = mlp_case(batch=40)
    balls = [dataclasses.replace(case.ball, eps=f * case.ball.radii) for f in (1, 3)]
    found = rp.compare(case.model, case.x, case.y, balls, COMPONENTS, seed=0)
    for one, ball in zip(found, balls, strict=True):
        alone = rp.compare(case.model, case.x, case.y, ball, COMPONENTS, seed=0)
        assert (one.bracket, one.ball) == (alone.bracket, ball)
    assert found.crossings == ()
    assert found.looser == ()
    assert str(found).count("Linf") >= 4
    assert str(found).endswith("No attack contradicts a certificate.")
    assert [c["bracket"] for c in found.to_dict()["comparisons"]] == [c.bracket.to_dict() for c in found]


def test_contradictions_between_balls_are_found() -> None:
    case = mlp_case(batch=40)
    balls = [dataclasses.replace(case.ball, eps=f * case.ball.radii) for f in (4, 8)]
    narrow, wide = rp.compare(case.model, case.x, case.y, balls, [SignStep(), Boxes()], seed=0)
    attacked = narrow.rows[0].result
    broken = attacked.success & narrow.correct
    assert broken.any()
    # Planted: the wide certificate says of what is broken in the narrow ball that it is certified.
    proof = wide.rows[1].result
    planted = dataclasses.replace(proof, certified=proof.certified | broken)
    rows = (wide.rows[0], dataclasses.replace(wide.rows[1], result=planted))
    other = dataclasses.replace(wide, rows=rows)
    found = rp.BallsComparison((narrow, other))
    at = [c.sample for c in found.between if "SignStep" in c.attack]
    assert set(broken.nonzero().flatten().tolist()) <= set(at)
    assert "CONTRADICTION between balls, sample" in str(found)
    assert "CONTRADICTION" in repr(found)
    assert found.looser  # certified in the wide ball alone
    assert rp.BallsComparison((narrow, wide)).between == ()


def test_what_lists_cannot_be_is_said() -> None:
    case = mlp_case(batch=4)
    with pytest.raises(rp.ArgumentError, match="`ball` is an empty list"):
        rp.compare(case.model, case.x, case.y, [], COMPONENTS)
    with pytest.raises(rp.ArgumentError, match="a dictionary of them"):
        resolved(3, {Kind.ATTACK: rp.Attack})
    assert len(rp.compare(case.model, case.x, case.y, case.ball, "toy:boxes").rows) == 1
    assert len(rp.compare(case.model, case.x, case.y, case.ball, Boxes()).rows) == 1
