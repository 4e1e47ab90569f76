"""The lecture's commands: what they keep, and the page of all of them."""

from __future__ import annotations

import argparse
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.scripts import INTEGRATION, script

import robust_plugins as rp

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

parts = script("lecture/parts.py")
page = script("lecture/page.py")

OPTIONS = (parts.Option(name="images", default=3, quick=1, help="how many"),
           parts.Option(name="radii", default=(0.1, 0.2), help="which"))  # fmt: skip


def made(options: argparse.Namespace) -> object:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3, 2))
    figure.subplots().plot([0, options.images])
    table = parts.Table(name="t", columns=("a", "b"), rows=(("1", "<2>"),), caption="Numbers.")
    drawn = parts.picture(figure, options.out.name, f"{options.images} images, {options.radii}")
    return parts.Part(title="A & B", sentence="S.", data="D.", pictures=(drawn,), tables=(table,))


def test_a_part_is_kept_until_something_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def make(options: argparse.Namespace) -> object:
        asked.append(options.images)
        return made(options)

    def run(*arguments: str) -> object:
        return parts.run("search", make, OPTIONS, ["--out", str(tmp_path), *arguments], describe="")

    first = run()
    assert run() == first
    assert asked == [3]
    run("--images", "4")
    run("--images", "4")
    assert asked == [3, 4]
    assert "0.3" in run("--images", "4", "--radii", "0.3").pictures[0].caption
    run("--quick")
    assert asked == [3, 4, 4, 1]
    monkeypatch.setattr(parts, "_code", lambda: [Path(__file__)])
    run("--quick")
    assert asked == [3, 4, 4, 1, 1], "other code is another question"
    kept = parts.read(tmp_path)
    assert kept is not None
    assert kept.tiny
    shown = page.Section(name="attacks", kept=kept, cause="")
    assert shown.command == "python -m integration.lecture.attacks --quick"
    run("--images", "4")
    usual = parts.read(tmp_path)
    assert usual is not None
    assert not usual.tiny
    assert replace(shown, kept=usual).command == "python -m integration.lecture.attacks"
    (tmp_path / "part.json").write_text((tmp_path / "part.json").read_text()[:100])
    assert parts.read(tmp_path) is None
    run("--quick")
    assert replace(kept, seconds=0) == replace(parts.read(tmp_path), seconds=0)
    assert (tmp_path / "t.csv").read_text().splitlines() == ["a,b", "1,<2>"]
    assert (tmp_path / f"{tmp_path.name}.svg").read_text().startswith("<svg")


def test_data_that_have_changed_are_other_data(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    before = parts._made_from({"data": folder})
    (folder / "images").write_text("1")
    assert parts._made_from({"data": folder}) != before
    assert parts._made_from({"data": folder}) == parts._made_from({"data": folder})


def test_the_page_has_all_sections_in_order_and_stands_alone(tmp_path: Path) -> None:
    for name in ("search", "assumption"):
        parts.run(name, made, OPTIONS, ["--out", str(tmp_path / name)], describe="")
    text = page.write_page(tmp_path, {"attacks": "no <memory>"}).read_text()
    assert re.findall(r'<section id="(\w+)">', text) == list(page.COMMANDS)
    assert text.count("A &amp; B</h2>") == 2
    assert "&lt;2&gt;" in text
    assert "no &lt;memory&gt;" in text
    assert "python -m integration.lecture.attacks" in text
    assert text.count("Not made:") == len(page.COMMANDS) - 2
    assert text.count("<figure") == 2
    assert not re.search(r'(src|href)="(?!#)', re.sub(r'xlink:href="(#|data:)', "", text)), (
        "nothing is looked up elsewhere"
    )
    assert "<script" not in text
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids)), "pictures share no names"


