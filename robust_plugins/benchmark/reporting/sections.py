"""The sections of a report: what each shows, in the order of a reader's questions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from robust_plugins.benchmark.auditing import Severity
from robust_plugins.benchmark.reporting import tables, time, trainings
from robust_plugins.benchmark.reporting.brackets import accuracy_panel, margin_panel, radius_panel, verdict_panel
from robust_plugins.benchmark.reporting.contents import Contents, Line, caption
from robust_plugins.benchmark.reporting.examples import example_panels
from robust_plugins.benchmark.reporting.settings import Setting
from robust_plugins.benchmark.reporting.style import (
    KNOWN,
    VERDICTS,
    Look,
    legend,
    looks_of_components,
    looks_of_models,
    patches,
)
from robust_plugins.harness.table import Table

PANELS = 12
"""At most so many settings are drawn in one section; tables hold all."""


@dataclass(frozen=True)
class Figure:
    """A picture and what it shows."""

    picture: str
    caption: str


@dataclass(frozen=True)
class Section:
    """One part of a report."""

    name: str
    """What its link is called."""
    title: str
    texts: tuple[str, ...] = ()
    legend: str = ""
    figures: tuple[Figure, ...] = ()
    tables: tuple[tuple[str, Table], ...] = ()
    listings: tuple[str, ...] = ()
    left_out: str = ""


def sections(contents: Contents, more: Sequence[Section] = ()) -> list[Section]:
    """All sections that have something to say; `more` come before what is said about failures."""
    found = [
        *_decisions(contents),
        *_examples(contents),
        *_trainings(contents),
        *_time(contents),
        *_brackets(contents),
        *more,
        *_failures(contents),
        _contradictions(contents),
        _provenance(contents),
    ]
    return [section for section in found if section.figures or section.tables or section.texts or section.listings]


def _decisions(contents: Contents) -> list[Section]:
    all_settings = contents.settings
    if not all_settings:
        return []
    looks = looks_of_components([pair for setting in all_settings for pair in setting.components])
    models = looks_of_models([setting.model for setting in all_settings])
    band = ("not decided", KNOWN, "")

    def drawn(draw: Callable[[Setting, str], str], name: str) -> tuple[tuple[Figure, ...], str]:
        figures = tuple(
            Figure(draw(setting, f"{name}{i}"), caption(setting, all_settings))
            for i, setting in enumerate(islice(all_settings, PANELS))
        )
        return figures, _left_out(len(all_settings), PANELS)

    accuracy, left = drawn(lambda s, name: accuracy_panel(s, looks, name), "accuracy")
    radii, _ = drawn(radius_panel, "radii")
    certifying = [s for s in all_settings if s.has["certifier"]]
    verdicts = tuple(
        Figure(verdict_panel(s, f"verdicts{i}"), caption(s, all_settings))
        for i, s in enumerate(islice(certifying, PANELS))
    )
    margins = []
    for i, setting in enumerate(islice(all_settings, PANELS)):
        picture, words = margin_panel(setting, setting.middle, f"margins{i}")
        if picture:
            margins.append(Figure(picture, f"{setting.model} on {setting.data}: {words}"))
    fronts = tuple(
        Figure(time.pareto_panel(group, eps, models, f"pareto{i}"), f"{title} (n = {min(s.count for s in group)})")
        for i, (title, eps, group) in enumerate(contents.groups())
        if len(group) > 1
    )
    outer = Look("all together, with 95 % intervals", "#404040", "o", "-")
    return [
        Section(
            "accuracy", "Accuracy against the radius",
            ("The true robust accuracy lies in the filled band. Dotted: clean accuracy. Whiskers: 95 % intervals.",),
            patches([band]) + legend([outer, *looks.values()]), accuracy, left_out=left,
        ),
        Section(
            "intervals", "Accuracies with 95 % intervals",
            ("Wilson's intervals: where the share among all such samples lies, were these drawn at random. An attack's "
             "accuracy is of the samples that it has an answer for, a certifier's of all that it was asked for; n is "
             "written where it is not that of the heading, and silent are the samples without an answer.",),
            tables=tuple(t for s in all_settings for t in tables.accuracy_tables(s, caption(s, all_settings))),
        ),
        Section(
            "radii", "Distribution of certified and attacked radii",
            ("For each radius the share of samples that nobody certified beyond it, and the share that somebody broke "
             "within it. The true critical radii lie in the filled band.",),
            legend([Look("largest certified radius", "#0072B2", "^", "-"),
                    Look("smallest attacked distance", "#D55E00", "v", "--")]) + patches([band]),
            radii, left_out=left,
        ),
        Section(
            "models", "Clean against certified accuracy",
            ("Each model's mark is at its certified accuracy, the bar above it at its attacked one. The models that no "
             "other one beats in both, clean and certified, are joined.",) if fronts else (),
            legend(list(models.values())) if fronts else "", fronts,
        ),
        Section(
            "verdicts", "Where each certifier stops deciding",
            ("All bars are of all samples asked for.",) if verdicts else (),
            patches([(name, *look) for name, look in VERDICTS.items()]) if verdicts else "",
            verdicts, left_out=_left_out(len(certifying), PANELS),
        ),
        Section(
            "margins", "Reached against proved margins",
            ("Each point is a sample: the margin that the best attack reached against the one that the best certifier "
             "proved. Sound answers lie on the dotted diagonal or above it; the distance to it is what is not known.",)
            if margins else (),
            figures=tuple(margins), left_out=left if margins else "",
        ),
    ]  # fmt: skip


def _examples(contents: Contents) -> list[Section]:
    figures = tuple(Figure(*panel) for panel in example_panels(contents.columns, contents.stores))
    if not figures:
        return []
    words = (
        "Above each input its label, above what it became the label and the decision, below that the distance, and "
        "above the change its largest value: red adds, blue takes away."
    )
    return [Section("examples", "Adversarial examples", (words,), figures=figures)]


def _trainings(contents: Contents) -> list[Section]:
    trained = [t for t in contents.trainings if t["model_hash"] in set(contents.columns["model_hash"]) and t["epochs"]]
    if not trained:
        return []
    models = looks_of_models([training["model"] for training in trained])
    sets: dict[str, list[dict[str, Any]]] = {}
    for training in trained:
        sets.setdefault(training["data"], []).append(training)
    figures = [
        Figure(trainings.score_panel(group, models, f"scores{i}"), f"clean accuracy by epoch, {data}")
        for i, (data, group) in enumerate(sets.items())
    ]
    figures += [
        Figure(trainings.loss_panel(training, f"losses{i}"), f"losses of {training['model']} on {training['data']}")
        for i, training in enumerate(trained[:PANELS])
    ]
    looks = list({look.name: look for training in trained for _, look in trainings.parts(training)}.values())
    text = (
        "Models that the study trained itself, or found in its cache. Losses of different recipes do not compare; a "
        "jump is where a ramp begins or ends."
    )
    return [
        Section(
            "trainings", "Training curves", (text,), legend(list(models.values())) + legend(looks), tuple(figures),
            (("", trainings.training_table(trained)),), left_out=_left_out(len(trained), PANELS, "trainings"),
        )
    ]  # fmt: skip


def _time(contents: Contents) -> list[Section]:
    columns = contents.columns
    entries = time.spent(columns)
    if not entries:
        return []
    looks = looks_of_components([pair for setting in contents.settings for pair in setting.components])
    figures = []
    for kind, what in (("certifier", "decided"), ("attack", "broken")):
        picture, count = time.cactus_panel(columns, kind, looks, f"cactus{kind}")
        if count:
            figures.append(Figure(picture, f"{kind}s: samples {what} within a time each ({count:,} records)"))
    drawn = entries[:30]
    split = Figure(time.split_panel(drawn, "split"), f"where the time went ({sum(e.records for e in drawn):,} records)")
    return [
        Section(
            "time", "Time",
            ("A record's time is its share of the wall-clock time of its batch. The model's part is an estimate: its "
             "queries, times the median time of a clean pass. What is not the backend's is checks, projections and "
             "judgements around it.",),
            legend(list(looks.values())) + patches(time.PARTS), (*figures, split),
            (("", tables.time_table(entries, columns)),), left_out=_left_out(len(entries), 30, "components"),
        )
    ]  # fmt: skip


def _brackets(contents: Contents) -> list[Section]:
    return [
        Section(
            "explanations", "Explanations",
            ("The widest change of any feature's attribution within the ball: reached by an attack, or proved to be "
             "impossible beyond.",) if (found := tables.explanation_tables(contents.columns)) else (),
            tables=tuple(found),
        ),
        Section(
            "poisoning", "Poisoned training data",
            ("Predictions of what is trained: changed by poison that an attack chose, or proved to stay whatever the "
             "budget's poison.",) if (trained := tables.poisoning_tables(contents.columns)) else (),
            tables=tuple(trained),
        ),
    ]  # fmt: skip


def _failures(contents: Contents) -> list[Section]:
    table = tables.failure_table(contents.columns)
    return [Section("failures", "Failures by cause", tables=(("", table),) if table.rows else ())]


def _contradictions(contents: Contents) -> Section:
    rows = []
    for severity in Severity:
        rows += [(str(severity), str(f.rule), sentence, str(count)) for f, count, sentence in contents.worst(severity)]
    table = Table(("severity", "rule", "the worst one", "findings"), tuple(rows), words=3)
    texts = (
        "A violation means that one of two records is wrong; near, that rounding can account for the difference; weak, "
        "that a component missed what its own answer at another radius implies.",
    )
    none = "Every record was held against every other one about the same model and input: nothing was found."
    return Section(
        "contradictions", "Contradictions", texts if rows else (none,), tables=(("", table),) if rows else ()
    )


def _provenance(contents: Contents) -> Section:
    store = " ".join(path.name for path in contents.stores) or "STORE"
    files = Table(("store", "SHA-256"), tuple(contents.files))
    lines = [
        f"This page again: robust-plugins bench report {store}",
        f"The audit again: robust-plugins bench audit {store}",
    ]
    found = [
        ("Stores", files), ("Models and data", tables.weights_table(contents.columns)),
        ("Versions and machines", tables.provenance_table(contents.columns)),
    ]  # fmt: skip
    shown = [(title, table) for title, table in found if table.rows]
    return Section(
        "provenance", "Provenance", tables=tuple(shown), listings=("\n".join(lines), *contents.configurations)
    )


def _left_out(count: int, most: int, what: str = "models, data sets and norms") -> str:
    return f"The first {most} of {count} {what} are drawn." if count > most else ""


def bar(line: Line) -> str:
    """A line's bracket as a bar from 0 to 100 %: the part that is not known filled, and the clean accuracy marked."""
    setting, eps = line.setting, line.eps
    shares = (setting.clean, setting.attacked(eps), setting.certified(eps))
    clean, high, low = (100 * share.value for share in shares)
    mark = "" if np.isnan(clean) else f'<path d="M{clean:.1f} 1v14" stroke="#595959" stroke-dasharray="2 2"/>'
    label = f"certified: {line.certified}, attacked: {line.attacked}"
    return (
        '<svg width="120" height="16" viewBox="-1 0 102 16" preserveAspectRatio="none" role="img" '
        f'aria-label="{label}">'
        f'<rect x="0" y="4" width="100" height="8" fill="#f1f1f1" stroke="#bbb" stroke-width=".5"/>'
        f'<rect x="0" y="4" width="{low:.1f}" height="8" fill="#0072B2"/>'
        f'<rect x="{low:.1f}" y="4" width="{max(high - low, 0):.1f}" height="8" fill="#9CC3DE"/>{mark}</svg>'
    )
