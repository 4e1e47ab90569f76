"""`Bracket`: what an attack achieved and what a certifier proved of one quantity, always in this order."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from torch import Tensor

T = TypeVar("T")


class Bracket(tuple[T | None, T | None], Generic[T]):
    """The pair of answers between which the truth about one quantity lies.

    It unpacks as `empirical, certified = bracket`. A half is None where nothing has answered for it: no component
    ran, or those that ran failed or could not treat the model. None is never a number, so check it before arithmetic.

    >>> empirical, certified = rp.Bracket(0.25, 0.5)
    >>> rp.Bracket(0.25, None).complete
    False
    """

    # A tuple by hand: run-time type checkers do not know generic named tuples.
    __slots__ = ()

    def __new__(cls, empirical: T | None, certified: T | None) -> Bracket[T]:
        """The two halves, empirical first."""
        return super().__new__(cls, (empirical, certified))

    def __getnewargs__(self) -> tuple[T | None, T | None]:
        return self.empirical, self.certified

    @property
    def empirical(self) -> T | None:
        """The value that attacks achieved: the truth is at least as bad."""
        return self[0]

    @property
    def certified(self) -> T | None:
        """The value that certifiers proved: the truth is at most as bad."""
        return self[1]

    @property
    def complete(self) -> bool:
        """Whether both halves have an answer."""
        return self.empirical is not None and self.certified is not None

    def to_dict(self) -> dict[str, T | None]:
        """The halves by their names, as JSON has them."""
        return {"empirical": self.empirical, "certified": self.certified}

    def __repr__(self) -> str:
        return f"Bracket(empirical={_short(self.empirical)}, certified={_short(self.certified)})"


def _short(half: Any) -> str:
    """A number as it is printed in tables; of many numbers their range, as a notebook has no room for all."""
    if isinstance(half, Tensor):
        if half.numel() == 0:
            return f"<no values, shape {tuple(half.shape)}>"
        if half.numel() > 1:
            low, high = half.min().item(), half.max().item()
            return f"<{half.numel()} values from {low:.4g} to {high:.4g}>"
        half = half.item()
    return f"{half:.4g}" if isinstance(half, float) else repr(half)
