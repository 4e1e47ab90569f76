"""Studies as they run: what is written, what is resumed, and what components do that hang, crash or fail."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.studies import Moods, answers, data, network, study

import robust_plugins as rp
from robust_plugins.registry.registry import Registry, using

pytest.importorskip("pydantic")

from robust_plugins.benchmark import running
from robust_plugins.benchmark.planning import Batch


@pytest.fixture(autouse=True)
def moods() -> Iterator[None]:
    with using(Registry(entry_points=False, block=(), load=())):
        rp.register(Moods(), "test")
        yield


def test_records_say_what_the_components_say(tmp_path: Path) -> None:
    found = study(tmp_path, keep=["examples", "inputs", "weights"])
    outcome = found.run()
    assert (outcome.total, outcome.there, outcome.written) == (60, 0, 60)
    model, points, ball = network(), data(), rp.Linf(eps=0.2, clip=(0, 1))
    x, y = points.x_test[5:10], points.y_test[5:10]
    attack = rp.attack("test:moody")(model, x, y, ball, seed=0)
    proof = rp.certifier("interval:ibp")(model, x, y, ball)
    with found.store() as store:
        attacked = [r for r in store.records(where={"component": "test:moody", "eps": 0.2}) if r.batch == "5-9"]
        proved = [r for r in store.records(where={"component": "interval:ibp", "eps": 0.2}) if r.batch == "5-9"]
        clean = list(store.records(where={"kind": "clean"}))
        assert [r.success for r in attacked] == attack.success.tolist()
        assert [r.loss for r in attacked] == attack.loss.tolist()
        assert [r.prediction for r in attacked] == attack.logits.argmax(1).tolist()
        assert [r.distance for r in attacked] == attack.distance.tolist()
        assert all((r.verdict == "falsified") is r.success for r in attacked)
        assert all(r.queries == 3 for r in attacked)  # the input, the candidate, a look whether it draws
        assert [r.verdict for r in proved] == [v.value for v in proof.verdicts]
        assert [r.margin for r in proved] == pytest.approx(proof.margin.tolist())
        assert all(r.ball() == ball and r.label == int(points.y_test[r.sample]) for r in attacked + proved)
        with torch.no_grad():
            assert [r.prediction for r in clean] == model(points.x_test).argmax(1).tolist()
        assert all(r.success is (r.prediction != r.label) and r.norm == "" for r in clean)
        from safetensors.torch import load

        for record in attacked:
            assert bool(record.artifact) is record.success
            if record.artifact:
                kept = load(store.artifact(record.artifact))
                assert torch.equal(kept["x"], points.x_test[record.sample])
                assert ball.contains(kept["x_adv"][None], kept["x"][None]).all()
            assert torch.equal(load(store.artifact(record.input_hash))["x"], points.x_test[record.sample])
        again = network(1)
        again.load_state_dict(load(store.artifact(record.model_hash)))
        assert torch.equal(again(x), model(x))
    frame = found.frame("component", "margin")
    assert len(frame) == 60


def test_a_run_that_is_interrupted_and_resumed_equals_an_undisturbed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = study(tmp_path / "a")
    whole.run()
    part = study(tmp_path / "b")
    execute, calls = running.execute, []

    def interrupted(*args: object) -> object:
        calls.append(args)
        if len(calls) % 4 == 0:
            raise KeyboardInterrupt
        return execute(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(running, "execute", interrupted)
    outcomes = [part.run()]
    while outcomes[-1].interrupted:
        before = len(answers(part))
        outcomes.append(part.run())
        assert outcomes[-1].there == before
    assert len(outcomes) > 3
    assert answers(part) == answers(whole)
    assert part.run().written == 0


def test_a_wider_study_computes_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study(tmp_path).run()
    asked: list[Batch] = []
    monkeypatch.setattr(running, "_answers", _recording(asked, running._answers))
    wider = study(
        tmp_path, balls=[{"eps": [0.05, 0.1, 0.2]}],
        components=[{"use": "test:moody"}, {"use": "interval:ibp"}, {"use": "interval:crown", "name": "crown"}],
    )  # fmt: skip
    outcome = wider.run()
    assert outcome.there == 60
    assert outcome.written == 12 * (2 + 3)
    for batch in asked:
        assert batch.common["eps"] == 0.1 or batch.component == "crown"


def _recording(asked: list[Batch], original: object) -> object:
    def recorded(run: object, left: list[Batch]) -> object:
        asked.extend(left)
        return original(run, left)  # type: ignore[operator]

    return recorded


def test_more_samples_are_added_to_those_that_are_there(tmp_path: Path) -> None:
    study(tmp_path, data=[{"name": "points", "source": data(), "samples": 7}]).run()
    found = study(tmp_path)
    assert found.run().there == 35
    with found.store() as store:
        batches = store.columns("batch", where={"component": "interval:ibp", "eps": 0.2})["batch"]
    assert set(batches) == {"0-4", "5-6", "7-9", "10-11"}


def test_what_changes_an_answer_is_computed_again(tmp_path: Path) -> None:
    study(tmp_path).run()
    assert study(tmp_path, models=[{"name": "net", "source": network(1)}]).run().written == 60
    assert study(tmp_path, seed=1).run().there == 36  # all but the attack's
    assert study(tmp_path, models=[{"name": "renamed", "source": network()}]).run().written == 0


def test_failures_are_rows_and_are_retried_on_request(tmp_path: Path) -> None:
    moody = {"use": "test:moody", "parameters": {"mood": "fails"}}
    found = study(tmp_path, components=[moody, {"use": "interval:ibp"}])
    outcome = found.run()
    assert outcome.written == 60
    assert outcome.failures == {("test:moody", "MemoryError: no memory left"): 24}
    assert "no answer for 24 samples: MemoryError" in str(outcome)
    assert found.run().written == 0
    assert found.run(retry=True).failures.total() == 24
    rows = [row for row in answers(found).values() if row["component"] == "test:moody"]
    assert all(r["verdict"] == "error" and r["success"] is None and r["margin"] is None for r in rows)


def test_a_ball_or_a_model_that_a_component_cannot_take_is_a_row_too(tmp_path: Path) -> None:
    found = study(
        tmp_path, models=[{"name": "odd", "source": torch.nn.Sequential(network(), Bessel())}],
        components=[{"use": "interval:ibp"}],
    )  # fmt: skip
    found.run()
    verdicts = {row["verdict"] for row in answers(found).values() if row["component"] == "interval:ibp"}
    assert "unsupported" in verdicts
    assert "certified" not in verdicts


class Bessel(torch.nn.Module):
    """No certifier bounds it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(x)


