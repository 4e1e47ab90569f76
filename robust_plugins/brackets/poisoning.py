"""`poisoning_bracket`: what attacks achieved against a training, and what is certified of it, side by side."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from io import StringIO
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robust_plugins.errors import ArgumentError
from robust_plugins.harness.progress import reporting
from robust_plugins.poisoning.abstract.loop import Batch
from robust_plugins.poisoning.abstract.run import PoisoningRun
from robust_plugins.poisoning.abstract.settings import Domain
from robust_plugins.poisoning.abstract.training import abstract_gradient_training
from robust_plugins.poisoning.attacks.builtin import CoordinatePoisoning, GradientAlignment, LossAscent, RandomPoisoning
from robust_plugins.poisoning.attacks.interface import PoisonedTrainings, PoisoningAttack, poisoned_trainings
from robust_plugins.poisoning.budget import PoisoningBudget
from robust_plugins.poisoning.concrete.clipping import Clip
from robust_plugins.poisoning.concrete.losses import Loss, Objective, objective
from robust_plugins.poisoning.concrete.optimizers import Optimizer

SLACK = 2**10
"""Units in the last place by which rounding may carry a parameter out of bounds that are not rounded outward."""


@dataclass(frozen=True)
class PoisoningRow:
    """What one attack achieved."""

    attack: str
    trainings: int
    score: float | None
    """The worst accuracy (for regression the largest mean squared error) of its trainings; None without validation."""
    width: float
    """The range that its trainings and the clean one reach in the pushed parameters, summed."""
    outside: float
    """How far a trained parameter lies outside its bounds, beyond rounding; 0 where none does."""
    seconds: float


@dataclass(frozen=True, eq=False)
class PoisoningBracket:
    """The truth about a training lies between what poisoners achieved and what is certified against all of them."""

    run: PoisoningRun
    trainings: tuple[PoisonedTrainings, ...]
    """Of each attack."""
    rows: tuple[PoisoningRow, ...]
    pushed: tuple[int, ...]
    """The entries of theta (all trained parameters, flattened) that attacks tried to move farthest."""
    measure: Literal["accuracy", "mse"]
    nominal: float | None
    """The score without poison; None without validation data."""
    score: tuple[float, float] | None
    """[achieved, certified] accuracy or mean squared error: attacks left the first, and no poison can pass the
    second."""
    width: tuple[float, float]
    """[achieved, certified] width of the pushed parameters' ranges, summed."""
    crossings: tuple[str, ...]
    """Where an attack contradicts a certificate, in words: one of the two is wrong."""

    @property
    def accuracy(self) -> tuple[float, float] | None:
        """`score` of a classification: the worst accuracy that attacks left, and the certified one."""
        return self.score if self.measure == "accuracy" else None

    @property
    def ratio(self) -> float:
        """The part of the certified width that attacks reach: 1 says that bounds cannot be tighter."""
        achieved, certified = self.width
        return 1.0 if achieved == certified else achieved / certified

    def to_dict(self) -> dict[str, Any]:
        """Everything but the trainings, ready for JSON but for infinite numbers."""
        return {
            "budget": asdict(self.run.budget),
            "measure": self.measure,
            "nominal": self.nominal,
            "score": self.score,
            "width": self.width,
            "ratio": self.ratio,
            "pushed": list(self.pushed),
            "crossings": list(self.crossings),
            "attacks": [asdict(row) for row in self.rows],
            "epochs": [asdict(record) for record in self.run.history],
        }

    def __str__(self) -> str:
        from rich import box  # here, so that importing the package stays quick
        from rich.console import Console
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("poison")
        for name in ("trainings", "accuracy" if self.measure == "accuracy" else "MSE", "width", "of certified", "s"):
            table.add_column(name, justify="right")
        table.add_row("none", "1", _number(self.nominal), "0", "", "")
        certified = self.width[1]
        for row in self.rows:
            share = f"{row.width / certified:.1%}" if certified and math.isfinite(certified) else ""
            table.add_row(row.attack, str(row.trainings), _number(row.score), _number(row.width), share,
                          f"{row.seconds:.1f}")  # fmt: skip
        proved = None if self.score is None else self.score[1]
        seconds = sum(record.seconds for record in self.run.history)
        table.add_row("any (certified)", "", _number(proved), _number(certified), "", f"{seconds:.1f}")
        text = StringIO()
        Console(file=text, width=110, force_terminal=False, color_system=None).print(table)
        lines = [line.rstrip() for line in text.getvalue().strip("\n").splitlines()]
        said = [f"CONTRADICTION: {crossing}" for crossing in self.crossings]
        return "\n".join([*lines, *(said or ["No attack contradicts the certificate."])])


