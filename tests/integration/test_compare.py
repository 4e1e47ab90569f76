"""The page of comparisons: what it says of ratios, of what is missing, and of what fails."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest
from support.scripts import INTEGRATION, script


@pytest.fixture
def compare(monkeypatch):
    """The script, which imports those beside it."""
    monkeypatch.syspath_prepend(str(INTEGRATION / "comparisons"))
    beside = {path.stem for path in (INTEGRATION / "comparisons").glob("*.py")}
    before = {name for name in beside if name in sys.modules}
    yield script("comparisons/compare.py")
    for name in beside - before:
        sys.modules.pop(name, None)


def test_ratios_are_taken_round_by_round(compare, monkeypatch):
    import paired
    from paired import line, lines, rounds

    monkeypatch.setattr(paired, "SHORTEST", 0.0)
    clock = iter(range(1000))
    calls = []
    contenders = {name: lambda name=name: calls.append(name) or next(clock) for name in ("a", "b", "c")}
    found = rounds(contenders, 3)
    assert calls == list("abc") + list("abc") + list("bca") + list("cab")
    assert all(set(row) == {"a", "b", "c"} for row in found)
    one = line("what", "who", [1.0, 2.0, 3.0, 4.0, 100.0], 0.5)
    assert (one.median, one.low, one.high, one.pairs) == (3.0, 2.0, 4.0, 5)
    monkeypatch.undo()
    base, other = lines("sums", {"base": lambda: sum(range(20000)), "twice": lambda: sum(range(40000))}, base="base",
                        repeats=9)  # fmt: skip
    assert base.median == base.low == base.high == 1.0
    assert 1.2 < other.median < 3.5


def test_what_is_quick_is_run_often_enough_to_be_measured(compare, monkeypatch):
    import time

    from paired import SHORTEST, seconds

    now = [0.0]
    monkeypatch.setattr(time, "process_time", lambda: now[0])

    def run(took):
        now[0] += took
        counts.append(took)

    for took, runs in ((SHORTEST / 4, 5), (SHORTEST * 2, 1)):
        counts = []
        assert seconds(lambda took=took: run(took)) == pytest.approx(took)
        assert len(counts) == runs


def test_page_and_markdown_say_the_same_and_what_was_left_out(compare):
    from paired import line
    from suite import Section

    section = Section("Attacks & more", "A <ratio>.", [line("MLP", "ours", [1.5, 1.25, 2.0], 0.01)], ["foolbox is not"])
    html, text = compare.page([section], "today"), compare.markdown([section], "today")
    assert "| MLP | ours | 1.5 | 1.38 to 1.75 | 3 | 0.01 |" in text
    for said in ("1.38 to 1.75", "Left out: foolbox is not", "today"):
        assert said in html
        assert said in text
    assert "Attacks &amp; more" in html
    assert "A &lt;ratio&gt;." in html
    assert "<script" not in html


def test_what_fails_or_does_not_end_is_said(compare, monkeypatch, tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("import sys\nsys.exit('ValueError: nothing to compare')")
    monkeypatch.setattr(compare, "__file__", str(broken))
    (cause,) = compare.run("attacks", quick=True, vnncomp=None, limit=60).skipped
    assert cause == "failed: ValueError: nothing to compare"
    broken.write_text("import time\ntime.sleep(100)")
    (cause,) = compare.run("attacks", quick=True, vnncomp=None, limit=0.02).skipped
    assert cause == "not done within 0 s"
    broken.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGXCPU)")
    (cause,) = compare.run("attacks", quick=True, vnncomp=None, limit=60).skipped
    assert cause == "not done within 60 CPU seconds"


ENDLESS = """
import sys, time
sys.path.insert(0, {folder!r})
from compare import end_at
end_at(time.process_time() + 0.3)
steps, last, end = [], time.process_time(), time.monotonic() + 300
while time.monotonic() < end:
    now = time.process_time()
    if now > last:
        steps.append(now - last)
        last = now
        if len(steps) == 50:
            print(min(steps), flush=True)
"""


def test_a_process_ends_at_its_limit_and_its_clock_stays_fine():
    program = ENDLESS.format(folder=str(INTEGRATION / "comparisons"))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGXCPU, done.stderr
    assert float(done.stdout) < 5e-4  # under RLIMIT_CPU it is a tick of 1 to 10 ms


def test_published_instances_are_needed_for_verification_alone(compare, tmp_path):
    from suite import verification

    assert "no folder was named" in verification(True, None).skipped[0]
    assert "is no folder" in verification(True, tmp_path / "none").skipped[0]


@pytest.mark.slow
def test_everything_runs(compare, tmp_path, monkeypatch):
    pytest.importorskip("art")
    monkeypatch.setattr(sys, "argv", ["compare", "--quick", "--limit", "600", "--out", str(tmp_path / "page.html")])
    compare.main()
    text = (tmp_path / "page.md").read_text()
    for name in ("art:pgd", "ART, batch_size=32", "interval:ibp", "interval:crown", "ibp by hand",
                 "ART AdversarialTrainer, PGD-7", 'relaxation="auto"', "interval:relaxed"):  # fmt: skip
        assert f"| {name} |" in text
    assert "failed" not in text
    assert "Left out: CTRAIN 0.6" in text
    assert text.count("CPU seconds in all") >= 5
    assert json.dumps(compare.machine())[1:-1] in text
