import re
import sqlite3
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save
from support.study_records import record, synthetic

from robust_plugins.benchmark.columns import Columns
from robust_plugins.benchmark.reporting import write_study_report
from robust_plugins.benchmark.reporting.settings import settings
from robust_plugins.benchmark.reporting.style import figure, looks_of_components
from robust_plugins.benchmark.reporting.time import cactus_panel, spent
from robust_plugins.benchmark.store import Store, artifact_hash
from robust_plugins.cli import commands
from robust_plugins.errors import ArgumentError
from robust_plugins.harness.wilson import Share


def fields(row):
    return {name: getattr(row, name) for name in row.__dataclass_fields__}


def store_of(path, rows):
    with Store(path, write=True) as store:
        store.insert(rows)
    return path


class Parts(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.ids, self.links, self.loaded = [], [], [], []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.links += [attrs["href"][1:]] if tag == "a" else []
        if tag in ("script", "link", "img") or ("src" in attrs and not attrs["src"].startswith("data:")):
            self.loaded.append(tag)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    store_of(folder / "study.sqlite", synthetic(12, models=("plain", "robust"), radii=(0.05, 0.1)))
    findings = write_study_report(folder / "pages" / "study.html", folder / "study.sqlite", title="A & B")
    assert findings.violations == []
    return (folder / "pages" / "study.html").read_text(), (folder / "pages" / "study.md").read_text()


def test_the_page_stands_alone_and_its_links_and_ids_fit(page):
    html, _ = page
    parts = Parts()
    parts.feed(html)
    assert parts.loaded == []
    assert len(parts.ids) == len(set(parts.ids))
    assert set(parts.links) <= set(parts.ids)
    assert "<title>A &amp; B</title>" in html
    assert not re.findall(r"(?:src|href)=.https?:", html.replace('xmlns:xlink="http', ""))


def test_page_and_markdown_say_the_same(page):
    html, text = page
    for words in ("No contradiction among 312 records", "Accuracies with 95 % intervals", "robust on digits (n = 12)"):
        assert words in html
        assert words in text
    figures = re.findall(r"\d+\.\d % \(\d+\.\d-\d+\.\d\)", text)
    assert len(figures) > 30
    assert all(figure in html for figure in figures)


def test_many_radii_stand_in_several_tables(tmp_path):
    radii = tuple(0.01 * (i + 1) for i in range(14))
    write_study_report(
        tmp_path / "page.html", store_of(tmp_path / "s.sqlite", synthetic(3, models=("plain",), radii=radii))
    )
    text = (tmp_path / "page.md").read_text()
    heads = [line.split(" | ")[2:] for line in text.splitlines() if line.startswith("| accuracy of")]
    assert [len(head) for head in heads] == [6, 6, 2]
    assert [word.strip(" |") for head in heads for word in head] == [f"linf {eps:.4g}" for eps in radii]
    titles = [line for line in text.splitlines() if line.startswith("### ") and "(n = 3)" in line]
    assert len(titles) == 1


@pytest.mark.parametrize("values", [(-100.0, -50.5), (0, 123456)])
def test_what_an_axis_counts_stands_inside_the_picture(values):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    drawn, axes = figure()
    axes.plot(values, values)
    axes.set(xlabel="proved margin (logits)", ylabel="reached margin (logits)")
    FigureCanvasAgg(drawn).draw()
    assert axes.yaxis.label.get_window_extent().x0 >= 0
    assert axes.xaxis.label.get_window_extent().y0 >= 0


def test_the_summary_fits_a_telephone(page):
    """In place of a browser: cells of a narrow page may shrink, and no rule for wide tables keeps them from it."""
    rules = page[0].partition("@media screen and (max-width: 52rem)")[2].partition("@media print")[0]
    assert "repeat(3, minmax(0, 1fr))" in rules
    assert re.search(r"table\.summary td\.word \{[^}]*min-width: 0", rules)


def test_a_contradiction_is_what_the_page_says_first(tmp_path):
    rows = [
        record(kind="clean", margin=1.0, seconds=1e-3),
        record(verdict="certified", margin=0.5),
        record(component="pgd", kind="attack", verdict="falsified", success=True, margin=-0.1, distance=0.1),
    ]
    findings = write_study_report(tmp_path / "page.html", store_of(tmp_path / "s.sqlite", rows))
    html = (tmp_path / "page.html").read_text()
    assert len(findings.violations) == 1
    assert html.index("1 contradiction among 3 records") < html.index("<table")
    assert "but pgd reached the margin -0.1" in html


def test_what_has_no_answer_is_no_figure(tmp_path):
    rows = [
        record(component="pgd", kind="attack", verdict="error", error="MemoryError: 3 GiB"),
        record(component="pgd", kind="attack", verdict="error", error="MemoryError: 4 GiB", sample=1),
        record(verdict="timeout"),
    ]
    write_study_report(tmp_path / "page.html", store_of(tmp_path / "s.sqlite", rows))
    text = (tmp_path / "page.md").read_text()
    assert "| pgd | attacked | no answer for 2 |" in text
    assert "| pgd | error | MemoryError: 3 GiB | small, digits sample 0 | 2 |" in text
    assert "Without an answer: 1 timeout, 2 error." in text


def test_kept_examples_are_shown_and_measured_in_every_norm(tmp_path):
    x = torch.rand(1, 5, 5)
    x_adv = x + 0.1
    content = save({"x": x, "x_adv": x_adv})
    name = artifact_hash(content)
    rows = [
        record(component="pgd", kind="attack", verdict="falsified", success=True, distance=0.1, prediction=5,
               clip="", artifact=name),
        record(verdict="certified", norm="l2", eps=0.51, clip=""),
        record(verdict="certified", norm="l2", eps=0.49, clip="", component="other"),
    ]  # fmt: skip
    with Store(tmp_path / "s.sqlite", write=True) as store:
        store.insert(rows, {name: content})
    findings = write_study_report(tmp_path / "page.html", tmp_path / "s.sqlite")
    assert [findings.columns["eps"][f.first] for f in findings.violations] == [0.51]
    html = (tmp_path / "page.html").read_text()
    assert "3 → 5" in html
    assert "the 1 nearest of 1 kept examples, by pgd" in html


def test_a_report_replaces_an_earlier_one_and_nothing_else(tmp_path):
    store = store_of(tmp_path / "s.sqlite", [record(kind="clean", margin=1.0), record(verdict="certified")])
    target = tmp_path / "page.html"
    for _ in range(2):
        write_study_report(target, store)
    assert CliRunner().invoke(commands, ["bench", "report", str(store), "--page", str(target)]).exit_code == 0
    for name, other in (("notes.html", "notes.html"), ("README.html", "README.md")):
        (tmp_path / other).write_text("my own words")
        with pytest.raises(ArgumentError, match="holds something else"):
            write_study_report(tmp_path / name, store)
        assert (tmp_path / other).read_text() == "my own words"
    assert not (tmp_path / "notes.md").exists()
    assert not (tmp_path / "README.html").exists()


def test_times_are_labelled_by_whole_decades():
    rows = [record(seconds=s, verdict="certified") for s in (2e-4, 5e-3)] + [record(seconds=0.1, verdict="timeout")]
    looks = looks_of_components([("bounds", "certifier")])
    picture, count = cactus_panel(Columns.of(map(fields, rows)), "certifier", looks, "cactus")
    assert count == 2
    assert set(re.findall(r"mathdefault\{(.*)\}\$", picture)) == {"10^{-4}", "10^{-3}", "10^{-2}"}


def test_a_store_without_records_is_refused(tmp_path):
    with pytest.raises(ArgumentError, match="empty"):
        write_study_report(tmp_path / "page.html", store_of(tmp_path / "s.sqlite", []))


def test_wilson():
    # Newcombe 1998, table I
    for share, (low, high) in {
        Share(81, 263): (0.2553, 0.3662),
        Share(0, 20): (0, 0.1611),
        Share(29, 29): (0.8830, 1),
    }.items():
        assert np.allclose(share.interval, (low, high), atol=5e-5)


def test_brackets_take_what_other_radii_imply():
    rows = [
        record(kind="clean", margin=1.0), record(kind="clean", sample=1, margin=1.0),
        record(kind="clean", sample=2, verdict="falsified", prediction=0),
        record(verdict="certified", eps=0.2), record(eps=0.1),
        record(component="pgd", kind="attack", verdict="falsified", sample=1, eps=0.1, distance=0.08),
        record(component="pgd", kind="attack", verdict="unknown", sample=1, eps=0.2),
    ]  # fmt: skip
    (setting,) = settings(Columns.of(map(fields, rows)))
    assert (setting.clean.count, setting.clean.total) == (2, 3)
    assert [setting.certified(eps).count for eps in (0.1, 0.2)] == [1, 1]
    assert [setting.attacked(eps).count for eps in (0.05, 0.1, 0.2)] == [2, 1, 1]
    assert setting.loose(0.2) == "closed: every sample is decided"


def test_a_side_without_an_answer_is_no_figure(tmp_path):
    clean = record(kind="clean", margin=1.0)
    for side, words in (
        (record(verdict="certified"), "no attack"),
        (record(kind="attack", component="a"), "no certifier"),
    ):
        path = tmp_path / f"{words}.sqlite"
        write_study_report(path.with_suffix(".html"), store_of(path, [clean, side]))
        assert f" {words} |" in path.with_suffix(".md").read_text()
    rows = [clean, record(verdict="certified"), record(kind="attack", component="a", verdict="falsified")]
    (setting,) = settings(Columns.of(map(fields, rows)))
    assert "crosses" in setting.loose(0.1)


def test_the_loose_side_is_told_by_what_a_verifier_decided():
    def verified(sample, verdict):
        return record(component="verifier", sample=sample, verdict=verdict, distance=0.1)

    rows = [record(kind="clean", sample=i, margin=1.0) for i in range(5)]
    rows += [
        record(component="pgd", kind="attack", sample=i, verdict="falsified" if i == 2 else "unknown", eps=0.1)
        for i in range(5)
    ]
    rows += [record(sample=i) for i in range(5)]
    rows += [verified(0, "certified"), verified(1, "certified"), verified(2, "falsified"), verified(3, "timeout")]
    (setting,) = settings(Columns.of(map(fields, rows)))
    assert setting.loose(0.1).startswith("2 of 5 undecided: the certified side is loose (bounds missed 2 of 2")


def test_where_all_is_decided_the_summary_says_what_attacks_missed():
    rows = [record(kind="clean", margin=1.0)]
    for eps in (0.05, 0.1, 0.2, 0.3):
        verdict = "certified" if eps < 0.2 else "falsified"
        rows.append(record(component="verifier", verdict=verdict, eps=eps, distance=eps))
        rows.append(record(component="pgd", kind="attack", verdict="falsified" if eps > 0.2 else "unknown", eps=eps))
    (setting,) = settings(Columns.of(map(fields, rows)))
    assert setting.middle == 0.2
    assert setting.loose(0.2) == "closed: every sample is decided (attacks missed 1 of 1 that a verifier broke)"
    assert setting.loose(0.3).endswith("(attacks missed 0 of 1 that a verifier broke)")


def test_time_is_split_where_it_was_measured():
    rows = [
        record(kind="clean", seconds=0.01),
        record(component="pgd", kind="attack", seconds=1.0, backend_seconds=0.75, queries=40),
        record(seconds=0.5),
    ]
    attack, bounds = spent(Columns.of(map(fields, rows)))
    assert (attack.component, attack.total, attack.backend, attack.layer) == ("pgd", 1.0, 0.75, 0.25)
    assert attack.model == pytest.approx(0.4)
    assert (bounds.backend, bounds.model, bounds.layer) == (None, None, None)
    many = [rows[0], record(component="pgd", kind="attack", seconds=1.0, backend_seconds=0.75, queries=90)]
    (attack,) = spent(Columns.of(map(fields, many)))
    assert attack.model == attack.backend == 0.75  # the model is a part of it


def training(model, *, worst=None):
    epochs = [
        {"epoch": n, "loss": 2 / n, "clean": 2 / n if worst is None else 1 / n, "worst": worst, "eps": 0.0,
         "gamma": None, "seconds": 1.5, "scores": {"clean": 0.5 + n / 10}}
        for n in (1, 2, 3)
    ]  # fmt: skip
    return {"epochs": epochs}


def test_training_curves_are_of_the_models_that_were_studied(tmp_path):
    with Store(tmp_path / "s.sqlite", write=True) as store:
        store.insert(synthetic(4, models=("plain", "robust"), radii=(0.1,)))
        store.remember_training("plain", "digits", "plain", training("plain"))
        store.remember_training("robust", "digits", "robust", training("robust", worst=3.0))
        store.remember_training("robust", "digits", "of before", training("robust"))
        assert [t["model_hash"] for t in store.trainings()] == ["plain", "robust", "of before"]
    write_study_report(tmp_path / "page.html", tmp_path / "s.sqlite")
    html, text = (tmp_path / "page.html").read_text(), (tmp_path / "page.md").read_text()
    assert "| plain | digits | 3 | 0.667 | 0.667 |  | 0 | 80.0 % | 4.5 s |" in text
    assert "| robust | digits | 3 | 0.667 | 0.333 | 3 | 0 | 80.0 % | 4.5 s |" in text
    assert text.count("| robust | digits | 3 |") == 1
    assert html.count("losses of ") == 2
    assert "its part of the worst case" in html


def test_a_store_of_an_older_version_has_no_training_curves(tmp_path):
    path = store_of(tmp_path / "s.sqlite", synthetic(2, models=("plain",), radii=(0.1,)))
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE trainings")
    write_study_report(tmp_path / "page.html", path)
    assert "Training curves" not in (tmp_path / "page.html").read_text()
