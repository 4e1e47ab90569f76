"""`abstract_gradient_training`: training on all data sets of a poisoner's budget at once."""

from __future__ import annotations

import hashlib
import math
import os
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn

from robust_plugins import checkpoints
from robust_plugins.errors import ArgumentError
from robust_plugins.intervals import Interval, trace
from robust_plugins.intervals.graph import Network
from robust_plugins.poisoning import gradients
from robust_plugins.poisoning.aggregation import MEMORY, Method
from robust_plugins.poisoning.batch_gradient import Poisoned
from robust_plugins.poisoning.budget import PoisoningBudget
from robust_plugins.poisoning.clipping import Clip, as_clip
from robust_plugins.poisoning.concrete import ConcreteTraining
from robust_plugins.poisoning.gradients import Forward, Inputs, Relaxation
from robust_plugins.poisoning.objectives import Loss, objective
from robust_plugins.poisoning.optimizers import SGD, Optimizer, State, update_all
from robust_plugins.poisoning.run import PoisoningEpoch, PoisoningRun, as_bounds
from robust_plugins.poisoning.tail import Split, split, trained_names
from robust_plugins.progress import reporting

if TYPE_CHECKING:
    from robust_plugins.poisoning.zonotope import Zonotope

Domain = Literal["box", "zonotope"]
Batch = tuple[Tensor, Tensor]
SAVE_EVERY = 60.0
"""Seconds between checkpoints inside an epoch."""


