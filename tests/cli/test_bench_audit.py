import json

import pytest
from click.testing import CliRunner
from support.study_records import record

from robust_plugins.benchmark.store import Store
from robust_plugins.cli import commands


def audit(*arguments):
    return CliRunner().invoke(commands, ["bench", "audit", *map(str, arguments)])


@pytest.fixture
def stores(tmp_path):
    proof = record(verdict="certified", margin=0.5)
    attack = record(component="pgd", kind="attack", verdict="falsified", success=True, margin=-0.1, distance=0.1)
    missed = record(eps=0.05, margin=-0.2)
    for name, rows in {"proof": [proof], "attack": [attack], "weak": [proof, missed]}.items():
        with Store(tmp_path / name, write=True) as store:
            store.insert(rows)
    return tmp_path


def test_two_stores_are_held_together(stores):
    assert audit(stores / "proof").exit_code == 0
    result = audit(stores / "proof", stores / "attack")
    assert result.exit_code == 3
    assert "2 records: 1 violation, 0 near, 0 weak." in result.output
    assert "attack inside a certified ball: small, digits sample 0: bounds says certified in linf 0.1" in result.output


def test_weak_findings_count_where_that_is_asked_for(stores):
    assert audit(stores / "weak").exit_code == 0
    assert audit(stores / "weak", "--strict").exit_code == 3


def test_json_names_the_two_records(stores):
    found = json.loads(audit(stores / "proof", stores / "attack", "--json").output)
    assert found["violations"] == 1
    with Store(stores / "proof") as store:
        (identity,) = store.identities()
    assert found["findings"][0]["records"][0] == identity
    assert found["findings"][0]["rule"] == "attack inside a certified ball"


def test_a_file_that_is_no_store_is_named(tmp_path):
    result = audit(tmp_path / "none.sqlite")
    assert result.exit_code == 2
    assert "none.sqlite" in result.output
