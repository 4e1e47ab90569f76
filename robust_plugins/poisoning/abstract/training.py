"""`abstract_gradient_training`: training on all data sets of a poisoner's budget at once."""

from __future__ import annotations

import os
from collections.abc import Iterable
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

import torch.distributed as dist
from torch import nn

from robust_plugins.errors import ArgumentError
from robust_plugins.harness.call import neutral
from robust_plugins.harness.progress import reporting
from robust_plugins.poisoning.abstract.loop import TrainingState
from robust_plugins.poisoning.abstract.run import PoisoningEpoch, PoisoningRun
from robust_plugins.poisoning.abstract.settings import Domain, Plan
from robust_plugins.poisoning.box.sample_gradients import Dependence
from robust_plugins.poisoning.box.sums.aggregation import MEMORY, Method
from robust_plugins.poisoning.budget import Count, PoisoningBudget
from robust_plugins.poisoning.concrete.behaviour import own_copy
from robust_plugins.poisoning.concrete.clipping import Clip, as_clip
from robust_plugins.poisoning.concrete.losses import Loss
from robust_plugins.poisoning.concrete.optimizers import Optimizer
from robust_plugins.poisoning.concrete.parameters import trained_names


def abstract_gradient_training(
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
    progress: bool = True,
    clip: float | Clip | None = None,
) -> PoisoningRun:
    """Bounds on the parameters that training returns, over every data set that the budget allows.

    Algorithm 1 of Sosnin et al. 2024, "Certified robustness to data poisoning in gradient-based training": with
    bounds [D_L, D_U] on the mean gradient over all poisoned forms of a batch and over the present intervals of the
    parameters, `theta_U <- theta_U - lr D_L` and `theta_L <- theta_L - lr D_U`. `model` itself is not changed.

    - `batches`: pairs `(x, y)` of tensors or arrays, iterated once an epoch and used as they come, the last incomplete
      one too; a list, a DataLoader that does not shuffle, or a generator for one epoch. Initial parameters, order and
      batches are those of every poisoned training as well, and the same in each epoch.
    - `loss`: "cross_entropy" (class indices), "binary_cross_entropy" (one logit, labels 0 and 1), "hinge" (one
      output, labels -1 and 1) or "mse" (regression); a mean over the batch, as torch's.
    - `optimizer`: `rp.SGD`, `rp.Adam` or `rp.AdamW`.
    - `clip_gradient`: per-sample clipping of the gradient, a number gamma for [-gamma, gamma] elementwise, or
      `rp.NormClip`. Budgets of substitution and addition need it. (`clip` is its former name.)
    - `domain`: "box" for any model; "zonotope" also carries a zonotope of the parameters through the updates, which
      keeps the contraction of gradient descent: for SGD on linear heads and networks of one hidden layer.
    - `parameters`: names of those to train; None: those that require gradients. The others are frozen. Layers are in
      evaluation mode, and a model that answers otherwise in the modes in which it is given is refused.
    - `relaxation`: how the network's dependence on moved features is kept: "affine" forms, "crown", or "none";
      "auto": affine forms where they are affordable.
    - `aggregation`: "topk" sums the k largest effects exactly, "cvar" bounds the sum at a cost that does not depend on
      k. `memory` is about what a part of the per-sample gradients may take, in bytes.
    - `group`: processes of `torch.distributed` that each hold a part of every batch; needs `aggregation="cvar"`. All
      return the same bounds.
    - `rounding="outward"`: bounds also hold for the floating-point computation of any such training (with linear
      relaxation switched off).
    - `validation`: `(x, y)` whose certified accuracy (mean squared error) every epoch's record holds.
    - `stop_when_vacuous`: once no training sample's class is certain, bounds are given up, and only the nominal
      training goes on. Without it a warning says so, once, and names the layer whose outputs lost their sign first.
    - `checkpoint`: a folder that is written to after every epoch (and every minute); called again with it, the same
      training goes on to bitwise equal bounds, and any other one is refused. `progress`: a bar, and a line for every
      epoch, on standard error.

    Raises ArgumentError for arguments, data or a model that do not fit each other, UnsupportedModelError for models
    without bounds.

    >>> model, data = torch.nn.Linear(2, 2), [(torch.rand(8, 2), torch.tensor([0, 1] * 4))]
    >>> budget, sgd = rp.PoisoningBudget(points=1, eps=0.1), rp.SGD(lr=0.1)
    >>> run = rp.abstract_gradient_training(
    ...     model.eval(), data, budget, loss="cross_entropy", optimizer=sgd, epochs=2, progress=False
    ... )
    >>> all(run.parameters[name].contains(p).all() for name, p in run.nominal.named_parameters())
    True
    """
    if not isinstance(epochs, Integral) or isinstance(epochs, bool) or epochs < 1:
        raise ArgumentError("epochs", repr(epochs), accepted="an integer of at least 1", hint="Train once.")
    plan = Plan(
        model=own_copy(model),
        budget=budget,
        loss=loss,
        optimizer=optimizer,
        clip=as_clip(clip_gradient, clip),
        domain=domain,
        relaxation=relaxation,
        aggregation=aggregation,
        memory=memory,
        group=group,
        rounding=rounding,
    )
    plan.check()
    names = trained_names(plan.model, parameters)
    with neutral(next(plan.model.parameters()).dtype):
        training = TrainingState(plan, names, batches, validation, stop_when_vacuous)
        folder = None if checkpoint is None else Path(checkpoint)
        start = training.resume(folder, epochs)
        total = None if training.reader.length is None else epochs * training.reader.length
        with reporting("abstract training", total=total, done=training.t, enabled=progress) as (advance, say):
            for number in range(start, epochs):
                training.epoch(number, folder, advance)
                record = training.record(number)
                if number in (0, start):
                    say(_HEADER)
                say(_row(record))
                training.save(folder, number + 1)
        return training.run()


_HEADER = f"{'epoch':>5}  {'updates':>7}  {'width':>10}  {'certified':>9}  {'nominal':>9}  {'s':>7}  widest"


def _row(r: PoisoningEpoch) -> str:
    scores = "  ".join(f"{'' if v is None else format(v, '9.4g'):>9}" for v in (r.certified, r.nominal))
    note = "  (vacuous)" if r.vacuous else ""
    return f"{r.epoch:>5}  {r.updates:>7}  {r.width:>10.4g}  {scores}  {r.seconds:>7.1f}  {r.widest}{note}"
