"""Pictures of results: each says what it shows, and stays legible."""

from __future__ import annotations

import dataclasses
import itertools
import sys

import pytest
import torch
from support.results import made
from support.toys import Boxes, Plugin, SignStep
from torch import nn

import robust_plugins as rp
from robust_plugins.harness.pictures import Bar, bars, svg
from robust_plugins.testing import fresh_registry  # noqa: F401 (a fixture)
from robust_plugins.testing.networks import cnn_case

pytest.importorskip("matplotlib")


@pytest.fixture(autouse=True)
def toys(fresh_registry) -> None:  # noqa: F811
    rp.register(Plugin(), "toys")


SHOWS = {
    "attack": ("success (", "distance from x (input units)", "cross-entropy on x'"),
    "certificate": ("certified (", "proved margin (logits)"),
    "comparison": (
        "the model (clean)",
        "mine (attacked)",
        "broken (attacked)",
        " no answer",
        "accuracy at Linf 0.08",
    ),
    "balls": ("not known", "clean", "toy:boxes (certified)", "eps (Linf, input units)"),
    "labels": ("label 3: toy:sign-step (attacked)", "accuracy at"),
    "errors": ("the model (clean)", "toy:sign-step (attacked)", "mean of the largest errors"),
    "explanations": ("proved interval", "attribution", "found by gradient:corner-pgd", "sample 2, y ="),
    "radius": ("toy:boxes (certified)", "share of samples", "radius (Linf, input units)"),
    "explanation attack": ("attribution", "found by the attack", "feature 0"),
    "explanation certificate": ("proved interval", "attribution", "feature 0"),
    "poisoning": ("certified bounds", "poisoned trainings", "weight[0, 0]"),
    "poisoning run": ("certified width, all parameters", "epoch"),
    "votes": ("accuracy", "partitions"),
}


@pytest.mark.parametrize("name", SHOWS)
def test_a_picture_says_what_it_shows(name) -> None:
    result = made(name)
    figure = result.plot()
    text = figure._repr_svg_().replace("&#x27;", "'")
    assert text.startswith("<svg")
    for words in SHOWS[name]:
        assert words in text, words
    figure.draw_without_rendering()
    assert figure.get_figwidth() <= 12
    for axes in figure.axes:  # letters of a legible size, and labels of ticks beside each other
        assert min((t.get_fontsize() for t in axes.get_xticklabels() + axes.get_yticklabels()), default=10) >= 8
        for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
            boxes = [t.get_window_extent() for t in labels if t.get_text() and t.get_visible()]
            assert not any(a.overlaps(b) for a, b in itertools.pairwise(boxes))


def test_figures_stand_behind_the_whiskers() -> None:
    figure = bars([Bar("few", "certified", 0.03, (0.0, 0.11))], "accuracy")
    figure.draw_without_rendering()
    (axes,) = figure.axes
    assert axes.texts[0].get_window_extent().x0 > axes.transData.transform((0.11, 0))[0]


def test_images_have_colour_bars_and_one_scale() -> None:
    torch.manual_seed(0)
    model, x, ball = (
        nn.Sequential(nn.Flatten(), nn.Linear(16, 3)),
        torch.rand(4, 1, 4, 4),
        rp.Linf(eps=0.1, clip=(0, 1)),
    )
    y = model(x).argmax(1)
    found = SignStep()(model, x, y, ball, seed=0)
    changed = found.plot(x, samples=3)
    assert len(changed.axes) == 3 * 3 + 1  # and the colour bar
    assert len(found.plot(samples=3).axes) == 3
    proof = rp.explanation_certifier("interval:ibp")(model, x, y, ball, delta=0.1)
    explained = proof.plot(x, samples=2)
    assert len(explained.axes) == 2 * 5 + 2 * 2
    assert all(word in svg(explained, "a") for word in ("input", "attribution", "lowest", "highest", "width"))


def test_empty_results_say_so_and_matplotlib_is_asked_for(monkeypatch) -> None:
    case = cnn_case(batch=2)
    nothing = (case.model, case.x[:0], case.y[:0], case.ball)
    for result in (SignStep()(*nothing), Boxes()(*nothing)):
        assert "no sample" in svg(result.plot(), "empty")
    assert rp.compare(*nothing, ["toy:boxes"]).plot()
    unbounded = dataclasses.replace(Boxes()(case.model, case.x, case.y, case.ball), margin=torch.full((2,), -torch.inf))
    assert "no margin is proved" in svg(unbounded.plot(), "unbounded")
    monkeypatch.setattr(sys.modules["robust_plugins.harness.pictures"], "find_spec", lambda module: None)
    with pytest.raises(rp.PluginError, match=r"robust_plugins\[report\]"):
        made("certificate").plot()
