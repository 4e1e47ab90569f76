"""`LabelsComparison`: decisions about several labels of each sample, one comparison for each label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from robust_plugins.balls import Ball
from robust_plugins.brackets.ball_names import ball_name
from robust_plugins.brackets.comparison import Comparison, share
from robust_plugins.brackets.components import Components
from robust_plugins.brackets.crossing import Crossing
from robust_plugins.brackets.decisions import compare_decisions
from robust_plugins.brackets.one_ball import OneBall
from robust_plugins.decisions.results import AttackResult
from robust_plugins.errors import ArgumentError
from robust_plugins.harness.bracket import Bracket
from robust_plugins.harness.call import calling, ordinary
from robust_plugins.harness.evaluation import checked_seed
from robust_plugins.harness.final_layer import before_sigmoid, refuse_probabilities
from robust_plugins.harness.pictures import Bar, bars
from robust_plugins.harness.table import Table
from robust_plugins.harness.wrappers import Logits, Model, logits_in

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Label(nn.Module):
    """One of several outputs of a model."""

    def __init__(self, model: nn.Module, place: int) -> None:
        super().__init__()
        self.model, self.place = model, place

    def forward(self, x: Any) -> Any:  # tracing sends stand-ins for tensors
        """One number per sample."""
        return self.model(x)[:, self.place]


@dataclass(frozen=True, eq=False, repr=False)
class LabelsComparison(OneBall):
    """The brackets of the decisions about each label, and of all of them together. Printing it gives the table.

    - `labels`: the comparison of each label: is it decided as it should be, whatever the attack?
    """

    measure: ClassVar[str] = "share of samples with all labels right"

    labels: tuple[Comparison, ...]

    @property
    def ball(self) -> Ball:  # type: ignore[override]
        """The set around each input."""
        return self.labels[0].ball

    @property
    def correct(self) -> Bool[Tensor, " batch"]:
        """Which samples have all labels right, unattacked."""
        return torch.stack([c.correct for c in self.labels]).all(0)

    @property
    def bracket(self) -> Bracket[float]:
        """The share of samples whose labels are all right under attack, and all certified.

        Each label is attacked on its own: an attack on one of them is one on all.
        """
        halves = [None if any(c.bracket[i] is None for c in self.labels) else self._robust(i) for i in (0, 1)]
        return Bracket(*halves)

    @property
    def crossings(self) -> tuple[Crossing, ...]:
        """The contradictions of all labels."""
        return tuple(crossing for c in self.labels for crossing in c.crossings)

    def __getitem__(self, label: int) -> Comparison:
        """The comparison of one label."""
        return self.labels[label]

    def __str__(self) -> str:
        return "\n\n".join(map(str, self.parts()))

    def __repr__(self) -> str:
        """One line; printing gives the table."""
        return f"<LabelsComparison: {ball_name(self.ball)}, {self.subject}; {self.bracket}>"

    @property
    def subject(self) -> str:
        """So many samples, and so many labels."""
        return f"{len(self.labels[0].y)} samples, {len(self.labels)} labels"

    @property
    def band(self) -> Bracket[float]:
        """The bracket of the share of samples whose labels are all right."""
        return self.bracket

    def heights(self) -> list[Bar]:
        """The shares of samples whose labels are all right: unattacked, under all attacks, by all certifiers."""
        attacked, certified = self.bracket
        return [
            Bar("the model", "clean", share(self.correct)), Bar("all attacks", "attacked", attacked),
            Bar("all certifiers", "certified", certified),
        ]  # fmt: skip

    def against(self, other: LabelsComparison) -> tuple[Crossing, ...]:
        """The contradictions between the two balls, label by label."""
        return tuple(
            replace(crossing, what=f"{crossing.what} about label {label}")
            for label, (own, theirs) in enumerate(zip(self.labels, other.labels, strict=True))
            for crossing in own.against(theirs)
        )

    def concluded(self, comparisons: Sequence[LabelsComparison]) -> str:
        """In words: what is known of all labels and of each, ball by ball, and what contradicts what."""
        known = [line for c in comparisons for line in c._known()]
        crossed = [
            f"CONTRADICTION at {f'{ball_name(c.ball)}, ' if len(comparisons) > 1 else ''}label {i}, {crossing}"
            for c in comparisons
            for i, one in enumerate(c.labels)
            for crossing in one.crossings
        ]
        held = any(one.bracket.complete for c in comparisons for one in c.labels)
        verdict = crossed or [f"No attack {'contradicts' if held else 'was held against'} a certificate."]
        return "\n".join([*known, *verdict])

    def plot(self) -> Figure:
        """A picture: the accuracy of each label, by each component. Raises PluginError without matplotlib."""
        rows = []
        for label, c in enumerate(self.labels):
            rows.append(Bar(f"label {label}: the model", "clean", c.clean))
            rows += [Bar(f"label {label}: {row.name}", row.half, row.accuracy, row.interval) for row in c.rows]
        first = self.labels[0]
        return bars(rows, f"accuracy at {ball_name(first.ball)}, {len(first.y)} samples")

    def to_records(self) -> list[dict[str, Any]]:
        """The records of each label's comparison."""
        return [{"label": label} | record for label, c in enumerate(self.labels) for record in c.to_records()]

    def parts(self) -> list[Table | str]:
        """The table, a column for each label, and the conclusion."""
        first = self.labels[0]
        rows = [("the model", "clean", *(f"{c.clean:.3f}" if len(c.y) else "no samples" for c in self.labels))]
        for i, row in enumerate(first.rows):
            rows.append((row.name, row.half, *(c.rows[i].cell for c in self.labels)))
        table = Table(("accuracy of", "is", *(f"label {i}" for i in range(len(self.labels)))), tuple(rows))
        return [table, self.concluded([self])]

    def _known(self) -> list[str]:
        high, low = self.bracket
        ends = [f"{word} {end:.3f}" for word, end in (("at least", low), ("at most", high)) if end is not None]
        all_right = f"all labels stay right for {' and '.join(ends) or 'an unknown share'} of the samples"
        return [f"{ball_name(self.ball)}: {all_right}.", *(f"label {i}: {c.known}." for i, c in enumerate(self.labels))]

    def to_dict(self) -> dict[str, Any]:
        """Everything but the tensors, ready for JSON."""
        return {"bracket": self.bracket.to_dict(), "labels": [c.to_dict() for c in self.labels]}

    def _robust(self, half: int) -> float | None:
        stays = torch.ones_like(self.correct)
        for c in self.labels:
            resisted, certified = c.correct.clone(), torch.zeros_like(c.correct)
            for row in c.rows:
                if isinstance(row.result, AttackResult):
                    resisted &= ~row.result.success
                elif row.result is not None:
                    certified |= row.result.certified
            stays &= certified if half else resisted
        return share(stays)


