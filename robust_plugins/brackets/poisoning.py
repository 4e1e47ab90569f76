"""`poisoning_bracket`: a training bounded over all poisoned data, attacked within the same budget, and compared."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from robust_plugins.brackets.crossing import Crossing, crossings
from robust_plugins.brackets.poisoning_comparison import PoisoningBracket, PoisoningRow
from robust_plugins.errors import ArgumentError
from robust_plugins.harness.bracket import Bracket
from robust_plugins.harness.progress import reporting
from robust_plugins.poisoning.abstract.run import PoisoningRun
from robust_plugins.poisoning.abstract.settings import Domain
from robust_plugins.poisoning.abstract.training import abstract_gradient_training
from robust_plugins.poisoning.attacks.builtin import CoordinatePoisoning, GradientAlignment, LossAscent, RandomPoisoning
from robust_plugins.poisoning.attacks.interface import PoisonedTrainings, PoisoningAttack
from robust_plugins.poisoning.attacks.registered import poisoning_attack
from robust_plugins.poisoning.box.sample_gradients import Dependence
from robust_plugins.poisoning.box.sums.aggregation import MEMORY, Method
from robust_plugins.poisoning.budget import Count, PoisoningBudget
from robust_plugins.poisoning.concrete.clipping import Clip, as_clip
from robust_plugins.poisoning.concrete.losses import Loss, Objective, objective
from robust_plugins.poisoning.concrete.optimizers import Optimizer
from robust_plugins.poisoning.concrete.reading import Reader

Attacks = Sequence[str | PoisoningAttack] | Mapping[str, PoisoningAttack]

SLACK = 2**10
"""Units in the last place by which rounding may carry a parameter out of bounds that are not rounded outward."""


def poisoning_bracket(
    model: nn.Module,
    batches: Iterable[Any],
    budget: PoisoningBudget,
    *,
    loss: Loss,
    optimizer: Optimizer,
    epochs: Count,
    clip_gradient: float | Clip | None = None,
    domain: Domain = "box",
    parameters: Iterable[str] | None = None,
    relaxation: Dependence | Literal["auto"] = "auto",
    aggregation: Method = "topk",
    memory: int = MEMORY,
    group: dist.ProcessGroup | None = None,
    rounding: Literal["nearest", "outward"] = "nearest",
    validation: Any | None = None,
    stop_when_vacuous: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    attacks: Attacks | None = None,
    seed: int = 0,
    progress: bool = True,
    clip: float | Clip | None = None,
) -> PoisoningBracket:
    """Bounds a training over all poisoned data of the budget, attacks it within the same budget, and compares.

    The other arguments are those of `abstract_gradient_training`. Batches are read once and kept, so that all trainings
    see the same ones.

    - `attacks`: registered names (`"poison:random(count=20)"`), attacks, or a mapping of labels to attacks; None for
      random poison, ascent of the samples' losses, alignment with the gradient of the validation loss, and pushes of
      the eight parameters with the widest bounds.
    - `seed`: the attacks draw from it.
    - `group`: every process attacks the whole batches, which are gathered from all of them.

    Raises ComponentError, with the attack's name, for an attack that leaves the budget: that contradicts no
    certificate.
    """
    chosen = None if attacks is None else _named(attacks)
    clipping = as_clip(clip_gradient, clip)
    kept = _kept(batches)
    names = None if parameters is None else [parameters] if isinstance(parameters, str) else list(parameters)
    run = abstract_gradient_training(
        model,
        kept,
        budget,
        loss=loss,
        optimizer=optimizer,
        epochs=epochs,
        clip_gradient=clipping,
        domain=domain,
        parameters=names,
        relaxation=relaxation,
        aggregation=aggregation,
        memory=memory,
        group=group,
        rounding=rounding,
        validation=validation,
        stop_when_vacuous=stop_when_vacuous,
        checkpoint=checkpoint,
        progress=progress,
    )
    if chosen is None:
        chosen = {attack.name: attack for attack in standard_attacks(run)}
    whole = kept if group is None else _gathered(kept, group)
    trainings = []
    with reporting("attacks", total=len(chosen), enabled=progress) as (advance, _):
        for attack in chosen.values():
            trainings.append(
                attack(
                    model,
                    whole,
                    budget,
                    loss=loss,
                    optimizer=optimizer,
                    epochs=epochs,
                    clip_gradient=clipping,
                    parameters=list(run.parameters),
                    validation=validation,
                    seed=seed,
                )
            )
            advance()
    return compared(run, trainings, validation, labels=list(chosen))


def _named(attacks: Attacks) -> dict[str, PoisoningAttack]:
    """The attacks by the labels of their rows."""
    if isinstance(attacks, str | PoisoningAttack):
        attacks = [attacks]
    found: dict[str, PoisoningAttack] = {}
    given = attacks.items() if isinstance(attacks, Mapping) else [(None, attack) for attack in attacks]
    for label, attack in given:
        built = poisoning_attack(attack) if isinstance(attack, str) else attack
        if not isinstance(built, PoisoningAttack):
            raise ArgumentError("attacks", repr(attack), accepted="rp.PoisoningAttack, or the name of a registered one",
                                hint="rp.poisoning_attacks() lists them.")  # fmt: skip
        title = label or (attack if isinstance(attack, str) else built.name)
        while title in found:
            title += "'"  # the same attack with other parameters has a row of its own
        found[title] = built
    if not found:
        raise ArgumentError("attacks", "none", accepted="at least one attack, or None for the standard ones",
                            hint="abstract_gradient_training gives the certified side alone.")  # fmt: skip
    return found


def _kept(batches: Iterable[Any]) -> list[Any]:
    """All batches, read once. Raises ArgumentError for what shuffles, or is no iterable."""
    Reader.check_source(batches)
    return list(batches)


def _gathered(batches: list[Any], group: dist.ProcessGroup) -> list[tuple[Tensor, Tensor]]:
    """The batches of which every process holds a part, in the order of the processes."""
    parts: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(parts, batches, group=group)
    pairs = [[(torch.as_tensor(x), torch.as_tensor(y)) for x, y in own] for own in parts]
    return [(torch.cat([x for x, _ in same]), torch.cat([y for _, y in same])) for same in zip(*pairs, strict=True)]


def standard_attacks(run: PoisoningRun) -> tuple[PoisoningAttack, ...]:
    """Those of `poisoning_bracket`, the last one pushing the widest parameters of the run."""
    widths = torch.cat([p.width.flatten() for p in run.parameters.values()]).nan_to_num(nan=0.0)
    widest = widths.topk(min(8, len(widths))).indices.tolist()
    return (RandomPoisoning(), LossAscent(), GradientAlignment(), CoordinatePoisoning(coordinates=tuple(widest)))


def compared(
    run: PoisoningRun,
    trainings: Sequence[PoisonedTrainings],
    validation: Any | None = None,
    *,
    labels: Sequence[str] | None = None,
) -> PoisoningBracket:
    """The bracket of a run and of attacks on the same training, within the same budget; `labels` name their rows."""
    kind = objective(run.loss)
    for t in trainings:
        if t.budget != run.budget:
            raise ArgumentError("trainings", f"of {t.attack.name!r} within {t.budget}", accepted=f"{run.budget}",
                                hint="Attack within the budget of the run.")  # fmt: skip
    titles = [t.attack.name for t in trainings] if labels is None else list(labels)
    size = sum(p.lower.numel() for p in run.parameters.values())
    pushing = [t.attack.chosen(size) for t in trainings if isinstance(t.attack, CoordinatePoisoning)]
    pushed = tuple(sorted(set().union(*pushing))) if pushing else tuple(range(size))
    own = dict(run.nominal.named_parameters())
    clean = _flat({name: own[name].detach().unsqueeze(0) for name in run.parameters})
    values = [torch.cat([clean, _flat({n: t.parameters[n] for n in run.parameters})]) for t in trainings]
    nominal = certified = None
    scores: list[float | None] = [None] * len(trainings)
    if validation is not None:
        x, y = Reader([], run.nominal, kind).checked(validation, "the samples", "validation")
        with torch.no_grad():
            z = run.nominal(x).unsqueeze(0)
        nominal = _scored(kind, z, y)[0].item()
        scores = [_worst(kind, _scored(kind, t.outputs(x), y)) for t in trainings]
        certified = run.certified_accuracy(x, y) if kind.classifies else _single(run.worst_loss(x, y))
    rows = tuple(
        PoisoningRow(title, len(v) - 1, score, _range(v[:, list(pushed)]), _outside(run, v), t.seconds)
        for title, t, v, score in zip(titles, trainings, values, scores, strict=True)
    )
    widths = torch.cat([p.width.flatten() for p in run.parameters.values()])[list(pushed)]
    found = [row.score for row in rows if row.score is not None]
    score = None
    if certified is not None and nominal is not None:
        score = Bracket((min if kind.classifies else max)([nominal, *found]), certified)
    return PoisoningBracket(
        run=run,
        trainings=tuple(trainings),
        rows=rows,
        pushed=pushed,
        measure="accuracy" if kind.classifies else "mse",
        nominal=nominal,
        score=score,
        width=Bracket(_range(torch.cat(values)[:, list(pushed)]), widths.sum().item()),
        crossings=tuple(_crossings(kind, rows, certified)),
    )


CERTIFIER = "abstract gradient training"


def _crossings(kind: Objective, rows: Sequence[PoisoningRow], certified: float | None) -> list[Crossing]:
    found = []
    for row in rows:
        what = "the distance of a parameter from its bounds"
        found += crossings(row.attack, CERTIFIER, what, _tensor(row.outside), _tensor(0.0), side="at most")
        if certified is None or row.score is None:
            continue
        slack = 0.0 if kind.classifies else 1e-6 * certified if math.isfinite(certified) else 0.0
        found += crossings(row.attack, CERTIFIER, "the accuracy" if kind.classifies else "the mean squared error",
                           _tensor(row.score), _tensor(certified), slack=slack,
                           side="at least" if kind.classifies else "at most")  # fmt: skip
    return found


def _tensor(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


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
    return torch.cat([p.reshape(len(p), p.shape[1:].numel()) for p in parameters.values()], 1)


def _range(values: Tensor) -> float:
    return (values.amax(0) - values.amin(0)).sum().item()


def _single(value: float | Tensor) -> float:
    return float(value)
