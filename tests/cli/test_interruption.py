"""Ctrl-C while the command imports what it needs, and where no command runs yet."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from robust_plugins import cli

SLOW = "import sys, time\nprint('importing', flush=True)\ntime.sleep(100)\n"
ROOT = Path(cli.__file__).parents[2]


def interrupted(tmp_path: Path, *command: str) -> tuple[int, str]:
    """The exit code and the errors of a program that is interrupted while it imports torch, which takes long here."""
    (tmp_path / "torch.py").write_text(SLOW)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    process = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True,
        # A test that runs in the background may have been told to ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    return process.returncode, said


@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
@pytest.mark.parametrize("how", ["module", "script"])
def test_the_command_ends_with_one_line(tmp_path: Path, how: str) -> None:
    script = tmp_path / "robust-plugins"
    script.write_text("from robust_plugins.cli import main\nmain()\n")
    command = ("-m", "robust_plugins") if how == "module" else (str(script),)
    assert interrupted(tmp_path, *command, "bench", "run", "x.toml") == (130, "interrupted; nothing was done\n")


@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
def test_other_programs_are_interrupted_as_ever(tmp_path: Path) -> None:
    code, said = interrupted(tmp_path, "-c", "import robust_plugins")
    assert code == -signal.SIGINT
    assert "KeyboardInterrupt" in said


def raising(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_ctrl_c_while_plugins_are_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "_plugin_commands", raising)
    result = CliRunner().invoke(cli.commands, ["--help"])
    assert (result.exit_code, result.output) == (130, "interrupted; nothing was done\n")


def test_the_command_hands_ctrl_c_back(monkeypatch: pytest.MonkeyPatch) -> None:
    from robust_plugins import interruption

    before = signal.getsignal(signal.SIGINT)
    try:
        signal.signal(signal.SIGINT, interruption._end)
        monkeypatch.setattr(cli, "commands", lambda **_: None)
        monkeypatch.setattr(sys, "path", list(sys.path))
        cli.main()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
