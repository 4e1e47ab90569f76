"""`Shown` and `Result`: every result as a data frame, as a table in notebooks, and in a file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn

from robust_plugins.errors import PluginError
from robust_plugins.harness.stored import read, stored, write
from robust_plugins.harness.table import Table

if TYPE_CHECKING:
    import pandas as pd

R = TypeVar("R")

SHOWN = 10
"""So many samples of a batch are shown in notebooks."""


class Shown(ABC):
    """A result offers those who look at it a data frame, and a table in notebooks."""

    @abstractmethod
    def to_records(self) -> list[dict[str, Any]]:
        """A record for each row: numbers, words, and None where there is no answer."""

    @abstractmethod
    def parts(self) -> Sequence[Table | str]:
        """The tables and sentences that it is shown as."""

    def to_frame(self) -> pd.DataFrame:
        """The records as a data frame of pandas. Raises PluginError where pandas is not installed."""
        if find_spec("pandas") is None:
            raise PluginError("a data frame needs pandas; install it: pip install pandas. `to_records` does without it")
        import pandas as pd

        return pd.DataFrame(self.to_records())

    def _repr_html_(self) -> str:
        return "\n".join(
            part.html() if isinstance(part, Table) else f"<p>{escape(part).replace(chr(10), '<br>')}</p>"
            for part in self.parts()
        )


class Result(Shown):
    """A result that can be kept in a file, which holds plain data and arrays: nothing in it is run or unpickled.

    Of a network the file has the weights; reading it needs another network of the same layers to put them into.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        stored(cls)

    def save(self, path: str | Path) -> Path:
        """Writes the result, with all of its tensors, into a file, and returns the path.

        Folders are made; an older result there is replaced. Raises ArgumentError where the file holds something else
        or cannot be written.
        """
        return write(path, self)

    @classmethod
    def load(cls: type[R], path: str | Path, model: nn.Module | None = None) -> R:
        """The result that `save` wrote, its tensors on the CPU. Raises ArgumentError where the file holds none.

        `model`: for results that hold networks, as those of poisoned training do: a network like the one that was
        trained, copies of which get the weights in the file. It is held against the names, kinds and settings of the
        layers in the file, and against the answers that the network gave at some inputs when it was saved.
        """
        found: R = read(path, cls, model)
        return found


class SampleResult(Result):
    """A result of a batch, with a record for each sample."""

    def parts(self) -> list[Table | str]:
        """One line about all samples, and a table of the first ones."""
        return [repr(self), *listed(self.to_records())]


def listed(records: Sequence[Mapping[str, Any]], *, words: int = 0) -> list[Table | str]:
    """A table of the first records, and how many there are more; `words` is that of `Table`."""
    if not records:
        return []
    columns = tuple(records[0])
    rows = tuple(tuple(_cell(record[name]) for name in columns) for record in records[:SHOWN])
    left = len(records) - SHOWN
    more = [f"and {left} more: to_frame() has all"] if left > 0 else []
    return [Table(columns, rows, words=words), *more]


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
