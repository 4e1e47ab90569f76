"""The ready studies can be run as they are, and give a page that answers."""

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from robust_plugins.cli import commands

FOLDER = Path(__file__).parents[2] / "integration" / "studies"
STUDIES = sorted(FOLDER.glob("*.toml"))


def bench(*arguments):
    return CliRunner().invoke(commands, ["bench", *map(str, arguments)])


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_nothing_is_missing(path, tmp_path):
    copy = shutil.copy(path, tmp_path)
    result = bench("check", copy)
    assert result.exit_code == 0, result.output
    assert f"`{path.name}`" in (FOLDER / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_smaller_one_runs_and_is_reported(path, tmp_path):
    text = path.read_text().replace("samples = 200", "samples = 20").replace("samples = 100", "samples = 20")
    text = text.replace("epochs = 20", "epochs = 10").replace("timeout = 5.0", "timeout = 1.0")
    (tmp_path / path.name).write_text(text.replace("[run]", "[run]\nisolate = false"))
    result = bench("run", tmp_path / path.name, "--quiet")
    assert result.exit_code in (0, 1), result.output  # 1: some verifications run out of their second
    assert "Error" not in result.output
    assert "no violation" in result.output
    store = (tmp_path / path.name).with_suffix(".sqlite")
    assert bench("report", store).exit_code == 0
    assert "No contradiction" in store.with_suffix(".html").read_text()
