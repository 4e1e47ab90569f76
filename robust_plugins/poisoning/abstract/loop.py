"""The state of abstract gradient training, and its updates: of the nominal model, and of the bounds."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.func import functional_call

from robust_plugins.errors import ArgumentError, UnsupportedModelError
from robust_plugins.harness import checkpoints
from robust_plugins.harness.weights import layers_of
from robust_plugins.intervals import Interval
from robust_plugins.poisoning.abstract.features import Preparation, Prepared
from robust_plugins.poisoning.abstract.run import PoisoningEpoch, PoisoningRun, as_bounds
from robust_plugins.poisoning.abstract.settings import Plan
from robust_plugins.poisoning.abstract.split import used_names
from robust_plugins.poisoning.box import sample_gradients
from robust_plugins.poisoning.box.mean_gradient import Poisoned
from robust_plugins.poisoning.box.sample_gradients import Forward
from robust_plugins.poisoning.concrete.batches import PoisonedBatch
from robust_plugins.poisoning.concrete.behaviour import check_behaviour
from robust_plugins.poisoning.concrete.losses import objective
from robust_plugins.poisoning.concrete.optimizers import State, update_all
from robust_plugins.poisoning.concrete.reading import Batch, Checked, Reader, digest_of
from robust_plugins.poisoning.concrete.trainings import Trainings

if TYPE_CHECKING:
    from robust_plugins.poisoning.zonotope import Zonotope

SAVE_EVERY = 60.0
"""Seconds between checkpoints inside an epoch."""

ENOUGH = 32
"""Samples in a row of which none is decided, after which bounds count as vacuous; or all of an epoch."""

PROBED = 8
"""Samples of the first batch on which a model must answer as the one of the checkpoint does."""


class TrainingState:
    """The state of a run: nominal parameters, intervals, the optimizer's intervals, the domain, the history."""

    def __init__(
        self, plan: Plan, names: Sequence[str], batches: Any, validation: Batch | None, stop_when_vacuous: bool
    ) -> None:
        self.plan, self.names, self.stop_when_vacuous = plan, list(names), stop_when_vacuous
        self.objective = objective(plan.loss)
        self.concrete = Trainings(plan.model, names, self.objective, plan.optimizer, clip=plan.clip, group=plan.group)
        self.parameters = as_bounds({name: p[0] for name, p in self.concrete.values().items()})
        self.states: dict[str, State] = {n: plan.optimizer.start(p) for n, p in self.parameters.items()}
        self.prepare = Preparation(plan, self.concrete.model, self.names)
        self.reader = Reader(batches, self.concrete.model, self.objective)
        self.validation = None if validation is None else self._validation(validation)
        self.described = {
            **plan.described(),
            "parameters": list(names),
            "stop_when_vacuous": stop_when_vacuous,
            "model": _digest_of_model(self.concrete.model),
            "validation": None if self.validation is None else digest_of(*self.validation),
        }
        self.zonotope: Zonotope | None = None
        self.zonotope_state: Mapping[str, Any] | None = None
        self.probe: Tensor | None = None
        self.input_shape: tuple[int, ...] = ()
        self.history: list[PoisoningEpoch] = []
        self.vacuous = self.given_up = self.begun = False
        self.undecided = 0
        self.lost = ""
        self.seconds = 0.0
        self.done_in_epoch = 0
        self.saved = time.monotonic()

    def _validation(self, given: Batch) -> Checked:
        return Reader([], self.concrete.model, self.objective).checked(given, "the samples", "validation")

    @property
    def t(self) -> int:
        """Updates made."""
        return self.concrete.t

    def epoch(self, number: int, folder: Path | None, advance: Callable[[], None]) -> None:
        """All updates of one epoch, from where a checkpoint left off."""
        skip, samples = self.done_in_epoch, 0
        for index, (x, y) in enumerate(self.reader.epoch()):
            samples += len(x)
            if index < skip:
                continue
            start = time.perf_counter()
            self.update(None if self.reader.length is None else index, x, y)
            self.seconds += time.perf_counter() - start
            self.done_in_epoch = index + 1
            if folder is not None and time.monotonic() - self.saved > SAVE_EVERY:
                self.save(folder, number)
            advance()
        if self.undecided and self.plan.group is None and self.undecided >= samples:
            self._now_vacuous("of an epoch")
        if number == 0:
            self._check_counts()

    def _check_counts(self) -> None:
        """Says so where more samples may change than any batch holds."""
        b, largest = self.plan.budget, self.reader.largest
        kinds = {"points": b.points, "labels": b.labels, "k": 0 if b.change == "addition" else b.k}
        for name, count in kinds.items():
            if count > largest and self.plan.group is None:
                warnings.warn(f"the budget has {name}={count}, but no batch holds more than {largest} samples, so that "
                              "all may change; counts are of samples per batch", stacklevel=6)  # fmt: skip

    def update(
        self, index: int | None, x: Float[Tensor, "samples *features"], y: Shaped[Tensor, "samples *labels"]
    ) -> None:
        """One update of the nominal parameters and of the bounds."""
        self.begin(x)
        batch = self.prepare(index, x, y)
        if not self.given_up:
            with torch.no_grad(), sample_gradients.arithmetic(self.plan.rounding):
                self._update_bounds(batch)
        self.concrete.step(PoisonedBatch.whole(batch.x, batch.y))

    def begin(self, x: Float[Tensor, "samples *features"]) -> None:
        """At the first batch: what only the running and the traced network tell."""
        if self.begun:
            return
        self.begun = True
        if not len(x):  # any sample tells as much
            x = x.new_zeros((1, *x.shape[1:]))
        self.input_shape = tuple(x.shape[1:])
        check_behaviour(self.plan.model, x)
        network = self.prepare.network(x)
        with torch.no_grad():
            probe = self.concrete.model(x[:PROBED].clone())
            traced = network.forward(Interval.point(x[:PROBED]))[-1]
        if not _near(traced.center, probe):
            raise UnsupportedModelError("tracing does not see all that the model computes, as with hooks or values "
                                        "that forward finds outside of it; take these out of forward")  # fmt: skip
        if self.probe is not None and not _near(self.probe.to(probe), probe):
            raise ArgumentError("model", "one with other outputs on the first batch", accepted="that of the checkpoint",
                                hint="Start from the same model, or use another folder.")  # fmt: skip
        self.probe = probe
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
        if not names:
            return
        values = {n: p[0].detach().requires_grad_() for n, p in self.concrete.parameters.items()}
        with torch.enable_grad():
            z = functional_call(self.concrete.model, values, (x[:1].clone(),)).sum()
            found = torch.autograd.grad(z, [values[n] for n in names], allow_unused=True)
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
        samples = len(y)
        if self.plan.group is not None:  # all processes must agree on going on
            count = torch.stack([decided.long(), torch.tensor(samples, device=z.device)])
            dist.all_reduce(count, group=self.plan.group)
            decided, samples = count[0] > 0, int(count[1])
        self.undecided = 0 if decided else self.undecided + samples
        if self.undecided >= ENOUGH:
            self._now_vacuous("of a batch", clean)
        elif not decided:
            self.lost = _lost(clean)

    def _now_vacuous(self, where: str, clean: Forward | None = None) -> None:
        if self.vacuous:
            return
        self.vacuous = True
        lost = self.lost if clean is None else _lost(clean)
        why = f"the bounds decide no sample {where}; the outputs of {lost!r} lost their sign first"
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

    def record(self, number: int) -> PoisoningEpoch:
        """Closes an epoch."""
        widths = {name: p.width for name, p in self.parameters.items()}
        widest = max(widths, key=lambda name: widths[name].mean().item())
        certified = nominal = None
        if self.validation is not None:
            certified, nominal = _scores(self.run(), self.validation)
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
        self.seconds, self.done_in_epoch = 0.0, 0
        return record

    def run(self) -> PoisoningRun:
        """Returns the run as it is known now."""
        return PoisoningRun(
            nominal=self.concrete.trained(),
            parameters=dict(self.parameters),
            history=tuple(self.history),
            budget=self.plan.budget,
            loss=self.plan.loss,
            domain=self.zonotope,
            rounding=self.plan.rounding,
            input_shape=self.input_shape,
        )

    def save(self, folder: Path | None, epochs: int) -> None:
        """Writes everything that decides how the run goes on; `epochs` are complete."""
        if folder is None:
            return
        checkpoints.save(folder, {
            "plan": self.described,
            "epochs": epochs,
            "done": self.done_in_epoch,
            "reader": self.reader.state_dict(),
            "probe": self.probe,
            "concrete": self.concrete.state_dict(),
            "parameters": {n: _ends(p) for n, p in self.parameters.items()},
            "states": {n: {k: _ends(v) for k, v in s.items()} for n, s in self.states.items()},
            "domain": None if self.zonotope is None else self.zonotope.state_dict(),
            "history": [asdict(record) for record in self.history],
            "flags": (self.vacuous, self.given_up, self.seconds, self.undecided, self.lost),
        })  # fmt: skip
        self.saved = time.monotonic()

    def resume(self, folder: Path | None, epochs: int) -> int:
        """Goes on from a checkpoint, if there is one: the number of complete epochs.

        Raises ArgumentError for one of another training: other arguments, initial parameters, buffers, batches or
        validation data, or more updates than `epochs` have.
        """
        state = None if folder is None else checkpoints.read(folder)
        if folder is None or state is None:
            return 0
        if "plan" not in state or "reader" not in state:
            raise checkpoints.unusable(folder, "it is not one of abstract gradient training")
        for name, value in self.described.items():
            if state["plan"][name] != value:
                if name in ("model", "validation"):
                    what = "with other parameters or buffers" if name == "model" else "other data, or none,"
                    raise ArgumentError(name, f"{what} than in the checkpoint", accepted="the same as there",
                                        hint="Start as that training did, or use another folder.")  # fmt: skip
                raise ArgumentError(name, value, accepted=f"{state['plan'][name]}, as in the checkpoint",
                                    hint="Use the same arguments, or another folder.")  # fmt: skip
        done = int(state["epochs"])
        if done + (state["done"] > 0) > epochs:
            raise ArgumentError("epochs", epochs, accepted=f"at least {done + (state['done'] > 0)}, which the "
                                "checkpoint has begun", hint="Bounds of fewer need a folder of their own.")  # fmt: skip
        checkpoints.restore(state)
        self.reader.load_state_dict(state["reader"])
        self.concrete.parameters = {n: self.concrete.parameters[n] for n in state["concrete"]["parameters"]}
        self.concrete.load_state_dict(state["concrete"])
        self.parameters = {n: _interval(e) for n, e in state["parameters"].items()}
        self.states = {n: {k: _interval(v) for k, v in s.items()} for n, s in state["states"].items()}
        self.zonotope_state, self.probe = state["domain"], state["probe"]
        self.history = [PoisoningEpoch(**record) for record in state["history"]]
        self.vacuous, self.given_up, self.seconds, self.undecided, self.lost = state["flags"]
        self.done_in_epoch = state["done"]
        if done == epochs or not self.reader.once:
            for x, _ in self.reader.epoch():  # before anything is made of them
                self.begin(x)
        return done


