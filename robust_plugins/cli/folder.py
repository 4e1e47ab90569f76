"""The folder that a command writes to."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from robust_plugins.brackets.pages import check_page
from robust_plugins.errors import ArgumentError

NAME = "settings.json"
"""The file that says whose folder it is."""


def claim(out: Path, settings: dict[str, Any], writes: Iterable[str] = ()) -> None:
    """Says whose checkpoint the folder holds: another run's must not be taken for this one's.

    A folder that is nobody's must have none of the files that the command `writes`: they are not of a run of it.
    """
    path, ours = out / NAME, json.loads(json.dumps(settings))
    try:
        theirs = json.loads(path.read_text()) if path.exists() else ours
        if theirs != ours:
            known = theirs if isinstance(theirs, dict) else {}
            names = sorted(name for name in known.keys() | ours if known.get(name) != ours.get(name))
            raise click.UsageError(
                f"{out} holds another run, which differs in {', '.join(names)}: see {path}. Name another folder."
            )
        foreign = [] if path.exists() else [name for name in writes if os.path.lexists(out / name)]
        if foreign:
            raise click.UsageError(
                f"{out} holds {', '.join(foreign)} of something else, which would be replaced. Name another folder."
            )
        out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings, indent=2))
    except json.JSONDecodeError:
        raise click.UsageError(f"{out} holds something else: {path} cannot be read. Name another folder.") from None
    except OSError as error:
        raise click.UsageError(f"{out} cannot be written to: {error}. Name another folder.") from None


@contextmanager
def claimed(out: Path, settings: dict[str, Any], writes: Iterable[str] = ()) -> Iterator[None]:
    """`claim`, taken back where the block fails before it has written anything that is worth keeping."""
    writes = tuple(writes)
    claim(out, settings, writes)
    try:
        yield
    except BaseException:
        if not any(os.path.lexists(out / name) for name in writes):
            (out / NAME).unlink()
        raise


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Has a file written beside `path` and put into its place, so that no interruption leaves a part of one."""
    part = path.with_name(f"{path.name}.part")
    try:
        write(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def try_page(path: Path) -> None:
    """Raises ArgumentError unless a page can be written to `path`; makes its folders, and leaves the file as it is.

    A file that is there has to be such a page, which is then replaced.
    """
    existed = path.exists()
    check_page(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab"):
            pass
        if not existed:
            path.unlink()
    except OSError as error:
        raise ArgumentError(
            "--page", f"{path}, which cannot be written: {error}", accepted="a file in a folder that you may write to",
            hint="Name another file.",
        ) from error  # fmt: skip
