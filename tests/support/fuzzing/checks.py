"""What is asked of a certifier on a case: the fuzzer's findings."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

import robust_plugins as rp
from robust_plugins.decisions.certifiers import AlphaCROWN
from support.fuzzing.drawing import Case
from support.fuzzing.reaching import ERRORS, Reached, outside
from support.fuzzing.traces import changed, snapshot


@dataclass(frozen=True)
class Violation:
    """Something that a component does and must not."""

    component: str
    kind: str
    detail: str
    seed: int
    """Of the ball."""


@dataclass(frozen=True)
class Outcome:
    """What became of one component on one case."""

    bounded: bool
    violations: tuple[Violation, ...]
    message: str = ""
    """Why it was refused."""


REFUSALS = (rp.UnsupportedModelError, rp.ArgumentError)


def check_certifier(
    name: str, certifier: rp.Certifier, cases: Sequence[tuple[Case, Reached]], *, full: bool = True
) -> Outcome:
    """Compares bounds, certificate, single samples and a wider ball with what was reached, on one model's cases.

    Without `full`, bounds and certificate alone.
    """
    model = cases[0][0].written.model()
    found: dict[str, Violation] = {}
    bounded, message = False, ""
    for case, reached in cases:
        before, x = snapshot(model), case.x.clone()
        try:
            for kind, detail in _findings(certifier, model, x, case, reached, full=full):
                bounded = True
                if kind:
                    found.setdefault(kind, Violation(name, kind, detail, case.seed))
        except REFUSALS as error:
            message = str(error)
        except Exception as error:  # which no caller should meet
            found.setdefault("raises", Violation(name, "raises", place_of(error), case.seed))
        if not torch.equal(x, case.x):
            found.setdefault("changes x", Violation(name, "changes x", "x is not what it was", case.seed))
        if trace := changed(before, model, writes="writes" in case.written.flags):
            found.setdefault("leaves a trace", Violation(name, "leaves a trace", trace, case.seed))
            model = case.written.model()
    return Outcome(bounded, tuple(found.values()), message)


def place_of(error: Exception) -> str:
    place = traceback.extract_tb(error.__traceback__)[-1]
    text = f"{type(error).__name__}: {str(error)[:300]}"
    return f"{text} ({place.filename.rsplit('/', 1)[-1]}:{place.lineno})"


def _findings(
    certifier: rp.Certifier, model: torch.nn.Module, x: torch.Tensor, case: Case, reached: Reached, *, full: bool
) -> Iterator[tuple[str, str]]:
    relative, classes = certifier.rounding, case.classes
    with torch.no_grad():
        logits = certifier.bounds(model, x, case.ball)
        yield "", ""
        yield from _left(logits, reached, slice(classes), relative, "bounds")
        rows = certifier.bounds(model, x, case.ball, case.spec)
        yield from _left(rows, reached, slice(classes, None), relative, "bounds of rows")
        yield from _certified(certifier, model, x, case, reached)
        if not full:
            return
        # Adam's steps have the size of its rate where a slope is all but 0, with the sign that rounding gives it.
        same = 0.05 if getattr(certifier, "method", "") == "alpha-CROWN" else 1e-3
        if isinstance(certifier, AlphaCROWN):
            same = 0.02
        for i in range(len(x) if "batch" in case.written.flags else 1):
            alone = certifier.bounds(model, x[i : i + 1], case.ball[i : i + 1])
            for one, many in ((alone.lower[0], logits.lower[i]), (alone.upper[0], logits.upper[i])):
                width = logits.width[i].double()
                allowed = same * width + 4e-6 * (1 if x.dtype == torch.float32 else 1e-5) * logits.magnitude[i].double()
                off = (one - many).double().abs() - allowed - ERRORS * reached.noise[i, :classes]
                if bool((off > 0).any()):
                    yield "depends on the batch", f"sample {i} alone: {alone}, with the others: {logits[i : i + 1]}"
        wide = replace(case.ball, eps=3 * torch.tensor(case.ball.eps))
        wider = certifier.bounds(model, x, wide)
        yield from _left(wider, reached, slice(classes), relative, "bounds of the wider ball")


def _left(bounds: rp.Interval, reached: Reached, rows: slice, relative: float, what: str) -> Iterator[tuple[str, str]]:
    part = replace(
        reached, lower=reached.lower[:, rows], upper=reached.upper[:, rows], own_lower=reached.own_lower[:, rows],
        own_upper=reached.own_upper[:, rows], noise=reached.noise[:, rows],
    )  # fmt: skip
    excess = outside(part, bounds, relative=relative)
    if bool((excess > 0).any()):
        sample, row = divmod(int(excess.argmax()), excess.shape[1])
        low, high = bounds.lower[sample, row].item(), bounds.upper[sample, row].item()
        least, most = part.lower[sample, row].item(), part.upper[sample, row].item()
        yield (
            what,
            (
                f"sample {sample}, row {row}: [{low:.9g}, {high:.9g}] but [{least:.9g}, {most:.9g}] was reached, "
                f"{excess.max():.3g} of the width outside"
            ),
        )


def _certified(
    certifier: rp.Certifier, model: torch.nn.Module, x: torch.Tensor, case: Case, reached: Reached
) -> Iterator[tuple[str, str]]:
    certificate = certifier(model, x, case.y, case.ball)
    margins = slice(case.classes + 2, None)
    real, own = reached.lower[:, margins].amin(1), reached.own_lower[:, margins].amin(1)
    tolerance = 1e-13 * reached.scale
    for i, verdict in enumerate(certificate.verdicts):
        if verdict is rp.Verdict.ERROR:
            yield "error", f"sample {i}: {certificate.messages[i]}"
        if verdict is rp.Verdict.CERTIFIED and bool((torch.minimum(real, own) < -tolerance)[i]):
            yield (
                "certified and broken",
                (
                    f"sample {i}: margin {certificate.margin[i].item():.9g} proved, {real[i].item():.9g} reached "
                    f"({own[i].item():.9g} in {x.dtype})"
                ),
            )