def _scores(run: PoisoningRun, validation: Checked) -> tuple[float, float]:
    x, labels = validation
    kind = objective(run.loss)
    with torch.no_grad():
        z = run.nominal(x)
    if not kind.classifies:
        return float(run.worst_loss(x, labels)), kind.losses(z, labels).mean().item()
    classes = z.argmax(1) == labels if kind.pairwise else ((z > 0) == (labels > 0)).flatten()
    return run.certified_accuracy(x, labels), classes.double().mean().item()


def _lost(clean: Forward) -> str:
    """The first layer of which the outputs may as well be anything: their mean radius exceeds their mean size."""
    for node, value in zip(clean.network.nodes, clean.values, strict=True):
        if bool(value.radius.mean() > value.center.abs().mean()):
            return node.name
    return clean.network.nodes[-1].name


def _digest_of_model(model: nn.Module) -> str:
    """A fingerprint of all parameters and buffers, and of the kinds of the layers."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return f"{layers_of(model)};{','.join(name for name, _ in tensors)};{digest_of(*(t for _, t in tensors))}"


def _near(a: Tensor, b: Tensor) -> bool:
    """Equal but for the order of sums, which may differ between machines."""
    tolerance = 1e4 * torch.finfo(b.dtype).eps * max(1.0, b.abs().max().item() if b.numel() else 0.0)
    return a.shape == b.shape and torch.allclose(a, b, rtol=0.0, atol=tolerance, equal_nan=True)


def _finite(i: Interval) -> bool:
    return bool((i.lower.isfinite() & i.upper.isfinite()).all())


def _ends(i: Interval) -> list[Tensor]:
    return [i.lower] if i.is_point else [i.lower, i.upper]


def _interval(ends: list[Tensor]) -> Interval:
    return Interval(ends[0], ends[-1])