def poisoning_bracket(
    model: nn.Module,
    batches: Iterable[Batch],
    budget: PoisoningBudget,
    *,
    loss: Loss,
    optimizer: Optimizer,
    epochs: int,
    clip: float | Clip | None = None,
    domain: Domain = "box",
    parameters: Iterable[str] | None = None,
    validation: Batch | None = None,
    attacks: Sequence[PoisoningAttack] | None = None,
    aggregation: Literal["topk", "cvar"] = "topk",
    rounding: Literal["nearest", "outward"] = "nearest",
    stop_when_vacuous: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> PoisoningBracket:
    """Bounds a training over all poisoned data of the budget, attacks it within the same budget, and compares.

    The arguments are those of `abstract_gradient_training`. `attacks`: None for random poison, ascent of the samples'
    losses, alignment with the gradient of the validation loss, and pushes of the eight parameters with the widest
    bounds. Attacks draw from `seed`. Batches are read once and kept, so that all trainings see the same ones.
    """
    kept = list(batches)
    names = None if parameters is None else list(parameters)
    run = abstract_gradient_training(
        model,
        kept,
        budget,
        loss=loss,
        optimizer=optimizer,
        epochs=epochs,
        clip=clip,
        domain=domain,
        parameters=names,
        aggregation=aggregation,
        rounding=rounding,
        validation=validation,
        stop_when_vacuous=stop_when_vacuous,
        checkpoint=checkpoint,
        progress=progress,
    )
    chosen = standard_attacks(run) if attacks is None else tuple(attacks)
    if not chosen:
        raise ArgumentError("attacks", "none", accepted="at least one attack, or None for the standard ones",
                            hint="abstract_gradient_training gives the certified side alone.")  # fmt: skip
    trainings = []
    with reporting("attacks", total=len(chosen), enabled=progress) as (advance, _):
        for attack in chosen:
            trainings.append(
                poisoned_trainings(
                    attack,
                    model,
                    kept,
                    budget,
                    loss=loss,
                    optimizer=optimizer,
                    epochs=epochs,
                    clip=clip,
                    parameters=list(run.parameters),
                    validation=validation,
                    seed=seed,
                )
            )
            advance()
    return compared(run, trainings, validation)


def standard_attacks(run: PoisoningRun) -> tuple[PoisoningAttack, ...]:
    """Those of `poisoning_bracket`, the last one pushing the widest parameters of the run."""
    widths = torch.cat([p.width.flatten() for p in run.parameters.values()]).nan_to_num(nan=0.0)
    widest = widths.topk(min(8, len(widths))).indices.tolist()
    return (RandomPoisoning(), LossAscent(), GradientAlignment(), CoordinatePoisoning(coordinates=tuple(widest)))


def compared(
    run: PoisoningRun, trainings: Sequence[PoisonedTrainings], validation: Batch | None = None
) -> PoisoningBracket:
    """The bracket of a run and of attacks on the same training."""
    kind = objective(run.loss)
    size = sum(p.lower.numel() for p in run.parameters.values())
    pushing = [t.attack.chosen(size) for t in trainings if isinstance(t.attack, CoordinatePoisoning)]
    pushed = tuple(sorted(set().union(*pushing))) if pushing else tuple(range(size))
    own = dict(run.nominal.named_parameters())
    clean = _flat({name: own[name].detach().unsqueeze(0) for name in run.parameters})
    values = [torch.cat([clean, _flat({n: t.parameters[n] for n in run.parameters})]) for t in trainings]
    nominal = certified = None
    scores: list[float | None] = [None] * len(trainings)
    if validation is not None:
        x, y = (t.to(clean.device) for t in validation)
        with torch.no_grad():
            z = run.nominal(x).unsqueeze(0)
        y = kind.checked(y, z.shape[2])
        nominal = _scored(kind, z, y)[0].item()
        scores = [_worst(kind, _scored(kind, t.outputs(x), y)) for t in trainings]
        certified = run.certified_accuracy(x, y) if kind.classifies else _single(run.worst_loss(x, y))
    rows = tuple(
        PoisoningRow(t.attack.name, len(v) - 1, score, _range(v[:, list(pushed)]), _outside(run, v), t.seconds)
        for t, v, score in zip(trainings, values, scores, strict=True)
    )
    widths = torch.cat([p.width.flatten() for p in run.parameters.values()])[list(pushed)]
    found = [row.score for row in rows if row.score is not None]
    score = None
    if certified is not None and nominal is not None:
        score = ((min if kind.classifies else max)([nominal, *found]), certified)
    return PoisoningBracket(
        run=run,
        trainings=tuple(trainings),
        rows=rows,
        pushed=pushed,
        measure="accuracy" if kind.classifies else "mse",
        nominal=nominal,
        score=score,
        width=(_range(torch.cat(values)[:, list(pushed)]), widths.sum().item()),
        crossings=tuple(_crossings(run, kind, rows, certified)),
    )


def _crossings(run: PoisoningRun, kind: Objective, rows: Sequence[PoisoningRow], certified: float | None) -> list[str]:
    found = []
    for row in rows:
        if row.outside > 0:
            found.append(f"{row.attack} trained a parameter {row.outside:.3g} outside its bounds")
        if certified is None or row.score is None:
            continue
        if kind.classifies and row.score < certified:
            found.append(f"{row.attack} left an accuracy of {row.score:.4g}, certified is {certified:.4g}")
        if not kind.classifies and row.score > certified * (1 + 1e-6):
            found.append(f"{row.attack} reached an MSE of {row.score:.6g}, certified is {certified:.6g}")
    return found


def _outside(run: PoisoningRun, values: Tensor) -> float:
    low = torch.cat([p.lower.flatten() for p in run.parameters.values()])
    up = torch.cat([p.upper.flatten() for p in run.parameters.values()])
    slack: Tensor | float = 0.0
    if run.rounding == "nearest":
        slack = SLACK * torch.finfo(low.dtype).eps * torch.maximum(low.abs(), up.abs()).clamp(min=1)
    out = torch.maximum(low - values, values - up)
    return torch.where(out > slack, out, 0.0).max().item()


def _scored(kind: Objective, z: Tensor, y: Tensor) -> Tensor:
    """The accuracy, or the mean squared error, of each training: z is (trainings, samples, outputs)."""
    if not kind.classifies:
        return torch.stack([kind.losses(own, y).mean() for own in z])
    right = z.argmax(2) == y if kind.pairwise else ((z > 0) == (y > 0)).squeeze(2)
    return right.double().mean(1)


def _worst(kind: Objective, scores: Tensor) -> float:
    worst = scores.min() if kind.classifies else scores.nan_to_num(nan=math.inf).max()
    return worst.item()


def _flat(parameters: dict[str, Tensor]) -> Tensor:
    return torch.cat([p.flatten(1) for p in parameters.values()], 1)


def _range(values: Tensor) -> float:
    return (values.amax(0) - values.amin(0)).sum().item()


def _single(value: float | Tensor) -> float:
    return float(value)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