def abstract_gradient_training(
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
    relaxation: Relaxation | Literal["auto"] = "auto",
    aggregation: Method = "topk",
    memory: int = MEMORY,
    group: dist.ProcessGroup | None = None,
    rounding: Literal["nearest", "outward"] = "nearest",
    validation: Batch | None = None,
    stop_when_vacuous: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> PoisoningRun:
    """Bounds on the parameters that training returns, over every data set that the budget allows.

    Algorithm 1 of Sosnin et al. 2024, "Certified robustness to data poisoning in gradient-based training": with
    bounds [D_L, D_U] on the mean gradient over all poisoned forms of a batch and over the present intervals of the
    parameters, `theta_U <- theta_U - lr D_L` and `theta_L <- theta_L - lr D_U`. `model` itself is not changed.

    - `batches`: `(x, y)`, iterated once an epoch and used as they come, the last incomplete one too. Initial
      parameters, order and batches are those of every poisoned training as well.
    - `loss`: "cross_entropy" (class indices), "binary_cross_entropy" (one logit, labels 0 and 1), "hinge" (one
      output, labels -1 and 1) or "mse" (regression); a mean over the batch, as torch's.
    - `optimizer`: `rp.SGD`, `rp.Adam` or `rp.AdamW`.
    - `clip`: per-sample clipping of the gradient, a number gamma for [-gamma, gamma] elementwise, or `rp.NormClip`.
      Budgets of substitution and addition need it.
    - `domain`: "box" for any model; "zonotope" also carries a zonotope of the parameters through the updates, which
      keeps the contraction of gradient descent: for SGD on linear heads and networks of one hidden layer.
    - `parameters`: names of those to train; None: those that require gradients. The others are frozen. Layers are in
      evaluation mode.
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
    - `checkpoint`: a folder that is written to after every epoch (and every minute); called again with it, the training
      goes on to bitwise equal bounds. `progress`: a bar, and a line for every epoch, on standard error.

    Raises ArgumentError for arguments that do not fit each other, UnsupportedModelError for models without bounds.
    """
    plan = _Plan(
        model=model,
        budget=budget,
        loss=loss,
        optimizer=optimizer,
        clip=as_clip(clip),
        domain=domain,
        relaxation=relaxation,
        aggregation=aggregation,
        memory=memory,
        group=group,
        rounding=rounding,
    )
    plan.check(epochs)
    names = trained_names(model, parameters)
    training = _Training(plan, names, stop_when_vacuous)
    folder = None if checkpoint is None else Path(checkpoint)
    start = training.resume(folder)
    total = epochs * len(batches) if isinstance(batches, Sequence) else None
    with reporting("abstract training", total=total, done=training.t, enabled=progress) as (advance, say):
        for number in range(start, epochs):
            training.epoch(number, batches, folder, advance)
            record = training.record(number, validation)
            if number == 0 or number == start:
                say(_HEADER)
            say(_row(record))
            training.save(folder, number + 1)
    return training.run()


@dataclass(frozen=True, kw_only=True, eq=False)
class _Plan:
    """The arguments that decide the bounds."""

    model: nn.Module
    budget: PoisoningBudget
    loss: Loss
    optimizer: Optimizer
    clip: Clip | None
    domain: Domain
    relaxation: Relaxation | Literal["auto"]
    aggregation: Method
    memory: int
    group: dist.ProcessGroup | None
    rounding: Literal["nearest", "outward"]

    def check(self, epochs: int) -> None:
        """Raises ArgumentError for arguments that do not fit each other."""
        if not isinstance(self.budget, PoisoningBudget):
            raise ArgumentError("budget", repr(self.budget), accepted="an rp.PoisoningBudget",
                                hint="For example rp.PoisoningBudget(points=10, eps=0.1).")  # fmt: skip
        if not isinstance(self.optimizer, Optimizer):
            raise ArgumentError("optimizer", repr(self.optimizer), accepted="rp.SGD, rp.Adam or rp.AdamW",
                                hint="torch's own optimizers have no intervals.")  # fmt: skip
        if epochs < 1:
            raise ArgumentError("epochs", epochs, accepted="an integer of at least 1", hint="Train once.")
        objective(self.loss).check(self.budget)
        if self.budget.unbounded and self.clip is None:
            raise ArgumentError("clip", None, accepted="a number above 0, or rp.NormClip, with this budget",
                                hint="Samples without limits have gradients without limits.")  # fmt: skip
        if self.group is not None and self.aggregation != "cvar":
            raise ArgumentError("aggregation", repr(self.aggregation), accepted='"cvar" with a process group',
                                hint="Only sums can be exchanged between processes.")  # fmt: skip
        for name, choices in (
            ("aggregation", get_args(Method)),
            ("domain", get_args(Domain)),
            ("relaxation", ("auto", *get_args(Relaxation))),
            ("rounding", ("nearest", "outward")),
        ):
            if getattr(self, name) not in choices:
                raise ArgumentError(name, repr(getattr(self, name)), accepted=" or ".join(map(repr, choices)),
                                    hint="Choose one of them.")  # fmt: skip
        if self.domain == "zonotope":
            self._check_zonotope()

    def _check_zonotope(self) -> None:
        plain = isinstance(self.optimizer, SGD) and not self.optimizer.momentum
        for name, fine, accepted in (
            ("optimizer", plain, "rp.SGD without momentum"),
            ("clip", self.clip is None, "None"),
            ("budget", self.budget.change == "none", "a budget of moved points and changed labels"),
            ("rounding", self.rounding == "nearest", '"nearest"'),
            ("group", self.group is None, "None"),
        ):
            if not fine:
                raise ArgumentError(name, repr(getattr(self, name)), accepted=f'{accepted} for domain="zonotope"',
                                    hint='domain="box" takes all.')  # fmt: skip

    def described(self) -> dict[str, Any]:
        """What a checkpoint must agree with."""
        return {
            "budget": repr(self.budget),
            "loss": self.loss,
            "optimizer": repr(self.optimizer),
            "clip": repr(self.clip),
            "domain": self.domain,
            "relaxation": self.relaxation,
            "aggregation": self.aggregation,
            "rounding": self.rounding,
            "processes": 1 if self.group is None else dist.get_world_size(self.group),
        }


@dataclass(eq=False)
class _Prepared:
    """One batch: its features where the trained part begins, clean and moved, and its labels."""

    x: Tensor
    y: Tensor
    clean: Inputs
    moved: Inputs | None


class _Training:
    """The state of a run: nominal parameters, intervals, the optimizer's intervals, the domain, the history."""

    def __init__(self, plan: _Plan, names: Sequence[str], stop_when_vacuous: bool) -> None:
        self.plan, self.names, self.stop_when_vacuous = plan, list(names), stop_when_vacuous
        self.objective = objective(plan.loss)
        self.concrete = ConcreteTraining(
            plan.model, names, self.objective, plan.optimizer, clip=plan.clip, group=plan.group
        )
        self.parameters = as_bounds(self.concrete.values())
        self.states: dict[str, State] = {n: plan.optimizer.start(p) for n, p in self.parameters.items()}
        self.parts: Split | None = None
        self.zonotope: Zonotope | None = None
        self.zonotope_state: Mapping[str, Any] | None = None
        self.history: list[PoisoningEpoch] = []
        self.vacuous = self.given_up = False
        self.seconds = 0.0
        self.done_in_epoch = 0
        self.digest = ""
        self.prepared: dict[int, _Prepared] = {}
        self.saved = time.monotonic()

    @property
    def t(self) -> int:
        """Updates made."""
        return self.concrete.t

    def epoch(self, number: int, batches: Iterable[Batch], folder: Path | None, advance: Any) -> None:
        """All updates of one epoch, from where a checkpoint left off."""
        index = -1
        skip, wanted, digest = self.done_in_epoch, self.digest, ""
        for index, (x, y) in enumerate(batches):
            if folder is not None:
                digest = _digest(digest, x, y)
            if index < skip:
                if index + 1 == skip and digest != wanted:
                    raise ArgumentError("batches", "others than before the interruption", accepted="the same batches",
                                        hint="Give the same order, or delete the checkpoint.")  # fmt: skip
                continue
            start = time.perf_counter()
            self.update(index if isinstance(batches, Sequence) else None, x, y)
            self.seconds += time.perf_counter() - start
            self.done_in_epoch, self.digest = index + 1, digest
            if folder is not None and time.monotonic() - self.saved > SAVE_EVERY:
                self.save(folder, number)
            advance()
        if index < 0:
            raise ArgumentError("batches", "empty", accepted="at least one batch",
                                hint="A generator is used up after an epoch; give a list.")  # fmt: skip

    def update(self, index: int | None, x: Tensor, y: Tensor) -> None:
        """One update of the nominal parameters and of the bounds."""
        batch = self._prepare(index, x, y)
        if not self.given_up:
            with torch.no_grad(), gradients.arithmetic(self.plan.rounding):
                self._update_bounds(batch)
        self.concrete.step(batch.x, batch.y)

    def _update_bounds(self, batch: _Prepared) -> None:
        assert self.parts is not None
        plan, t = self.plan, self.t
        poisoned = Poisoned(
            budget=plan.budget,
            objective=self.objective,
            first=self.parts.first,
            trained=frozenset(self.names),
            clip=plan.clip,
            method=plan.aggregation,
            memory=plan.memory,
            group=plan.group,
        )
        network = self.parts.trained(self.parameters)
        found = poisoned.mean_gradient(network, batch.clean, batch.moved, batch.y)
        self._watch(found.clean, batch.y)
        if self.given_up:
            return
        after, self.states = update_all(plan.optimizer, t, self.parameters, found.gradient, self.states)
        if self.zonotope is not None:
            rate = plan.optimizer.learning_rate(t)
            after = self.zonotope.step(batch.x, batch.y, lr=rate, weight_decay=plan.optimizer.weight_decay, box=after)
        self.parameters = after
        finite = [bool((p.lower.isfinite() & p.upper.isfinite()).all()) for p in after.values()]
        if not all(finite):
            self._give_up(f"parameter {self.names[finite.index(False)]!r} has no finite bounds any more", 6)

    def _watch(self, clean: Forward, y: Tensor) -> None:
        """Warns once the bounds decide nothing."""
        if self.vacuous or not any(bool((p.upper > p.lower).any()) for p in self.parameters.values()):
            return
        z = clean.outputs
        if self.objective.classifies:
            decided = (self.objective.decides(z, clean.differences) >= 0).any()
        else:
            decided = ((z.lower > y.min()) | (z.upper < y.max())).any() if len(y) else torch.zeros((), dtype=torch.bool)
        if self.plan.group is not None:  # all processes must agree on going on
            count = decided.long()
            dist.all_reduce(count, group=self.plan.group)
            decided = count > 0
        if decided:
            return
        self.vacuous = True
        why = f"the bounds decide no sample of a batch; the outputs of {_lost(clean)!r} lost their sign first"
        if self.stop_when_vacuous:
            self._give_up(why, 7)
        else:
            warnings.warn(f"update {self.t + 1}: {why}; try a smaller budget, fewer updates, a smaller learning rate, "
                          "or stop_when_vacuous=True", stacklevel=6)  # fmt: skip

    def _give_up(self, why: str, stacklevel: int) -> None:
        warnings.warn(f"update {self.t + 1}: {why}; nothing is certified from here on", stacklevel=stacklevel)
        self.vacuous = self.given_up = True
        self.zonotope = None
        self.parameters = {
            name: Interval(torch.full_like(p.lower, -math.inf), torch.full_like(p.upper, math.inf))
            for name, p in self.parameters.items()
        }

    def _prepare(self, index: int | None, x: Tensor, y: Tensor) -> _Prepared:
        """The batch as the trained part takes it; kept for the next epochs where batches come by index."""
        if index is not None and index in self.prepared:
            return self.prepared[index]
        like = next(iter(self.parameters.values())).lower
        if x.dtype != like.dtype:
            raise ArgumentError("batches", f"of {x.dtype}", accepted=f"the model's dtype, {like.dtype}",
                                hint="Convert the data or the model.")  # fmt: skip
        x, y = x.to(like.device), y.to(like.device)
        network = self._network(x)
        assert self.parts is not None
        outputs = network.forward(Interval.point(x[:1]), until=None)[-1].shape[-1] if len(x) else 0
        y = self.objective.checked(y, outputs) if len(x) else y
        with torch.no_grad(), gradients.arithmetic(self.plan.rounding):
            clean, moved = self._features(x)
        batch = _Prepared(x, y, clean, moved)
        if index is not None:
            self.prepared[index] = batch
        return batch

    def _network(self, x: Tensor) -> Network:
        network = trace(self.concrete.model, x)
        if self.parts is None:
            self.parts = split(network, self.names)
            used = {name for named in network.names for name in named.values()}
            for name in [n for n in self.names if n not in used]:  # torch leaves it alone too: it has no gradient
                self.names.remove(name)
                del self.parameters[name], self.states[name], self.concrete.parameters[name]
        if self.plan.domain == "zonotope" and self.zonotope is None and not self.given_up:
            from robust_plugins.poisoning.zonotope import Zonotope

            self.zonotope = Zonotope.start(
                network, self.names, self.plan.loss, self.plan.budget, memory=self.plan.memory
            )
            if self.zonotope_state is not None:
                self.zonotope.load_state_dict(self.zonotope_state)
                self.zonotope_state = None
        return network

    def _features(self, x: Tensor) -> tuple[Inputs, Inputs | None]:
        """The clean and the moved features where the trained part begins."""
        assert self.parts is not None
        fixed, trained = self.parts.features, self.parts.trained({})
        start = self._moved_inputs(x) if self.plan.budget.points else None
        if fixed is None:
            return Inputs(Interval.point(x)), None if start is None else self._relaxed(start, trained)
        clean = Inputs(fixed.forward(Interval.point(x))[-1])
        if start is None:
            return clean, None
        moved = Inputs(gradients.forward(fixed, self._relaxed(start, fixed), differing=False).outputs)
        return clean, self._relaxed(moved, trained)

    def _moved_inputs(self, x: Tensor) -> Inputs:
        budget = self.plan.budget
        return Inputs(budget.box(x), "none", x, budget.radius(x), budget.norm)

    def _relaxed(self, inputs: Inputs, network: Network) -> Inputs:
        """The inputs with the relaxation that the plan has for a network."""
        kind = self.plan.relaxation
        if kind == "auto":
            kind = (
                gradients.affordable(network, inputs.box.lower, inputs.form()[1].shape[1])
                if len(inputs.box)
                else "none"
            )
        return replace(inputs, relaxation=kind)

    def record(self, number: int, validation: Batch | None) -> PoisoningEpoch:
        """Closes an epoch."""
        widths = {name: p.width for name, p in self.parameters.items()}
        widest = max(widths, key=lambda name: widths[name].mean().item())
        certified = nominal = None
        if validation is not None:
            certified, nominal = _scores(self.run(), validation)
        record = PoisoningEpoch(
            epoch=number + 1,
            updates=self.t,
            seconds=self.seconds,
            width=sum(w.sum().item() for w in widths.values()),
            widest=widest,
            certified=certified,
            nominal=nominal,
            vacuous=self.vacuous,
        )
        self.history.append(record)
        self.seconds, self.done_in_epoch, self.digest = 0.0, 0, ""
        return record

    def run(self) -> PoisoningRun:
        """What is known now."""
        return PoisoningRun(
            nominal=self.concrete.model,
            parameters=dict(self.parameters),
            history=tuple(self.history),
            budget=self.plan.budget,
            loss=self.plan.loss,
            domain=self.zonotope,
            rounding=self.plan.rounding,
        )

    def save(self, folder: Path | None, epochs: int) -> None:
        """Writes everything that decides how the run goes on; `epochs` are complete."""
        if folder is None:
            return
        checkpoints.save(folder, {
            "plan": self.plan.described(),
            "epochs": epochs,
            "done": self.done_in_epoch,
            "digest": self.digest,
            "concrete": self.concrete.state_dict(),
            "parameters": {n: _ends(p) for n, p in self.parameters.items()},
            "states": {n: {k: _ends(v) for k, v in s.items()} for n, s in self.states.items()},
            "domain": None if self.zonotope is None else self.zonotope.state_dict(),
            "history": [asdict(record) for record in self.history],
            "flags": (self.vacuous, self.given_up, self.seconds),
        })  # fmt: skip
        self.saved = time.monotonic()

    def resume(self, folder: Path | None) -> int:
        """Goes on from a checkpoint, if there is one: the number of complete epochs."""
        state = None if folder is None else checkpoints.load(folder)
        if state is None:
            return 0
        for name, value in self.plan.described().items():
            if state["plan"][name] != value:
                raise ArgumentError(name, value, accepted=f"{state['plan'][name]}, as in the checkpoint",
                                    hint="Use the same arguments, or another folder.")  # fmt: skip
        self.concrete.load_state_dict(state["concrete"])
        self.parameters = {n: _interval(e) for n, e in state["parameters"].items()}
        self.names = list(self.parameters)
        self.states = {n: {k: _interval(v) for k, v in s.items()} for n, s in state["states"].items()}
        self.zonotope_state = state["domain"]
        self.history = [PoisoningEpoch(**record) for record in state["history"]]
        self.vacuous, self.given_up, self.seconds = state["flags"]
        self.done_in_epoch, self.digest = state["done"], state["digest"]
        return int(state["epochs"])


def _scores(run: PoisoningRun, validation: Batch) -> tuple[float, float]:
    x, y = validation
    kind = objective(run.loss)
    with torch.no_grad():
        z = run.nominal(x)
    labels = kind.checked(y, z.shape[1])
    if not kind.classifies:
        return float(run.worst_loss(x, y)), kind.losses(z, labels).mean().item()
    classes = z.argmax(1) == labels if kind.pairwise else ((z > 0) == (labels > 0)).flatten()
    return run.certified_accuracy(x, y), classes.double().mean().item()


def _lost(clean: Forward) -> str:
    """The first layer of which the outputs may as well be anything: their mean radius exceeds their mean size."""
    for node, value in zip(clean.network.nodes, clean.values, strict=True):
        if bool(value.radius.mean() > value.center.abs().mean()):
            return node.name
    return clean.network.nodes[-1].name


def _digest(before: str, x: Tensor, y: Tensor) -> str:
    found = hashlib.sha256(before.encode())
    for t in (x, y):
        found.update(t.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def _ends(i: Interval) -> list[Tensor]:
    return [i.lower] if i.is_point else [i.lower, i.upper]


def _interval(ends: list[Tensor]) -> Interval:
    return Interval(ends[0], ends[-1])


_HEADER = f"{'epoch':>5}  {'updates':>7}  {'width':>10}  {'certified':>9}  {'nominal':>9}  {'s':>7}  widest"


def _row(r: PoisoningEpoch) -> str:
    scores = "  ".join(f"{'' if v is None else format(v, '9.4g'):>9}" for v in (r.certified, r.nominal))
    note = "  (vacuous)" if r.vacuous else ""
    return f"{r.epoch:>5}  {r.updates:>7}  {r.width:>10.4g}  {scores}  {r.seconds:>7.1f}  {r.widest}{note}"
