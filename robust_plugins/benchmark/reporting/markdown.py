"""A report as markdown: its words and tables, for where pictures have no place."""

from __future__ import annotations

from collections.abc import Sequence

from robust_plugins.benchmark.reporting.contents import Contents
from robust_plugins.benchmark.reporting.sections import Section
from robust_plugins.harness.table import Table

SUMMARY = ("model", "data", "ball", "samples", "clean", "attacked", "certified", "which side is loose")


def markdown(contents: Contents, sections: Sequence[Section]) -> str:
    """The summary and every section that has more than pictures."""
    lines = [
        f"# {contents.title}", "", f"{contents.extent}. {contents.silence}", "",
        f"**{contents.verdict}** {contents.margins_of_error}".rstrip(), "",
    ]  # fmt: skip
    if contents.summary:
        rows = tuple(
            (line.model, line.data, line.ball, str(line.setting.count), str(line.clean), line.attacked,
             line.certified, line.loose)
            for line in contents.summary
        )  # fmt: skip
        lines += [*_table(Table(SUMMARY, rows)), ""]
    for section in sections:
        if not section.tables and not section.listings:
            continue
        lines += [f"## {section.title}", "", *[f"{text}\n" for text in section.texts]]
        for title, table in section.tables:
            lines += [*([f"### {title}", ""] if title else []), *_table(table), ""]
        for listing in section.listings:
            lines += ["```", listing, "```", ""]
    return "\n".join(lines).rstrip() + "\n"


def _table(table: Table) -> list[str]:
    sides = ["---" if i < table.words else "---:" for i in range(len(table.columns))]
    return ["| " + " | ".join(map(_cell, row)) + " |" for row in (table.columns, tuple(sides), *table.rows)]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
