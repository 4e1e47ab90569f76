"""Which samples a certifier has no answer for, and how that is said: never by a number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

from robust_plugins.decisions.results import Verdict

NO_ANSWER = (Verdict.UNSUPPORTED, Verdict.TIMEOUT, Verdict.ERROR)
"""The verdicts that are no answer. UNKNOWN is one: the certifier has bounds, and they are too loose to tell."""


def verdict_counts(verdicts: Iterable[Verdict]) -> dict[str, int]:
    """How often each verdict occurs, in the order of first occurrence."""
    return {verdict.value: count for verdict, count in Counter(verdicts).items()}


def gaps(verdicts: Iterable[Verdict], *, counted: bool) -> str:
    """The verdicts that are no answer, in words for a cell; empty for none.

    With `counted` how many samples each has: `"2 timeout, 1 error"`; else their names alone, `"timeout, error"`.
    """
    counts = Counter(verdict for verdict in verdicts if verdict in NO_ANSWER)
    return ", ".join(f"{count} {verdict.value}" if counted else verdict.value for verdict, count in counts.items())


def causes(verdicts: Sequence[Verdict], messages: Sequence[str]) -> list[str]:
    """One sentence for each cause for which samples have no answer: the verdict, how many samples, and the message."""
    counts = Counter((v, m) for v, m in zip(verdicts, messages, strict=True) if v in NO_ANSWER)
    return [
        f"{verdict.value} on {count} of {len(verdicts)} samples{f': {message}' if message else ''}"
        for (verdict, message), count in counts.items()
    ]


def gathered(missing: Iterable[tuple[str, str]]) -> list[str]:
    """A line for each cause, behind the names of all components that have it."""
    names: dict[str, dict[str, None]] = {}
    for name, cause in missing:
        names.setdefault(cause, {})[name] = None
    return [f"{', '.join(found)}: {cause}" for cause, found in names.items()]


def silence(kind: Literal["attack", "certifier"], ran: int) -> str:
    """Why one half of a bracket is missing, where `ran` components of that kind were run."""
    return f"no {kind} has an answer" if ran else f"no {kind} ran"


def closing(crossings: Sequence[str], held: bool, subject: str = "a certificate") -> list[str]:
    """The last sentences of a conclusion: the contradictions; that there is none; or that nothing was held together."""
    if crossings:
        return [f"CONTRADICTION {crossing}" for crossing in crossings]
    return [f"No attack {'contradicts' if held else 'was held against'} {subject}."]
