"""Every poisoned training ends inside the bounds, for all budgets, losses, optimizers, clips and domains."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from support.inclusion import ATTACKS, MORE, Setting, Turning, bounds, excess, poisoned
from support.length import length, thinned

import robust_plugins as rp
from robust_plugins.intervals import Interval
from robust_plugins.poisoning.abstract.run import PoisoningRun
from robust_plugins.poisoning.attacks.builtin import CoordinatePoisoning
from robust_plugins.poisoning.attacks.interface import PoisoningAttack
from robust_plugins.poisoning.box import mean_gradient
from robust_plugins.poisoning.box.mean_gradient import Poisoned
from robust_plugins.poisoning.concrete.losses import objective
from robust_plugins.poisoning.concrete.optimizers import State

TOLERANCE = 1e-12
Budget = rp.PoisoningBudget

BOUNDED = {
    "linf": Budget(points=2, eps=0.2),
    "linf clip": Budget(points=2, eps=0.3, clip=(-1.0, 1.0)),
    "l2": Budget(points=2, eps=0.4, norm="l2"),
    "l1": Budget(points=3, eps=0.5, norm="l1"),
    "columns": Budget(points=2, eps=0.5, columns=(1, 3)),
    "per feature": Budget(points=2, eps=(0.1, 0.4, 0.0, 0.2)),
    "per feature l2": Budget(points=2, eps=(0.1, 0.4, 0.0, 0.2), norm="l2"),
    "any label": Budget(labels=1),
    "target": Budget(labels=2, target=1),
    "both": Budget(points=2, eps=0.1, labels=1),
    "both, more labels": Budget(points=1, eps=0.2, labels=2),
    "paired": Budget(points=3, eps=0.1, labels=1, paired=True),
    "paired, more labels": Budget(points=1, eps=0.1, labels=2, paired=True, norm="l2"),
    "paired, equal": Budget(points=1, eps=0.3, labels=1, paired=True),
    "all": Budget(points=50, eps=0.05),
    "nothing": Budget(),
}
UNBOUNDED = {
    "substitution": Budget.substitution(1),
    "addition": Budget.addition(2),
    "removal": Budget.removal(2),
    "removal of whole batches": Budget.removal(4),
}
OPTIMIZERS = {
    "decay": rp.SGD(lr=0.5, decay=0.6, min_lr=0.2),
    "milestones": rp.SGD(lr=0.5, milestones=(2, 4), factor=0.5, weight_decay=0.1),
    "momentum": rp.SGD(lr=0.2, momentum=0.9),
    "momentum and decay": rp.SGD(lr=0.3, momentum=0.9, weight_decay=0.5),
    "nesterov": rp.SGD(lr=0.1, momentum=0.8, weight_decay=0.3, nesterov=True),
    "adam": rp.Adam(lr=0.05),
    "adam and decay": rp.Adam(lr=0.05, betas=(0.5, 0.9), weight_decay=0.2),
    "adamw": rp.AdamW(lr=0.05, weight_decay=0.5),
}
MIXED = Budget(points=1, eps=0.1, labels=1)
REGRESSION = Budget(points=1, eps=0.1, labels=2, label_radius=0.2)
SETTINGS = {
    **{f"budget {name}": Setting(budget=b) for name, b in BOUNDED.items()},
    **{f"cvar {n}": Setting(budget=BOUNDED[n], aggregation="cvar") for n in ("l2", "both", "paired")},
    **{f"clip {n}": Setting(budget=BOUNDED[n], clip=0.1) for n in ("linf", "any label", "both", "paired")},
    **{f"norm clip {n}": Setting(budget=BOUNDED[n], clip=rp.NormClip(0.3)) for n in ("l2", "both")},
    **{f"{name} clip": Setting(budget=b, clip=0.1) for name, b in UNBOUNDED.items()},
    **{f"{name} norm clip": Setting(budget=b, clip=rp.NormClip(0.3)) for name, b in UNBOUNDED.items()},
    **{f"{name} cvar": Setting(budget=b, clip=0.1, aggregation="cvar") for name, b in UNBOUNDED.items()},
    "removal without clip": Setting(budget=Budget.removal(1)),
    **{f"optimizer {name}": Setting(budget=MIXED, optimizer=o) for name, o in OPTIMIZERS.items()},
    **{f"optimizer {n} clip": Setting(budget=Budget.substitution(1), optimizer=OPTIMIZERS[n], clip=0.1)
       for n in ("momentum and decay", "nesterov", "adam")},
    **{f"loss {loss}": Setting(budget=Budget(points=1, eps=0.2, labels=1), loss=loss)
       for loss in ("binary_cross_entropy", "hinge")},
    "loss hinge, target": Setting(budget=Budget(labels=2, target=-1), loss="hinge"),
    "loss binary, target": Setting(budget=Budget(labels=2, target=1), loss="binary_cross_entropy", clip=0.1),
    "loss mse": Setting(budget=REGRESSION, loss="mse", optimizer=rp.SGD(lr=0.1)),
    "loss mse, labels": Setting(budget=Budget(labels=2, label_radius=0.3), loss="mse", optimizer=rp.SGD(lr=0.1)),
    "loss mse, substitution": Setting(budget=Budget.substitution(1), loss="mse", clip=0.1),
    "tanh": Setting(budget=MIXED, net="tanh"),
    "tanh mse adam": Setting(budget=REGRESSION, net="tanh", loss="mse", optimizer=OPTIMIZERS["adam"]),
    "conv": Setting(budget=Budget(points=1, eps=0.05, labels=1), net="conv"),
    "conv l2": Setting(budget=Budget(points=2, eps=0.3, norm="l2"), net="conv"),
    "conv substitution": Setting(budget=Budget.substitution(1), net="conv", clip=rp.NormClip(0.3)),
    "frozen": Setting(budget=MIXED, net="frozen"),
    "frozen l2": Setting(budget=Budget(points=2, eps=0.3, norm="l2"), net="frozen"),
    "frozen removal": Setting(budget=Budget.removal(2), net="frozen", optimizer=OPTIMIZERS["momentum"]),
    "batch norm": Setting(budget=MIXED, net="norm"),
    "linear": Setting(budget=MIXED, net="linear", epochs=4),
}  # fmt: skip
ZONOTOPE = {
    **{f"zonotope {n}": Setting(budget=BOUNDED[n], domain="zonotope")
       for n in ("linf", "l2", "target", "both", "paired")},
    "zonotope linear": Setting(budget=MIXED, net="linear", epochs=4, domain="zonotope"),
    "zonotope mse": Setting(budget=REGRESSION, net="linear", loss="mse", optimizer=rp.SGD(lr=0.1), epochs=4,
                            domain="zonotope"),
    "zonotope decay": Setting(budget=MIXED, optimizer=OPTIMIZERS["milestones"], domain="zonotope"),
    "zonotope binary": Setting(budget=MIXED, loss="binary_cross_entropy", domain="zonotope"),
}  # fmt: skip


# What differs from others only in a part that others test, too.
LATER = {
    "budget linf clip", "budget per feature l2", "budget paired, equal", "cvar l2", "cvar paired", "clip linf",
    "clip any label", "norm clip l2", "substitution norm clip", "removal norm clip", "addition cvar", "removal cvar",
    "removal of whole batches norm clip", "removal of whole batches cvar", "optimizer momentum",
    "optimizer adam and decay", "optimizer nesterov clip", "optimizer adam clip", "loss hinge, target",
    "loss mse, substitution", "tanh mse adam", "conv l2", "frozen l2", "frozen removal", "zonotope l2",
    "zonotope target", "zonotope paired", "zonotope decay", "zonotope binary", "zonotope both", "budget per feature",
    "budget both, more labels", "budget paired, more labels", "budget all", "removal of whole batches clip",
    "addition norm clip", "loss binary, target", "loss mse, labels", "optimizer milestones", "cvar both",
    "optimizer momentum and decay clip",
}  # fmt: skip


def _named(settings: dict[str, Setting]) -> list[Any]:
    return [pytest.param(name, marks=[pytest.mark.slow] if name in LATER else []) for name in settings]


@pytest.mark.parametrize("name", _named(SETTINGS))
def test_box(name: str) -> None:
    _check(SETTINGS[name])


@pytest.mark.parametrize("name", _named(ZONOTOPE))
def test_zonotope(name: str) -> None:
    _check(ZONOTOPE[name])


SINGLE = [("linf", "decay"), ("paired, more labels", "adam"), ("substitution", "momentum and decay"),
          ("addition", "decay"), ("removal", "nesterov")]  # fmt: skip


@pytest.mark.parametrize(("name", "optimizer"), SINGLE)
def test_single_precision_rounded_outward(name: str, optimizer: str) -> None:
    setting = Setting(budget=(BOUNDED | UNBOUNDED)[name], optimizer=OPTIMIZERS[optimizer], clip=0.2,
                      dtype=torch.float32, rounding="outward")  # fmt: skip
    _check(setting, tolerance=0.0)


EACH = [(name, optimizer) for name in (*BOUNDED, *UNBOUNDED) for optimizer in ("decay", "momentum and decay", "adam")]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "optimizer"), thinned(EACH, 4))
def test_single_precision_of_each(name: str, optimizer: str) -> None:
    setting = Setting(budget=(BOUNDED | UNBOUNDED)[name], optimizer=OPTIMIZERS[optimizer], clip=0.2,
                      dtype=torch.float32, rounding="outward", epochs=3, sizes=(7, 8, 3))  # fmt: skip
    _check(setting, tolerance=0.0, attacks=MORE)


@pytest.mark.slow
@pytest.mark.parametrize("seed", length([1], [1, 2]))
@pytest.mark.parametrize("name", [*SETTINGS, *ZONOTOPE])
def test_more_of_each(name: str, seed: int) -> None:
    longer = replace((SETTINGS | ZONOTOPE)[name], seed=seed, epochs=3, sizes=length((7, 5, 2), (7, 8, 5, 2)))
    _check(longer, attacks=MORE)


def _check(setting: Setting, *, tolerance: float = TOLERANCE, attacks: tuple[PoisoningAttack, ...] = ATTACKS) -> None:
    run, trained = _both(setting, attacks)
    assert len(next(iter(trained.values()))) >= 50
    assert excess(run, trained) <= tolerance
    own = {name: p.detach().unsqueeze(0) for name, p in run.nominal.named_parameters() if name in run.parameters}
    assert excess(run, own) <= tolerance
    if setting.budget.nothing:
        return
    # What the models answer is inside what is said of all of them.
    x, y = setting.batches()[0]
    z = torch.stack([torch.func.functional_call(run.nominal, {n: p[i] for n, p in trained.items()}, (x,))
                     for i in range(len(next(iter(trained.values()))))])  # fmt: skip
    said = run.logits(x)
    slack = max(tolerance, 1e-5 if setting.dtype == torch.float32 else 0.0) * said.magnitude.clamp(min=1)
    assert bool(((z >= said.lower - slack) & (z <= said.upper + slack)).all())
    if setting.loss == "cross_entropy":
        assert run.certified_accuracy(x, y) <= (z.argmax(2) == y).double().mean(1).min().item()


def _both(
    setting: Setting, attacks: tuple[PoisoningAttack, ...] = ATTACKS
) -> tuple[PoisoningRun, dict[str, torch.Tensor]]:
    return bounds(setting), poisoned(setting, attacks)


# Faults that the tests above must notice. One update is bounded tightly, so that it shows any fault of the gradient.
PUSHED: tuple[PoisoningAttack, ...] = (CoordinatePoisoning(coordinates=40, steps=3),)
ONE = {"sizes": (6,), "epochs": 1}


def _escapes(setting: Setting) -> bool:
    return excess(*_both(setting, PUSHED)) > 1e-9


FEWER = {
    "points": ("extremes", Setting(budget=Budget(points=2, eps=0.2), **ONE)),
    "labels": ("extremes", Setting(budget=Budget(labels=2), **ONE)),
    "both": ("extremes", Setting(budget=Budget(points=2, eps=0.1, labels=1), **ONE)),
    "clip": ("extremes", Setting(budget=Budget(points=1, eps=0.2), clip=0.1, **ONE)),
    "substitution": ("replaced", Setting(budget=Budget.substitution(2), clip=0.1, **ONE)),
}


@pytest.mark.parametrize("name", FEWER)
def test_one_sample_less_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function, setting = FEWER[name]
    assert not _escapes(setting)
    true = getattr(mean_gradient, function)
    monkeypatch.setattr(mean_gradient, function, lambda g, k, *given, **more: true(g, k - 1, *given, **more))
    assert _escapes(setting)


@pytest.mark.parametrize("change", ["addition", "removal"])
def test_one_sample_less_in_the_mean_is_caught(change: Any) -> None:
    setting = Setting(budget=Budget(change=change, k=3), clip=0.1, **ONE)
    trained = poisoned(setting, PUSHED)
    assert excess(bounds(setting), trained) <= TOLERANCE
    assert excess(bounds(replace(setting, budget=Budget(change=change, k=2))), trained) > 1e-6


@pytest.mark.parametrize("clip", [0.1, rp.NormClip(0.1)])
@pytest.mark.parametrize("budget", [Budget.substitution(1), Budget(labels=1)])
def test_a_missing_clip_is_caught(budget: Budget, clip: Any) -> None:
    setting = Setting(budget=budget, clip=clip)
    unclipped = replace(setting, clip=None)
    assert not _escapes(setting)
    assert excess(bounds(setting), poisoned(unclipped, PUSHED)) > 1e-6


def test_dropped_labels_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting(budget=Budget(points=1, eps=0.1, labels=1), **ONE)
    assert not _escapes(setting)
    passes = Poisoned._passes

    def planted(self: Poisoned, *given: Any) -> Any:
        found = passes(self, *given)
        return dict.fromkeys(found, found["features"])

    monkeypatch.setattr(Poisoned, "_passes", planted)
    assert _escapes(setting)


def test_a_forgotten_class_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting(budget=Budget(labels=2), **ONE)
    trained = poisoned(setting, PUSHED)
    assert excess(bounds(setting), trained) <= TOLERANCE
    kind = type(objective("cross_entropy"))
    relabelled = kind.relabelled
    monkeypatch.setattr(kind, "relabelled", lambda *given: relabelled(*given)[:-1])
    assert excess(bounds(setting), trained) > 1e-6


def test_swapped_ends_of_the_gradient_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting(budget=Budget(points=2, eps=0.2))
    assert not _escapes(setting)

    def planted(self: Any, t: int, value: Interval, gradient: Interval, state: State) -> tuple[Interval, State]:
        lr = self.learning_rate(t)
        ends = value.lower - lr * gradient.lower, value.upper - lr * gradient.upper
        return Interval(torch.minimum(*ends), torch.maximum(*ends)), {}

    monkeypatch.setattr(rp.SGD, "update", planted)
    assert _escapes(setting)


def test_momentum_that_pairs_the_ends_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each end of theta with its own velocity is no bound once theta overshoots."""
    setting = Setting(budget=Budget(labels=6, label_radius=1.0), optimizer=rp.SGD(lr=0.5, momentum=0.9, weight_decay=1),
                      net="weights", loss="mse", scale=0.05, sizes=(6,), epochs=9)  # fmt: skip
    turning = tuple(Turning(coordinates=4, steps=1, at=at) for at in (4, 5, 6))
    trained = poisoned(setting, turning)
    assert excess(bounds(setting), trained) <= TOLERANCE

    def planted(self: Any, t: int, value: Interval, gradient: Interval, state: State) -> tuple[Interval, State]:
        lr, old = self.learning_rate(t), state["momentum_buffer"]
        of_upper = self.momentum * old.lower + gradient.lower + self.weight_decay * value.upper
        of_lower = self.momentum * old.upper + gradient.upper + self.weight_decay * value.lower
        ends = value.lower - lr * of_lower, value.upper - lr * of_upper
        return Interval(torch.minimum(*ends), torch.maximum(*ends)), {"momentum_buffer": Interval(of_upper, of_lower)}

    monkeypatch.setattr(rp.SGD, "update", planted)
    assert excess(bounds(setting), trained) > 1e-6
