"""`Study`: models, data, balls and components that are run into a store of records."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robust_plugins.errors import PluginError

if TYPE_CHECKING:  # what a study needs is an extra, and imported late
    from robust_plugins.benchmark.configuration import Configuration
    from robust_plugins.benchmark.running import Outcome
    from robust_plugins.benchmark.store import Store


class Study:
    """Models, data sets, balls and components, run into a store of one record per model, sample, ball and component.

    The arguments are the keys of a study's file, as `robust-plugins bench init` shows them, for example

        rp.Study(
            models=[{"name": "mlp", "source": "mlp", "train": {"epochs": 5}}],
            data=[{"name": "digits", "samples": 100}],
            balls=[{"norm": "linf", "eps": [0.01, 0.05]}],
            components=[{"use": "art:pgd"}, {"use": "interval:crown"}],
            store="digits.sqlite",
        ).run()

    From Python the `source` of a model may be an `nn.Module`, and that of data an `rp.Dataset`. Raises an error that
    names the key and what is accepted.
    """

    def __init__(self, **keys: Any) -> None:
        self.configuration: Configuration = _checked(keys, "study")
        self.path: Path | None = None
        """Of the file that it was read from."""

    def __repr__(self) -> str:
        c = self.configuration
        asked = [entry.name or entry.use for entry in (*c.components, *c.explanations)] + [p.name for p in c.poisoning]
        return (
            f"Study({', '.join(m.name for m in c.models)} on {', '.join(d.name for d in c.data)}, "
            f"{sum(len(b.eps) for b in c.balls)} balls, {', '.join(asked)}; {self.store_path})"
        )

    @property
    def folder(self) -> Path:
        """The folder that paths in the study are relative to."""
        return Path() if self.path is None else self.path.parent

    @property
    def store_path(self) -> Path:
        """The file of its records."""
        return self.folder / self.configuration.store

    def run(self, *, retry: bool = False, progress: bool | None = None) -> Outcome:
        """Computes what the store does not have yet, and returns what was done.

        - `retry`: also what was an error or ran out of time before
        - `progress`: a display on standard error, or a line every half minute where that is no terminal; None for one
          where it is a terminal

        Ctrl-C drops the batches that are running and ends the run; the next one goes on from there.
        """
        from robust_plugins.benchmark.checking import refuse_impossible
        from robust_plugins.benchmark.progress import reporting
        from robust_plugins.benchmark.running import run
        from robust_plugins.benchmark.store import Store

        with self._named():
            refuse_impossible(self.configuration)
        shown = sys.stderr.isatty() if progress is None else progress
        with Store(self.store_path, write=True) as store, reporting(shown) as report:
            with self._named():
                subjects = self.subjects(report.say)
            store.remember(self.to_dict(), datetime.now(UTC).isoformat(timespec="seconds"))
            for subject in subjects:
                if subject.training is not None:
                    told = (subject.model, subject.data, subject.model_hash, subject.training.to_dict())
                    store.remember_training(*told)
            return run(
                    self.configuration, subjects, store, folder=self.folder, retry=retry, told=report.told,
                    begun=report.begun,
                )  # fmt: skip

    def subjects(self, say: Callable[[str], None] = lambda text: None, *, train: bool = True) -> Sequence[Any]:
        """Its models with their samples; those that are trained on the fly are, or come from the cache of the store."""
        from robust_plugins.benchmark.subjects import read_subjects

        return read_subjects(self.configuration, self.folder, self.cache, say, train=train)

    def _named(self) -> AbstractContextManager[None]:
        """Errors say which file they are about."""
        from robust_plugins.benchmark.messages import named

        return nullcontext() if self.path is None else named(str(self.path))

    @property
    def cache(self) -> Path:
        """The folder of the weights that were trained on the fly, beside the store."""
        return self.store_path.with_suffix(".models")

    def store(self) -> Store:
        """Its records, to be read."""
        from robust_plugins.benchmark.store import Store

        return Store(self.store_path)

    def frame(self, *names: str, where: Mapping[str, Any] | None = None) -> Any:
        """Its records as a data frame of pandas, or of polars where pandas is not installed.

        `names` are columns of the store, all by default; `where` keeps rows by the values of columns. Raises
        PluginError where neither library is installed.
        """
        with self.store() as store:
            return store.frame(*names, where=where)

    def to_dict(self) -> dict[str, Any]:
        """All that the study says, ready for JSON; a module or data set that was handed over is named by its type."""
        found: dict[str, Any] = self.configuration.model_dump(mode="python")
        for table in ("models", "data"):
            for entry in found[table]:
                if not isinstance(entry["source"], str | None):
                    entry["source"] = f"<{type(entry['source']).__name__}>"
        found["folder"] = os.fspath(self.folder.resolve())
        return found


def load_study(path: str | Path) -> Study:
    """The study that a TOML file describes; paths in it are relative to its folder.

    Raises an error that names the file, the key and what is accepted.
    """
    _check_installed()
    from robust_plugins.benchmark.configuration import read_configuration

    found = Study.__new__(Study)
    found.configuration, found.path = read_configuration(path), Path(path)
    return found


def _checked(keys: Mapping[str, Any], where: str) -> Configuration:
    _check_installed()
    from robust_plugins.benchmark.configuration import checked

    return checked(keys, where)


def _check_installed() -> None:
    lacking = [name for name in ("cloudpickle", "joblib", "pydantic") if find_spec(name) is None]
    if lacking:
        raise PluginError(f'studies need {", ".join(lacking)}; install them: pip install "robust_plugins[bench]"')
