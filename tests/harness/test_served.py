"""Processes that answer questions: killed when they are late, begun again, and told of when they die."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from support.workers import obeying, unable

from robust_plugins.harness.served import DiedError, OverdueError, Served


def test_answers_late_ones_and_deaths() -> None:
    """One process after the other, since each start imports the package."""
    process = Served(obeying, ("!",), quiet=True)
    assert process.ask("hello", 60) == "hello!"
    assert process.ask("print", 60) == "printed!"  # what is printed is no answer
    with pytest.raises(DiedError, match=r"signal 11 \(SIGSEGV\)(?s:.*)about to crash"):
        process.ask("crash", 60)
    assert process.ask("again", 60) == "again!"
    began = time.monotonic()
    with pytest.raises(OverdueError, match=r"killed after 0\.2 s"):
        process.ask("hang", 0.2)
    assert time.monotonic() - began < 20
    for word in ("fork", "one", "two"):  # the copy's answer is not taken for that to the next question
        assert process.ask(word, 60) == word + "!"
    solver = int(process.ask("start", 60).split()[0])
    os.kill(solver, 0)
    process.stop()
    deadline = time.monotonic() + 20
    while running(solver) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not running(solver)


def running(number: int) -> bool:
    """Whether a process is there, and no mere entry that nobody has asked about."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{number}/status").read_text()
    except OSError:
        return False


def test_a_process_that_cannot_begin_says_why() -> None:
    with pytest.raises(DiedError, match=r"exit code 1; last words(?s:.*)cannot begin"):
        Served(unable, quiet=True).start()


@pytest.mark.slow
def test_a_process_ends_with_its_parent_even_where_that_is_killed() -> None:
    code = textwrap.dedent("""
        import os, sys, threading
        from robust_plugins.harness.served import Served
        from support.workers import obeying
        process = Served(obeying, ("!",))
        print(process.ask("pid", 60), flush=True)
        threading.Timer(0.5, os.kill, (os.getpid(), 9)).start()
        process.ask("hang", 100)
    """)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    found = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment, check=False)
    child = int(found.stdout)
    for _ in range(100):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("the process is still there")
