"""`judged`: from what a certifier found out about the margins of some samples to their verdicts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn

from robust_plugins.balls import Ball
from robust_plugins.decisions.results import Stage, Verdict
from robust_plugins.harness.arguments import logits_of
from robust_plugins.harness.component import ERRORS
from robust_plugins.harness.evaluation import NEIGHBOURS, evaluation_error
from robust_plugins.intervals import Interval


@dataclass(frozen=True, eq=False)
class Decision:
    """A decision holds all that a certifier found out about the margins of some samples; the public call judges it.

    - `bounds`: on every margin, (batch, rows).
    - `witness`: inputs that may be classified otherwise, NaN for none: each is projected onto the ball, and run.
    - `stopped`: which samples were given up before there was an answer; empty for none.
    - `messages`: why there is no answer, one for each sample; empty for none.
    - `settled`: samples that another certifier's public call has certified: from their bounds its rounding is taken
      off already, and none is taken off again.
    - `undecided`: the verdict on each sample that bounds and witness do not decide; empty for UNKNOWN, or TIMEOUT
      where stopped.
    - `stages`: the record of a cascade.
    """

    bounds: Interval
    witness: Float[Tensor, "batch *features"] | None = None
    stopped: tuple[bool, ...] = ()
    messages: tuple[str, ...] = ()
    settled: Bool[Tensor, " batch"] | None = None
    undecided: tuple[Verdict, ...] = ()
    stages: tuple[Stage, ...] = ()


class Judgement(NamedTuple):
    """The judgement of some samples.

    - `margin`: the least margin that is proved of each.
    - `verdicts`: one of each.
    - `messages`: why there is no answer, else empty.
    - `witness`: the input that falsifies; of samples that are not falsified any input.
    - `stages`: what a cascade's members said.
    """

    margin: Float[Tensor, " batch"]
    verdicts: list[Verdict]
    messages: list[str]
    witness: Float[Tensor, "batch *features"]
    stages: tuple[Stage, ...] = ()


@dataclass(frozen=True, eq=False)
class Asked:
    """Some samples, and what is asked of them: that the `spec` rows of their logits are positive over the ball.

    - `model`: from inputs to logits, in evaluation mode; `logits` are its at `x`.
    - `size`: how many samples may go through it at a time; None for all.
    """

    model: nn.Module
    x: Float[Tensor, "batch *features"]
    y: Integer[Tensor, " batch"]
    ball: Ball
    spec: Float[Tensor, "batch rows classes"]
    logits: Float[Tensor, "batch classes"]
    size: int | None

    @property
    def wrong(self) -> Bool[Tensor, " batch"]:
        """Which samples the model misclassifies as they are; NaN is no decision."""
        return (self.logits.argmax(1) != self.y) & ~self.logits.isnan().any(1)


def unsupported(asked: Asked, why: str) -> Judgement:
    """The judgement of a model that a certifier cannot bound."""
    wrong = asked.wrong.tolist()
    verdicts = [Verdict.FALSIFIED if w else Verdict.UNSUPPORTED for w in wrong]
    return Judgement(
        torch.full_like(asked.logits[:, 0], -torch.inf), verdicts, ["" if w else why for w in wrong], asked.x
    )


def judged(asked: Asked, decision: Decision, *, rounding: float) -> Judgement:
    """Holds `decision` against the model, and says what it is worth for each sample.

    `rounding` is that of the certifier, see `Certifier.rounding`.
    """
    found, wrong = decision.bounds, asked.wrong
    broken, witness = _witnesses(asked, decision.witness)
    clean = (asked.spec @ asked.logits.unsqueeze(2)).squeeze(2)
    # An infinite bound, as of a certifier that gives one side alone, has no scale.
    size = [t.abs().nan_to_num(posinf=0.0).amax(1) for t in (found.lower, found.upper, asked.logits)]
    slack = (rounding * torch.stack(size).amax(0)).unsqueeze(1)
    faults = _faults(found, clean, slack)
    if rounding:
        # More room proves nothing more, and excuses only what is at fault: the other samples need no second look.
        near = torch.stack([(found.lower > slack).all(1), *faults.values()]).any(0)
        errors = evaluation_error(asked.model, asked.x, asked.logits, where=near, neighbours=NEIGHBOURS)
        slack = slack + ERRORS * errors.unsqueeze(1)
        faults = _faults(found, clean, slack)
    least = slack if decision.settled is None else torch.where(decision.settled.unsqueeze(1), 0.0, slack)
    proved = (found.lower > least).all(1)
    faults["a witness contradicts the bounds"] = proved & broken
    causes = [(text, where.tolist()) for text, where in faults.items()]
    messages = [next((text for text, at in causes if at[i]), "") for i in range(len(asked.x))]
    margin = torch.where(torch.stack(list(faults.values())).any(0), -torch.inf, found.lower.amin(1))
    verdicts = []
    for i, (fault, p, b) in enumerate(zip(messages, proved.tolist(), (wrong | broken).tolist(), strict=True)):
        if fault:
            verdicts.append(Verdict.ERROR)
        elif b:
            verdicts.append(Verdict.FALSIFIED)
        elif p:
            verdicts.append(Verdict.CERTIFIED)
        else:
            stopped = bool(decision.stopped) and decision.stopped[i]
            open_verdict = Verdict.TIMEOUT if stopped else Verdict.UNKNOWN
            verdicts.append(decision.undecided[i] if decision.undecided else open_verdict)
            messages[i] = decision.messages[i] if decision.messages else ""
    itself = wrong.view(-1, *[1] * (asked.x.dim() - 1))
    return Judgement(margin, verdicts, messages, torch.where(itself, asked.x, witness), decision.stages)


def _witnesses(asked: Asked, given: Tensor | None) -> tuple[Tensor, Tensor]:
    """Which samples have a witness that the model confirms, and all witnesses as they lie in the ball."""
    x = asked.x
    if given is None:
        return torch.zeros(len(x), dtype=torch.bool, device=x.device), x
    there = given.isfinite().flatten(1).all(1)
    witness = asked.ball.project(torch.where(there.view(-1, *[1] * (x.dim() - 1)), given, x), x)
    logits = logits_of(asked.model, witness, size=asked.size)
    return there & (logits.argmax(1) != asked.y) & ~logits.isnan().any(1), witness


def _faults(found: Interval, clean: Tensor, slack: Tensor) -> dict[str, Tensor]:
    """Says what is wrong, and where, with bounds on margins that are `clean` at the sample, by more than `slack`."""
    return {
        "the bounds are NaN": (found.lower.isnan() | found.upper.isnan()).any(1),
        "the bounds cross: lower > upper": ~found.ordered().logical_or(found.width.abs() <= slack).all(1),
        "the bounds do not contain the logits of x itself": ~found.contains(clean, tolerance=0)
        .logical_or((found.lower - slack <= clean) & (clean <= found.upper + slack))
        .all(1),
    }