def compare_labels(
    model: Model,
    x: Float[Tensor, "batch *features"],
    y: Tensor | None,
    ball: Ball,
    components: Components,
    *,
    seed: int | None = None,
    progress: bool = False,
) -> LabelsComparison:
    """Does what `compare` says of `task="labels"`."""
    with torch.no_grad(), calling(model, x, ball) as call:
        module: nn.Module = call.model
        out = module(call.x[:1].clone() if len(x) else call.x.clone())
        if (found := logits_in(out)) is not out:
            module, out = Logits(module), found
        if isinstance(out, Tensor):
            before = before_sigmoid(module, call.x[:1], out)
            if before is None:
                refuse_probabilities(module, call.x[:1], out)
            module = before or module
    shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
    labels = None if y is None else ordinary(y)
    right = labels is not None and isinstance(out, Tensor) and out.dim() == 2 and labels.shape == (len(x), out.shape[1])
    if labels is None or not right or not bool(((labels == 0) | (labels == 1)).all()):
        raise ArgumentError(
            "y", "None" if y is None else f"of shape {tuple(y.shape)}, for outputs of shape {shape}",
            accepted="0 or 1 for every sample and label, of the shape of the model's logits (batch, labels)",
            hint="A label is decided to be there where its logit is above 0.",
        )  # fmt: skip
    seed = checked_seed(seed)
    return LabelsComparison(
        tuple(
            compare_decisions(Label(module, i), x, labels[:, i].long(), ball, components, seed=seed, progress=progress)
            for i in range(labels.shape[1])
        )
    )