def test_what_does_not_stop_is_killed(tmp_path: Path) -> None:
    found = study(
        tmp_path,
        data=[{"name": "points", "source": data(), "samples": 5}],
        balls=[{"eps": [0.2]}],
        components=[{"use": "test:moody", "parameters": {"mood": "hangs"}, "timeout": 0.1}],
        run={"batch_size": 5},
    )
    assert found.run().failures == {("test:moody", "killed after 0.5 s"): 5}
    assert {r["verdict"] for r in answers(found).values() if r["kind"] == "attack"} == {"timeout"}


@pytest.mark.slow
def test_one_process_hangs_crashes_and_goes_on(tmp_path: Path) -> None:
    """In processes of their own, killed at their timeout: rows say so, and all other components answer."""
    found = study(
        tmp_path,
        data=[{"name": "points", "source": data(), "samples": 5}],
        balls=[{"eps": [0.2]}],
        components=[
            {"use": "test:moody", "name": "hangs", "parameters": {"mood": "hangs"}, "timeout": 0.1},
            {"use": "test:moody", "name": "crashes", "parameters": {"mood": "crashes on some"}},
            {"use": "test:moody"},
        ],
        run={"batch_size": 5},
    )
    outcome = found.run()
    assert outcome.written == 20
    crashed = {row["sample"]: row for row in answers(found).values() if row["component"] == "crashes"}
    assert [crashed[i]["verdict"] == "error" for i in range(5)] == [False, False, False, False, True]
    rows = {row["component"]: row for row in answers(found).values() if row["sample"] == 4}
    assert rows["hangs"]["verdict"] == "timeout"
    assert rows["hangs"]["error"] == "killed after 0.5 s"
    assert rows["crashes"]["verdict"] == "error"
    assert "signal 11 (SIGSEGV)" in rows["crashes"]["error"]
    assert rows["test:moody"]["verdict"] in ("unknown", "falsified")
    assert rows["clean"]["prediction"] is not None


def test_components_that_stop_themselves_are_given_their_time(tmp_path: Path) -> None:
    from robust_plugins.benchmark.planning import asked

    found = study(
        tmp_path, timeout=3.0,
        components=[
            {"use": "interval:branch-and-bound"},
            {"use": "interval:branch-and-bound(timeout=9.0)", "name": "patient"},
            {"use": "interval:ibp", "timeout": math.inf},
        ],
    )  # fmt: skip
    _, first, second, third = asked(found.configuration)
    assert (first.component.timeout, first.timeout) == (3.0, 3.0)  # type: ignore[union-attr]
    assert (second.component.timeout, second.timeout) == (9.0, 9.0)  # type: ignore[union-attr]
    assert third.timeout == math.inf


