"""`Verdict`, and the records that attacks and certifiers return."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor

from robust_plugins.balls import Ball
from robust_plugins.errors import ArgumentError
from robust_plugins.harness.arguments import as_labels, decided, logits_of
from robust_plugins.harness.call import calling, ordinary
from robust_plugins.harness.result import SampleResult
from robust_plugins.harness.stored import stored
from robust_plugins.harness.wrappers import Model

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@stored
class Verdict(StrEnum):
    """A verdict says what is known about one sample. A failed attack is never a proof, an error never an answer."""

    CERTIFIED = "certified"  # proved: no input of the ball changes the decision
    FALSIFIED = "falsified"  # a witness in the ball is classified otherwise
    UNKNOWN = "unknown"  # the bound is too loose to tell
    TIMEOUT = "timeout"  # stopped before an answer
    ERROR = "error"  # the backend returned NaN, crossed bounds, or bounds that miss the clean logits
    UNSUPPORTED = "unsupported"  # the certifier cannot bound this model


def counted(verdicts: Sequence[Verdict]) -> str:
    """Says how many there are of each verdict, as in `2 certified, 1 unknown`."""
    counts = [f"{verdicts.count(verdict)} {verdict.value}" for verdict in Verdict if verdict in verdicts]
    return ", ".join(counts) or "no verdict"


@dataclass(frozen=True, eq=False)
class AttackResult(SampleResult):
    """The worst inputs that an attack found in the ball, all recomputed by us: the empirical side of the bracket.

    Where no candidate was worse than `x` itself, `x_adv` is `x`. On an accelerator every tensor stays there.

    - `x_adv`: inside the ball around `x` and inside its clip range.
    - `success`: untargeted: the decision on `x_adv` differs from `y`. Targeted: it is the target.
    - `logits`: the model's logits on `x_adv`, in evaluation mode: those before a softmax at its end.
    - `distance`: the distance between `x_adv` and `x` in the ball's norm, in input units.
    - `loss`: cross-entropy on `x_adv` against `y`, which the attack raises; targeted: against the target, which it
      lowers.
    - `seconds`: wall-clock time of the whole call.
    - `seed`: the seed that reproduces this result, also where none was given.
    - `target`: the target classes, or None where the attack was untargeted.
    - `found_by`: of a portfolio: the attack that found each sample's success, `"the input itself"` where nothing had to
      be found, and an empty string where nothing was. None of a single attack.
    - `notes`: what a reader of the successes has to know, in sentences: that the model draws at random, or what a
      portfolio has changed or left out, and why.
    """

    x_adv: Float[Tensor, "batch *features"]
    success: Bool[Tensor, " batch"]
    logits: Float[Tensor, "batch classes"]
    distance: Float[Tensor, " batch"]
    loss: Float[Tensor, " batch"]
    seconds: float
    seed: int
    target: Int[Tensor, " batch"] | None = None
    found_by: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()

    def quantised(
        self,
        model: Model,
        x: Float[Tensor, "batch *features"],
        y: Integer[Tensor, " batch"],
        ball: Ball,
        *,
        levels: int = 256,
    ) -> AttackResult:
        """The result for `x_adv` as a file holds it: rounded to `levels` values of the clip range, and judged again.

        The arguments are those of the attack's call; `model` is left as found. Values are rounded towards `x`, which
        is such a file itself, so that every example stays inside the ball; `success` says which of them survive.
        `x_adv` holds the file's values: for images in [0, 1], `(255 * x_adv).round().byte()` writes them.
        Raises ArgumentError for a ball without a clip range, for an `x` that is no file, and for levels < 2.
        """
        if not isinstance(levels, int) or levels < 2:
            raise ArgumentError("levels", repr(levels), accepted="an integer of at least 2", hint="8 bits have 256.")
        if ball.clip is None:
            raise ArgumentError(
                "ball", "one without a clip range", accepted="one with the range that the file's levels divide",
                hint="Give the range of the inputs, for example clip=(0, 1).",
            )  # fmt: skip
        (low, high), slack = ball.clip, 1e-3
        with calling(model, x, ball, seed=self.seed) as call, torch.no_grad():
            x = call.x.detach()
            start, end = ((levels - 1) * (z.double() - low) / (high - low) for z in (x, self.x_adv))
            own = start.round()
            if bool(((start - own).abs() > slack).any()):
                raise ArgumentError(
                    "x", f"not made of {levels} levels of [{low:g}, {high:g}]", accepted="inputs that a file can hold",
                    hint="Round x itself first, and attack that.",
                )  # fmt: skip
            # A value that is a level already must not lose one to rounding.
            steps = torch.where(end >= own, (end + slack).floor().maximum(own), (end - slack).ceil().minimum(own))
            file = torch.where(steps == own, x, (low + steps * ((high - low) / (levels - 1))).to(x))
            decider, clean = decided(call.model, x)
            labels = as_labels(ordinary(y), x, clean.shape[1]) if self.target is None else self.target
            logits = logits_of(decider, file)
            hit = (logits.argmax(1) == labels) & ~logits.isnan().any(1)
            success = hit if self.target is not None else ~hit & ~logits.isnan().any(1)
            loss = F.cross_entropy(logits, labels, reduction="none")
            found = replace(
                self, x_adv=file, logits=logits, loss=loss, distance=ball.distance(file, x),
                success=success & ball.contains(file, x),
            )  # fmt: skip
        return replace(found, seconds=call.seconds)

    def __repr__(self) -> str:
        """One line; the tensors are in the fields."""
        count, fooled = len(self.success), int(self.success.sum())
        farthest = f", distances up to {self.distance.max():.3g}" if count else ""
        notes = "".join(f"; {note}" for note in self.notes)
        return f"<AttackResult: success on {fooled} of {count} samples{farthest}, {self.seconds:.2g} s{notes}>"

    def plot(self, x: Float[Tensor, "batch *features"] | None = None, *, samples: int = 6) -> Figure:
        """A picture: up to `samples` images, successes first, beside `x` where it is given; or loss against distance.

        Images have the shape (batch, channels, height, width) with 1 or 3 channels. Raises PluginError without
        matplotlib.
        """
        from robust_plugins.decisions.pictures import attack_figure

        decision = self.logits.argmax(1)
        return attack_figure(self.x_adv, self.success, decision, self.distance, self.loss, x, samples)

    def to_records(self) -> list[dict[str, Any]]:
        """For each sample: its success, the decision on `x_adv`, distance and loss; the target, and who found it."""
        columns: dict[str, Any] = {
            "sample": range(len(self.success)),
            "success": self.success.tolist(),
            "decision": self.logits.argmax(1).tolist(),
            "distance": self.distance.tolist(),
            "loss": self.loss.tolist(),
        }
        if self.target is not None:
            columns["target"] = self.target.tolist()
        if self.found_by is not None:
            columns["found_by"] = list(self.found_by)
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


@stored
@dataclass(frozen=True, eq=False)
class Stage:
    """One stage of a cascade: its verdicts on the samples that were left to it, and its time.

    - `name`: of the attack or certifier.
    - `verdicts`: one per sample of the whole batch; None where the sample was decided before it came here. An
      attack that finds nothing says UNKNOWN.
    - `seconds`: wall-clock time.
    - `soundness`: the arithmetic and the assumptions under which its bounds hold; of an attack, that the model
      confirms it.
    """

    name: str
    verdicts: tuple[Verdict | None, ...]
    seconds: float
    soundness: str

    def __repr__(self) -> str:
        """One line."""
        asked = [verdict for verdict in self.verdicts if verdict is not None]
        return f"<Stage {self.name}: {len(asked)} samples, {counted(asked)}, {self.seconds:.2g} s>"


@dataclass(frozen=True, eq=False)
class Certificate(SampleResult):
    """A certificate states, for each sample, what was proved over the ball: the certified side of the bracket.

    It holds for the model in evaluation mode, on the set that `Ball` describes; `soundness` says in which
    arithmetic and under which further assumptions.

    - `verdicts`: one per sample.
    - `margin`: a proved lower bound of `min_j (z_y - z_j)` over the ball, in logits; -inf where nothing is proved.
    - `logits`: the model's logits on `x`, in evaluation mode: those before a softmax at its end. For bounds on what the
      model returns, see `Certifier.bounds`.
    - `certified`: where the verdict is CERTIFIED.
    - `witness`: an input of the ball that is not classified as `y`, where the verdict is FALSIFIED; NaN elsewhere.
    - `messages`: the cause for ERROR, UNSUPPORTED and TIMEOUT verdicts, and for UNKNOWN where one is known; else empty
      strings.
    - `seconds`: wall-clock time of the whole call.
    - `soundness`: the arithmetic and the assumptions under which the bounds hold.
    - `stages`: of a cascade, in the order in which samples went through them; else empty.
    """

    verdicts: tuple[Verdict, ...]
    margin: Float[Tensor, " batch"]
    logits: Float[Tensor, "batch classes"]
    certified: Bool[Tensor, " batch"]
    witness: Float[Tensor, "batch *features"]
    messages: tuple[str, ...]
    seconds: float
    soundness: str
    stages: tuple[Stage, ...] = ()

    def __repr__(self) -> str:
        """One line; the tensors are in the fields."""
        count = len(self.verdicts)
        return f"<Certificate: {count} samples, {counted(self.verdicts)}, {self.seconds:.2g} s>"

    def plot(self) -> Figure:
        """A picture of the proved margins, in the colours of their verdicts. Raises PluginError without matplotlib."""
        from robust_plugins.decisions.pictures import certificate_figure

        return certificate_figure(self.margin, [verdict.value for verdict in self.verdicts])

    def to_records(self) -> list[dict[str, Any]]:
        """For each sample: its verdict, the proved margin, the decision on `x`, and why there is no answer."""
        columns: dict[str, Any] = {
            "sample": range(len(self.verdicts)),
            "verdict": [verdict.value for verdict in self.verdicts],
            "margin": self.margin.tolist(),
            "decision": self.logits.argmax(1).tolist(),
            "message": self.messages,
        }
        if self.stages:
            columns["decided_by"] = self.decided_by
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    @property
    def decided_by(self) -> tuple[str | None, ...]:
        """The name of the stage that decided each sample; `"the model"` where it misclassifies `x` itself, so that no
        stage was asked; None where the sample is open, and for certificates of no cascade.
        """
        answers = (Verdict.CERTIFIED, Verdict.FALSIFIED)

        def by(sample: int) -> str | None:
            if not self.stages or self.verdicts[sample] not in answers:
                return None
            return next((s.name for s in self.stages if s.verdicts[sample] in answers), "the model")

        return tuple(map(by, range(len(self.verdicts))))
