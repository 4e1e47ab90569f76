"""`write_study_report`: the records of studies as one page that needs no other file, and as markdown."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from robust_plugins.benchmark.auditing import Findings, Severity, audit
from robust_plugins.benchmark.columns import joined, read_columns
from robust_plugins.benchmark.reporting.contents import Contents
from robust_plugins.benchmark.reporting.names import named_apart, trainings_apart
from robust_plugins.benchmark.store import Store
from robust_plugins.brackets.pages import GENERATOR, check_page
from robust_plugins.errors import ArgumentError, PluginError

MADE = "Made by robust-plugins bench report"
"""Stands in every page of a study, and in the markdown beside it."""


def write_study_report(
    path: str | Path, stores: str | Path | Sequence[str | Path], *, title: str = "Robustness study"
) -> Findings:
    """Writes what is in `stores` as a page to `path`, and as markdown beside it; returns what the audit found.

    The page stands alone: pictures are part of it, it runs no scripts, and it prints. Its first screen is the summary:
    whether anything contradicts anything, and for each model, data set and norm what is known of the robust accuracy
    and which side of it is loose. Several stores are shown as one; what had the name of something else before, as a
    model that was trained again, is shown under a name of its own. Missing folders are made.

    Raises ArgumentError for a store without records, a file that is none, and one that would become the page, or where
    the page or the markdown is a file of something else, which would be replaced;
    PluginError where matplotlib or jinja2 is missing.
    """
    missing = [module for module in ("jinja2", "matplotlib") if find_spec(module) is None]
    if missing:
        raise PluginError(f"a report needs {' and '.join(missing)}; install: pip install 'robust_plugins[report]'")
    from jinja2 import Environment, PackageLoader

    from robust_plugins.benchmark.reporting.markdown import markdown
    from robust_plugins.benchmark.reporting.sections import bar, sections

    paths = tuple(Path(p) for p in ([stores] if isinstance(stores, str | Path) else stores))
    target = Path(path)
    _spare(target, paths)
    columns = joined([read_columns(p) for p in paths])
    if not len(columns):
        raise ArgumentError(
            "store", ", ".join(map(str, paths)) + ": empty", accepted="a store with records",
            hint="Run the study first: robust-plugins bench run study.toml.",
        )  # fmt: skip
    studies, trainings = _told(paths)
    apart = named_apart(columns)
    contents = Contents(title, apart, audit(apart), paths, studies, trainings_apart(trainings, apart))
    parts = sections(contents)
    made = f"{MADE} from {', '.join(p.name for p in paths)}."
    page = (
        Environment(loader=PackageLoader("robust_plugins.benchmark.reporting"), autoescape=True)
        .get_template("study.html")
        .render(
            c=contents, sections=parts, bar=bar, made=made, violations=contents.worst(Severity.VIOLATION),
            generator=GENERATOR,
        )
    )  # fmt: skip
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(page, encoding="utf-8")
        target.with_suffix(".md").write_text(f"{markdown(contents, parts)}\n{made}\n", encoding="utf-8")
    except OSError as error:
        raise ArgumentError(
            "path", f"{str(target)!r}, which cannot be written: {error}", accepted="a file that you may write to",
            hint="Name another one, or make room.",
        ) from error  # fmt: skip
    return contents.findings


def _spare(target: Path, stores: Sequence[Path]) -> None:
    """Raises ArgumentError where the page, or the markdown beside it, would be written over what is neither."""
    written = {target.resolve(), target.with_suffix(".md").resolve()}
    if len(written) < 2 or written & {store.resolve() for store in stores}:
        raise ArgumentError(
            "path", repr(str(target)), accepted="a file other than the stores, as is the markdown beside it",
            hint="For example report.html.",
        )  # fmt: skip
    check_page(target)
    beside = target.with_suffix(".md")
    if beside.is_file() and beside.stat().st_size and MADE not in beside.read_text(encoding="utf-8", errors="replace"):
        raise ArgumentError(
            "page", f"{target}, beside which {beside.name} holds something else and would be replaced",
            accepted="a name that is free with .md, too, or that of an earlier run", hint="Name another file.",
        )  # fmt: skip


def _told(paths: Sequence[Path]) -> tuple[tuple[dict[str, Any], ...], tuple[dict[str, Any], ...]]:
    """The studies and the trainings of all stores."""
    studies: list[dict[str, Any]] = []
    trainings: list[dict[str, Any]] = []
    for path in paths:
        with Store(path) as store:
            studies += store.studies()
            trainings += [training for training in store.trainings() if training not in trainings]
    return tuple(studies), tuple(trainings)