def test_explanations_are_attacked_and_certified(tmp_path: Path) -> None:
    found = study(
        tmp_path, components=[], balls=[{"eps": [0.02]}],
        explanations=[
            {"use": "gradient:corner-pgd(steps=3)", "threshold": 0.5, "of": "margin"},
            {"use": "interval:ibp", "delta": 0.5, "of": "margin"},
        ],
    )  # fmt: skip
    found.run()
    rows = answers(found).values()
    attacked = {r["sample"]: r for r in rows if r["kind"] == "explanation attack"}
    proved = {r["sample"]: r for r in rows if r["kind"] == "explanation certifier"}
    assert len(attacked) == len(proved) == 12
    for sample, row in attacked.items():
        assert row["margin"] <= proved[sample]["margin"] + 1e-5
        assert row["loss"] <= proved[sample]["loss"] + 1e-5
        assert json.loads(row["parameters"])["call"] == {"of": "margin", "radius": 0.0, "threshold": 0.5}
    assert {r["verdict"] for r in proved.values()} <= {"certified", "unknown"}


def test_poisoned_trainings_are_bounded_and_attacked(tmp_path: Path) -> None:
    training = {
        "name": "labels", "model": "net", "data": "points", "budget": "labels=1", "batch_size": 4, "lr": 0.02,
        "attacks": ["poison:random(count=3)"],
    }  # fmt: skip
    found = study(tmp_path, components=[], balls=[], poisoning=[training, training | {"name": "more", "epochs": 2}])
    assert found.run().written == 48
    assert found.run().written == 0
    rows = list(answers(found).values())
    assert {(r["component"], r["kind"]) for r in rows} == {
        (f"{name}{attack}", kind)
        for name in ("labels", "more")
        for attack, kind in (("", "poisoning certifier"), (": poison:random(count=3)", "poisoning attack"))
    }
    proved = {(r["model_hash"], r["sample"]): r for r in rows if r["kind"] == "poisoning certifier"}
    assert len(proved) == 24
    assert "certified" in {r["verdict"] for r in proved.values()}
    for row in rows:
        if row["kind"] == "poisoning attack":
            certificate = proved[row["model_hash"], row["sample"]]
            assert row["margin"] >= certificate["margin"] - 1e-5
            assert not (row["success"] and certificate["verdict"] == "certified")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"use": "interval:relaxed"}, "relaxed.delta` is missing"),
        ({"use": "interval:relaxed", "delta": 1.0, "threshold": 1.0}, "threshold` is 1.0; accepted: delta"),
        ({"use": "interval:relaxd", "delta": 1.0}, "Did you mean 'interval:relaxed'"),
    ],
)
def test_explanations_say_what_they_need(tmp_path: Path, entry: dict[str, object], message: str) -> None:
    with pytest.raises(rp.RobustPluginsError, match=message):
        study(tmp_path, components=[], explanations=[entry]).run()


def test_parameters_are_given_once(tmp_path: Path) -> None:
    entry = {"use": "art:pgd(steps=3)", "parameters": {"steps": 4}}
    with pytest.raises(rp.ArgumentError, match="giving steps a second value"):
        study(tmp_path, components=[entry]).run()


def test_models_are_trained_once(tmp_path: Path) -> None:
    trained = [{"name": "net", "source": "mlp(widths=(8,))", "train": {"epochs": 2}}]
    said: list[str] = []
    found = study(tmp_path, models=trained)
    (one,) = found.subjects(said.append)
    (two,) = found.subjects(said.append)
    (three,) = study(tmp_path, models=[trained[0] | {"train": {"epochs": 3}}]).subjects(said.append)
    assert said == [f"training net on 12 samples of points for {n} epochs" for n in (2, 3)]
    assert one.model_hash == two.model_hash != three.model_hash


def test_a_module_is_left_as_it_is(tmp_path: Path) -> None:
    module = network().train()
    before = replace(data())
    found = study(tmp_path, models=[{"name": "net", "source": module, "train": {"epochs": 1}}])
    found.run()
    with found.store() as store:
        (training,) = store.trainings()
    assert training["model_hash"] == found.subjects()[0].model_hash
    assert [epoch["epoch"] for epoch in training["epochs"]] == [1]
    assert 0 <= training["epochs"][0]["scores"]["clean"] <= 1
    assert module.training
    for p, q in zip(module.parameters(), network().parameters(), strict=True):
        assert torch.equal(p, q)
    assert torch.equal(before.x_test, data().x_test)
