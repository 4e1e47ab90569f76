"""Rows that are asked twice, under two names, are computed once and found under both."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from support.studies import data, network, study

import robust_plugins as rp

pytest.importorskip("pydantic")

from robust_plugins.benchmark.auditing import audit
from robust_plugins.benchmark.columns import read_columns
from robust_plugins.benchmark.records import Record
from robust_plugins.benchmark.reporting.settings import settings

IBP = [{"use": "interval:ibp"}]


def test_equal_weights_under_two_names(tmp_path: Path) -> None:
    models = [{"name": name, "source": network()} for name in ("one", "other")]
    found = study(tmp_path, models=models, components=IBP)
    outcome = found.run()
    assert (outcome.total, outcome.written, outcome.there, outcome.shared) == (72, 36, 0, 36)
    assert "36 records written in " in str(outcome)
    assert ", 0 were there, of 72; 36 ask what another one asks, and have its answer" in str(outcome)
    with found.store() as store:
        columns = store.columns()
        assert columns["model"].count("one") == columns["model"].count("other") == 36
        assert len(store) == len(list(store.records(aliases=False))) == 36
        assert len(list(store.records(where={"model": "other", "kind": "clean"}))) == 12
    assert [(s.model, s.count) for s in settings(read_columns(found.store_path))] == [("one", 12), ("other", 12)]
    assert not audit(found.store_path).violations
    assert found.run().written == 0
    assert len(rows(found)) == 72


def rows(found: rp.Study) -> list[Record]:
    with found.store() as store:
        return list(store.records())


def test_a_component_under_another_name_is_found_under_both(tmp_path: Path) -> None:
    study(tmp_path, components=IBP).run()
    found = study(tmp_path, components=[{"use": "interval:ibp", "name": "bounds"}])
    assert found.run().written == 0
    with found.store() as store:
        columns = store.columns("component", "margin")
    margins = {
        name: [m for c, m in zip(columns["component"], columns["margin"], strict=True) if c == name]
        for name in ("bounds", "interval:ibp")
    }
    assert margins["bounds"] == margins["interval:ibp"]
    assert len(margins["bounds"]) == 24


def test_the_same_input_twice_is_two_samples(tmp_path: Path) -> None:
    points = data(6)
    twice = replace(points, x_test=points.x_test.repeat(2, 1), y_test=points.y_test.repeat(2))
    entry = [{"name": "points", "source": twice, "samples": 12}]
    found = study(tmp_path, data=entry, components=IBP, run={"batch_size": 12, "isolate": False})
    outcome = found.run()
    assert (outcome.total, outcome.written) == (36, 18)
    with found.store() as store:
        samples = store.columns("sample", where={"component": "interval:ibp", "eps": 0.2})["sample"]
    assert sorted(samples) == list(range(12))


def test_aliases_wait_for_their_records(tmp_path: Path) -> None:
    """They are written first: a run that is killed leaves some that point nowhere yet."""
    models = [{"name": name, "source": network()} for name in ("one", "other")]
    found = study(tmp_path, models=models, components=IBP)
    found.run()
    with sqlite3.connect(found.store_path) as connection:
        connection.execute("DELETE FROM records WHERE sample > 4")
    assert len(rows(found)) == 30
    assert found.run().written == 21
    assert len(rows(found)) == 72


def test_a_poisoned_training_under_two_names_is_done_once(tmp_path: Path) -> None:
    def poisoned(name: str, *attacks: str) -> dict[str, object]:
        return {"name": name, "model": "net", "data": "points", "budget": "labels=1", "batch_size": 6, "lr": 0.02,
                "attacks": list(attacks)}  # fmt: skip

    random, ascent = "poison:random(count=2)", "poison:loss-ascent(steps=2)"
    keys = {"models": [{"name": "net", "source": "mlp(widths=(4,))"}], "components": [], "balls": []}
    outcome = study(tmp_path, **keys, poisoning=[poisoned("one", random), poisoned("other", random)]).run()
    assert (outcome.total, outcome.written, outcome.there, outcome.shared) == (48, 24, 0, 24)
    wider = study(tmp_path, **keys, poisoning=[poisoned("one", random), poisoned("third", random, ascent)])
    assert wider.run().failures == {}
    found = rows(wider)
    counts = {name: sum(r.component == name for r in found) for name in {r.component for r in found}}
    assert counts == dict.fromkeys(
        ("one", "other", "third", f"one: {random}", f"other: {random}", f"third: {random}", f"third: {ascent}"), 12
    )
    margins = {name: [r.margin for r in found if r.component == name] for name in ("one", "other", "third")}
    assert margins["one"] == margins["other"] == margins["third"]
    assert wider.run().written == 0
