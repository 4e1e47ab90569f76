"""The folder that a command writes to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click


def claim(out: Path, settings: dict[str, Any]) -> None:
    """Says whose checkpoint the folder holds: another run's must not be taken for this one's."""
    path = out / "settings.json"
    if path.exists() and json.loads(path.read_text()) != json.loads(json.dumps(settings)):
        raise click.UsageError(f"{out} holds another run, see {path}; name another folder.")
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(settings, indent=2))
