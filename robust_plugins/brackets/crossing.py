"""`Crossing`: a contradiction between an attack and a certificate; and the one search for them, for every question."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from robust_plugins.harness.stored import stored


@stored
@dataclass(frozen=True)
class Crossing:
    """A contradiction: an attack achieved what a certifier proved to be impossible, so one of the two is wrong.

    - `attack`: the name of what achieved it.
    - `certifier`: the name of what proved the opposite.
    - `what`: the quantity, as messages call it: `"the margin"`, `"the accuracy"`, `"the most important feature"`.
    - `achieved`: the value that the attack reached; None where there is none, but what was proved to stay has changed.
    - `proved`: the bound that it passes; None as for `achieved`.
    - `side`: which side was proved: that the quantity is at least, or at most, `proved`.
    - `sample`: the sample; None where the quantity belongs to all of them together, as an accuracy does.
    """

    attack: str
    certifier: str
    what: str
    achieved: float | None
    proved: float | None
    side: Literal["at least", "at most"]
    sample: int | None = None

    def __str__(self) -> str:
        place = "" if self.sample is None else f"sample {self.sample}: "
        if self.achieved is None or self.proved is None:
            return f"{place}{self.attack} changed {self.what}, but {self.certifier} proved that it stays"
        return (
            f"{place}{self.attack} reached {self.achieved:.6g} for {self.what}, "
            f"but {self.certifier} proved {self.side} {self.proved:.6g}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Its fields, ready for JSON: numbers that are not finite are None."""
        return asdict(self) | {"achieved": _finite(self.achieved), "proved": _finite(self.proved)}


def crossings(
    attack: str,
    certifier: str,
    what: str,
    achieved: Float[Tensor, " *batch"] | Bool[Tensor, " *batch"],
    proved: Float[Tensor, " *batch"] | Bool[Tensor, " *batch"],
    *,
    side: Literal["at least", "at most"],
    slack: Float[Tensor, " *batch"] | float = 0.0,
) -> list[Crossing]:
    """Where `achieved` passes `proved`, on the side that was proved, by more than `slack`: one record for each.

    - `achieved`, `proved`: one number per sample, or one for all (no axis). Of flags, True means that something has
      stayed, or is proved to stay, as it is; give them with `side="at least"`.
    - `slack`: how much rounding may account for, at least 0.

    NaN is no number and contradicts nothing; neither does an infinite bound.
    """
    flags = achieved.dtype == torch.bool
    reached, bound = (t.to(torch.float64) for t in (achieved, proved))
    beyond = bound - reached if side == "at least" else reached - bound
    wrong = (beyond > slack) & bound.isfinite()  # false for NaN
    places = wrong.nonzero().flatten().tolist() if wrong.dim() else [None] * int(wrong)
    return [
        Crossing(
            attack,
            certifier,
            what,
            None if flags else (reached if sample is None else reached[sample]).item(),
            None if flags else (bound if sample is None else bound[sample]).item(),
            side,
            sample,
        )
        for sample in places
    ]


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
