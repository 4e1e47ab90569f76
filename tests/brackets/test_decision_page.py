"""The page of a comparison: complete, self-contained, and true to the table."""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser

import pytest
import torch
from support.toys import Plugin
from torch import nn

import robust_plugins as rp
from robust_plugins.testing import fresh_registry  # noqa: F401 (a fixture)

COMPONENTS = ["toy:sign-step", "toy:boxes"]


@pytest.fixture(autouse=True)
def toys(fresh_registry) -> None:  # noqa: F811
    rp.register(Plugin(), "toys")


def _comparisons(*, channels: int = 1, radii=(0.02, 0.3)) -> list[rp.Comparison]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(channels * 16, 3))
    x = torch.rand(8, channels, 4, 4)
    y = model(x).argmax(1)
    return [rp.compare(model, x, y, rp.Linf(eps=e, clip=(0, 1)), COMPONENTS, seed=0) for e in radii]


@pytest.mark.parametrize("channels", [1, 3])
def test_the_page_holds_table_plot_and_pictures(tmp_path, channels) -> None:
    comparisons = _comparisons(channels=channels)
    path = rp.write_report(tmp_path / "new" / "page.html", comparisons, title="A <b> & c")
    text = path.read_text()
    assert "<title>A &lt;b&gt; &amp; c</title>" in text
    cells = re.findall(r"<td>(.*?)</td>", text)
    for row in ("toy:sign-step", "toy:boxes"):
        at = cells.index(row)
        assert cells[at + 2 : at + 4] == [f"{c[row].accuracy:.3f}" for c in comparisons]
    assert text.count("<svg") == 2
    assert "x&#x27; - x" in text or "x' - x" in text
    for comparison in comparisons:
        assert f"between {comparison.bracket.certified:.3f} and {comparison.bracket.empirical:.3f}" in text
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", text)  # nothing is fetched
    HTMLParser().feed(text)


def test_one_radius_has_no_plot_and_tables_no_pictures(tmp_path) -> None:
    (single,) = _comparisons(radii=(0.3,))
    assert rp.write_report(tmp_path / "a.html", [single], title="one").read_text().count("<svg") == 1
    model, x = nn.Linear(3, 2), torch.rand(4, 3)
    flat = [rp.compare(model, x, model(x).argmax(1), rp.Linf(eps=e, clip=None), COMPONENTS, seed=0) for e in (0.1, 0.9)]
    assert rp.write_report(tmp_path / "b.html", flat, title="two").read_text().count("<svg") == 1


def test_the_same_comparisons_give_the_same_page(tmp_path) -> None:
    comparisons = _comparisons()
    pages = [rp.write_report(tmp_path / name, comparisons, title="t").read_text() for name in ("a.html", "b.html")]
    assert pages[0] == pages[1]


def test_an_empty_batch_with_a_radius_per_sample_is_printed(tmp_path) -> None:
    model, x = nn.Linear(3, 2), torch.rand(0, 3)
    nothing = rp.compare(model, x, torch.zeros(0, dtype=torch.long), rp.Linf(eps=[], clip=None), COMPONENTS)
    assert "Linf 0" in str(nothing)
    assert rp.write_report(tmp_path / "a.html", [nothing], title="none").exists()


def test_what_is_missing_is_named(tmp_path, monkeypatch) -> None:
    with pytest.raises(rp.ArgumentError, match="`comparisons` is empty"):
        rp.write_report(tmp_path / "x.html", [], title="none")
    monkeypatch.setattr(sys.modules["robust_plugins.brackets.pages"], "find_spec", lambda module: None)
    with pytest.raises(rp.PluginError, match=r"robust_plugins\[report\]"):
        rp.write_report(tmp_path / "x.html", _comparisons(), title="none")
