"""The README and the pages of `docs/`: their blocks of code, and what runs them as a reader would."""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import random
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
FILES = [
    ROOT / "README.md",
    *sorted(path for path in (ROOT / "docs").rglob("*.md") if path.parent.name != "reference"),  # made from docstrings
]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the output written right after it, where there is one."""

    language: str
    text: str
    output: str | None


@dataclass(frozen=True)
class Page:
    """One Markdown file and its blocks, in order."""

    path: Path
    blocks: tuple[Block, ...]

    @property
    def name(self) -> str:
        """The path below the repository, as tests are named after it."""
        return self.path.relative_to(ROOT).as_posix()

    def of(self, language: str) -> list[Block]:
        """The blocks in one language."""
        return [block for block in self.blocks if block.language == language]


def read(path: Path) -> Page:
    """The page of a file."""
    found = FENCE.findall(path.read_text(encoding="utf-8"))
    following = [*found[1:], ("", "")][: len(found)]
    blocks = (
        Block(language, text, after if kind == "text" else None)
        for (language, text), (kind, after) in zip(found, following, strict=True)
    )
    return Page(path, tuple(blocks))


PAGES = [read(path) for path in FILES]
BEGINNING = read(ROOT / "docs" / "guides" / "attack.md").of("python")[0].text
"""A small network and its data, from which many pages start."""


_LOOSE = re.compile(r"of \d+ samples with ends more than .*")


def normal(text: str) -> list[str]:
    """Lines without what differs from run to run (seconds) or between processors, rules and trailing blanks.

    How many ascents of an attack on explanations end in the same place changes with the rounding of their gradients.
    """
    lines = [
        _LOOSE.sub(lambda found: re.sub(r"\d+", "#", found[0]), line.rstrip()) for line in text.strip().splitlines()
    ]
    return [re.sub(r"\d+(\.\d+)? s\b", "# s", re.sub(r"[─ ]+", " ", line)) for line in lines]


def run(page: Page) -> tuple[dict[str, Any], list[tuple[Block, str]]]:
    """The namespace after all Python blocks of a page, and what each of them printed.

    They run in one namespace, in order, as a reader would type them. Many pages begin with the same lines, which run
    once.
    """
    name = "page"
    sys.modules[name] = type(sys)(name)  # dataclasses look their module up
    namespace: dict[str, Any] = {"__name__": name}
    printed = []
    for number, block in enumerate(page.of("python")):
        code = block.text
        if not number and code.startswith(BEGINNING):
            state, random_states = _begun()
            namespace |= {key: copy.deepcopy(v) if isinstance(v, torch.nn.Module) else v for key, v in state.items()}
            _set_random_states(*random_states)
            code = code.removeprefix(BEGINNING)
        printed.append((block, _execute(code, namespace, page.name)))
    return namespace, printed


def _execute(code: str, namespace: dict[str, Any], place: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, place, "exec"), namespace)
    return out.getvalue()


@functools.cache
def _begun() -> tuple[dict[str, Any], tuple[Any, ...]]:
    """The namespace that `BEGINNING` leaves, and the random states after it."""
    namespace: dict[str, Any] = {"__name__": "page"}
    _execute(BEGINNING, namespace, "the beginning")
    del namespace["__builtins__"]
    return namespace, (torch.get_rng_state(), np.random.get_state(), random.getstate())  # noqa: NPY002


def _set_random_states(of_torch: Any, of_numpy: Any, of_python: Any) -> None:
    torch.set_rng_state(of_torch)
    np.random.set_state(of_numpy)  # noqa: NPY002
    random.setstate(of_python)