def test_every_command_of_the_page_is_there() -> None:
    for name, takes_data in page.COMMANDS.items():
        text = (INTEGRATION / "lecture" / f"{name}.py").read_text()
        assert f"python -m integration.lecture.{name}" in text, "its docstring says how it is run"
        assert ("DATA" in text) == takes_data
        assert callable(script(f"lecture/{name}.py").main)


def test_five_times_two_to_four_is_ten_to_twenty() -> None:
    arithmetic = script("lecture/interval_arithmetic.py")
    found = arithmetic.example()
    assert (found.lower.item(), found.upper.item()) == (10, 20)
    out = arithmetic.through(arithmetic.WEIGHT, arithmetic.BIAS, arithmetic.BOX)
    matrix = arithmetic.by_centre(arithmetic.WEIGHT, arithmetic.BIAS, arithmetic.BOX)
    torch.testing.assert_close((out.lower, out.upper), (matrix.lower, matrix.upper))
    corners = arithmetic.corners(arithmetic.BOX) @ arithmetic.WEIGHT.T + arithmetic.BIAS
    torch.testing.assert_close((out.lower, out.upper), (corners.amin(0), corners.amax(0)), msg="as tight as can be")


@pytest.mark.parametrize("name", ["step", "sigmoid", "tanh", "ReLU", "leaky ReLU", "ELU", "softplus", "softmax"])
def test_activations_keep_intervals_exact(name: str) -> None:
    activations = script("lecture/activations.py")
    assert name in activations.ACTIVATIONS
    assert len(activations.ACTIVATIONS) == 8
    for low, high in ((-1.0, 2.0), (-3.0, -0.5), (0.1, 0.10001)):
        z = torch.linspace(low, high, 1001, dtype=torch.float64)
        reached = torch.cat([activations.values(name, z, other) for other in activations.OTHER])
        bottom, top = activations.bound(name, low, high)
        assert bottom == pytest.approx(reached.min().item(), abs=1e-12)
        assert top == pytest.approx(reached.max().item(), abs=1e-12)


def test_boxes_hold_what_layers_say() -> None:
    propagated = script("lecture/ibp_network.py")
    found = propagated.layers(propagated.small(), propagated.BOX, points=20)
    assert [name for name, _, _ in found] == ["the input", "layer 1", "its ReLU", "layer 2", "its ReLU", "the logits"]
    for _, points, bound in found:
        assert bool(((points >= bound.lower - 1e-6) & (points <= bound.upper + 1e-6)).all())
    _, points, bound = found[-1]
    assert (points.amax(0) - points.amin(0)).prod() < 0.8 * (bound.upper - bound.lower)[0].prod(), "boxes have grown"


def test_boxes_of_logits_certify_no_more_than_boxes_of_margins() -> None:
    notebook = script("lecture/notebook_network.py")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    x = torch.rand(50, 1, 4, 4)
    y = model(x).argmax(1)
    for eps, some in ((0.0, True), (0.005, True), (0.3, False)):
        ball = rp.Linf(eps=eps, clip=(0.0, 1.0))
        by_logits = notebook.certified_by_boxes(notebook.logit_boxes(model, x, ball), y)
        by_margins = rp.certifier("interval:ibp")(model, x, y, ball).certified
        assert bool((by_margins | ~by_logits).all())
        assert bool(by_logits.any()) == some


@pytest.mark.slow
def test_everything_runs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """All commands in their smallest size, twice: the second time all of it is kept."""
    whole = script("lecture/whole.py")
    for _ in range(2):
        with pytest.raises(SystemExit) as ended:
            whole.main(["--out", str(tmp_path), "--quick", "--data", str(tmp_path / "no-mnist")])
        assert ended.value.code == 0, capfd.readouterr().err
    seconds = [parts.read(tmp_path / name).seconds for name in page.COMMANDS]
    text = (tmp_path / "lecture.html").read_text()
    assert "Not made" not in text
    assert f"Made in {sum(seconds) / 60:.1f} minutes" in text
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids)), "pictures share no names"
