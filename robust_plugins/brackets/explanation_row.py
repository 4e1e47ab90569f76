"""`ExplanationRow`: what one component found of the explanations of a batch, and the figures that tables show of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from robust_plugins.brackets.answers import causes, gaps
from robust_plugins.explanations import ExplanationAttackResult, ExplanationCertificate
from robust_plugins.harness.stored import stored
from robust_plugins.registry.information import Kind


@stored
@dataclass(frozen=True, eq=False, repr=False)
class ExplanationRow:
    """The answer of one component on all samples, an end of the bracket for each, or why it has none.

    - `name`: the component's name.
    - `kind`: explanation attack or explanation certifier.
    - `deviation`: the relative deviation that was reached, or that is proved to be the largest.
    - `keeps_top_1`: whether the most important feature has withstood, or is proved to stay the most important one.
    - `keeps_top_k`: the same for the set of the k most important features.
    - `robust`: whether every feature's width was, or is proved to be, at most delta. None also where no delta was
      given.
    - `results`: one for each goal of an attack: deviation, top-1, top-k. One for a certifier.
    - `seconds`: wall-clock time of this one run, loading and warming up included: too noisy to compare components
      by.
    - `error`: what a component raised, in words, with file and line.
    - `exception`: what a component raised, with its traceback; files do not keep it.

    An attack's are what happened, a certifier's what is proved; None where the component failed or has no answer for
    any sample. Where a certifier lacks one for some samples, their deviation is infinite and nothing is proved of them.
    """

    name: str
    kind: Kind
    deviation: Float[Tensor, " batch"] | None
    keeps_top_1: Bool[Tensor, " batch"] | None
    keeps_top_k: Bool[Tensor, " batch"] | None
    robust: Bool[Tensor, " batch"] | None
    results: tuple[ExplanationAttackResult | ExplanationCertificate, ...]
    seconds: float
    error: str = ""
    exception: BaseException | None = field(default=None, metadata={"stored": False})

    def __repr__(self) -> str:
        """One line."""
        cells = dict(zip(("deviation", "top 1 kept", "top k kept", "robust"), self.cells, strict=True))
        figures = ", ".join(f"{title} {cell}" for title, cell in cells.items() if cell)
        return f"<ExplanationRow {self.name}: {self.said}, {figures}>"

    @property
    def said(self) -> Literal["attacked", "certified"]:
        """The word for the figures: they were found by attacking, or they are certified."""
        return "attacked" if self.kind is Kind.EXPLANATION_ATTACK else "certified"

    @property
    def causes(self) -> tuple[str, ...]:
        """Why there is no answer, or none for some samples, and a certifier's advice: a sentence for each."""
        if self.error:
            return (f"failed: {self.error}",)
        certificates = [result for result in self.results if isinstance(result, ExplanationCertificate)]
        found = [cause for c in certificates for cause in causes(c.verdicts, c.messages)]
        found += [c.advice for c in certificates if c.advice]
        undefined = self.results[0].deviation.isnan() if not certificates and self.results else torch.zeros(0)
        if bool(undefined.any()):
            found.append(f"undefined on {int(undefined.sum())} of {len(undefined)} samples: their explanation is NaN")
        return tuple(found)

    @property
    def cells(self) -> tuple[str, ...]:
        """The figures as tables have them; in words where there is no answer, which the first cell then says."""
        verdicts = [v for r in self.results if isinstance(r, ExplanationCertificate) for v in r.verdicts]
        if self.deviation is None or self.keeps_top_1 is None or self.keeps_top_k is None:
            return ("failed" if self.error else gaps(verdicts, counted=False) or "undefined", "", "", "")
        missing = gaps(verdicts, counted=True)
        typical = figure(self.deviation, attacked=self.kind is Kind.EXPLANATION_ATTACK)
        shares = ["" if flags is None else f"{share(flags):.3f}" for flags in self._statements()]
        return (f"{typical} ({missing})" if missing else typical, *shares)

    def _statements(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        return self.keeps_top_1, self.keeps_top_k, self.robust


def figure(deviation: Tensor, *, attacked: bool) -> str:
    """The median in words where it is no number: nothing was proved, or the explanation at x is 0 and has moved."""
    median = deviation.nanmedian().item()  # NaN where the explanation at x is: counted among the causes
    if math.isinf(median):
        return "infinite" if attacked else "unbounded"
    return f"{median:.4f}"


def share(flags: Tensor) -> float:
    """The share of samples for which the flags are set."""
    return flags.double().mean().item()
