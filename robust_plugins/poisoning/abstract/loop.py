"""The state of abstract gradient training, and its updates: of the nominal model, and of the bounds."""

from __future__ import annotations

import hashlib
import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from robust_plugins.errors import ArgumentError, UnsupportedModelError
from robust_plugins.harness import checkpoints
from robust_plugins.intervals import Interval
from robust_plugins.poisoning.abstract.features import Preparation, Prepared
from robust_plugins.poisoning.abstract.run import PoisoningEpoch, PoisoningRun, as_bounds
from robust_plugins.poisoning.abstract.settings import Plan
from robust_plugins.poisoning.abstract.split import used_names
from robust_plugins.poisoning.box import sample_gradients
from robust_plugins.poisoning.box.mean_gradient import Poisoned
from robust_plugins.poisoning.box.sample_gradients import Forward
from robust_plugins.poisoning.concrete.concrete import ConcreteTraining
from robust_plugins.poisoning.concrete.losses import objective
from robust_plugins.poisoning.concrete.optimizers import State, update_all

if TYPE_CHECKING:
    from robust_plugins.poisoning.zonotope import Zonotope

Batch = tuple[Tensor, Tensor]
SAVE_EVERY = 60.0
"""Seconds between checkpoints inside an epoch."""


class TrainingState:
    """The state of a run: nominal parameters, intervals, the optimizer's intervals, the domain, the history."""

    def __init__(self, plan: Plan, names: Sequence[str], stop_when_vacuous: bool) -> None:
        self.plan, self.names, self.stop_when_vacuous = plan, list(names), stop_when_vacuous
        self.described = {**plan.described(), "parameters": list(names)}
        self.objective = objective(plan.loss)
        self.concrete = ConcreteTraining(
            plan.model, names, self.objective, plan.optimizer, clip=plan.clip, group=plan.group
        )
        self.parameters = as_bounds(self.concrete.values())
        self.states: dict[str, State] = {n: plan.optimizer.start(p) for n, p in self.parameters.items()}
        self.prepare = Preparation(plan, self.concrete.model, self.names)
        self.zonotope: Zonotope | None = None
        self.zonotope_state: Mapping[str, Any] | None = None
        self.history: list[PoisoningEpoch] = []
        self.vacuous = self.given_up = self.begun = False
        self.seconds = 0.0
        self.done_in_epoch = 0
        self.digest = ""
        self.saved = time.monotonic()

    @property
    def t(self) -> int:
        """Updates made."""
        return self.concrete.t

    def epoch(self, number: int, batches: Iterable[Batch], folder: Path | None, advance: Callable[[], None]) -> None:
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
        batch = self.prepare(index, x, y)
        self._begin(x)
        if not self.given_up:
            with torch.no_grad(), sample_gradients.arithmetic(self.plan.rounding):
                self._update_bounds(batch)
        self.concrete.step(batch.x, batch.y)

    def _begin(self, x: Tensor) -> None:
        """At the first batch: what only the traced network tells."""
        if self.begun:
            return
        self.begun = True
        network = self.prepare.network(x)
        used = used_names(network)
        idle = [n for n in self.concrete.parameters if n not in used]
        self._check_idle(idle, x)
        for name in idle:  # without a gradient, as for torch
            for kept in (self.parameters, self.states, self.concrete.parameters):
                kept.pop(name, None)
        self.names[:] = list(self.parameters)
        if self.plan.domain == "zonotope" and not self.given_up:
            from robust_plugins.poisoning.zonotope import Zonotope

            plan = self.plan
            self.zonotope = Zonotope.start(network, self.names, plan.loss, plan.budget, memory=plan.memory)
            if self.zonotope_state is not None:
                self.zonotope.load_state_dict(self.zonotope_state)

    def _check_idle(self, names: list[str], x: Tensor) -> None:
        """Parameters that the traced network does not have must have no gradient."""
        if not names or not len(x):
            return
        like = next(iter(self.concrete.parameters.values()))
        with torch.enable_grad():
            z = self.concrete.model(x[:1].to(like.device)).sum()
            found = torch.autograd.grad(z, [self.concrete.parameters[n] for n in names], allow_unused=True)
        for name in [n for n, g in zip(names, found, strict=True) if g is not None]:
            raise UnsupportedModelError(
                f"parameter {name!r} cannot be trained abstractly: tracing does not see how the output depends on it, "
                "as with hooks or tensors that forward finds outside of attributes; make it a layer's own, or freeze it"
            )

    def _update_bounds(self, batch: Prepared) -> None:
        plan, t, parts = self.plan, self.t, self.prepare.parts
        assert parts is not None
        poisoned = Poisoned(
            budget=plan.budget,
            objective=self.objective,
            first=parts.first,
            trained=frozenset(self.names),
            clip=plan.clip,
            method=plan.aggregation,
            memory=plan.memory,
            group=plan.group,
        )
        network = parts.trained(self.parameters)
        found = poisoned.mean_gradient(network, batch.clean, batch.moved, batch.y)
        self._watch(found.clean, batch.y)
        if self.given_up:
            return
        after, self.states = update_all(plan.optimizer, t, self.parameters, found.gradient, self.states)
        if self.zonotope is not None and all(_finite(p) for p in after.values()):
            rate = plan.optimizer.learning_rate(t)
            after = self.zonotope.step(batch.x, batch.y, lr=rate, weight_decay=plan.optimizer.weight_decay, box=after)
        self.parameters = after
        finite = [_finite(p) for p in after.values()]
        if not all(finite):
            self._give_up(f"parameter {self.names[finite.index(False)]!r} has no finite bounds any more", 6)

    def _watch(self, clean: Forward, y: Tensor) -> None:
        """Warns once the bounds decide nothing."""
        if self.vacuous or not any(bool((p.upper > p.lower).any()) for p in self.parameters.values()):
            return
        z = clean.outputs
        if self.objective.classifies:
            decided = (self.objective.decides(z, clean.differences) >= 0).any()
        elif len(y):
            decided = ((z.lower > y.min()) | (z.upper < y.max())).any()
        else:
            decided = torch.zeros((), dtype=torch.bool, device=z.device)
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
            "plan": self.described,
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
        state = None if folder is None else checkpoints.read(folder)
        if folder is None or state is None:
            return 0
        if "plan" not in state:
            raise checkpoints.unusable(folder, "it is not one of abstract gradient training")
        for name, value in self.described.items():
            if state["plan"][name] != value:
                raise ArgumentError(name, value, accepted=f"{state['plan'][name]}, as in the checkpoint",
                                    hint="Use the same arguments, or another folder.")  # fmt: skip
        checkpoints.restore(state)
        self.concrete.load_state_dict(state["concrete"])
        self.parameters = {n: _interval(e) for n, e in state["parameters"].items()}
        self.names[:] = list(self.parameters)
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


def _finite(i: Interval) -> bool:
    return bool((i.lower.isfinite() & i.upper.isfinite()).all())


def _ends(i: Interval) -> list[Tensor]:
    return [i.lower] if i.is_point else [i.lower, i.upper]


def _interval(ends: list[Tensor]) -> Interval:
    return Interval(ends[0], ends[-1])
