"""Running an evasion attack of ART on a model and a ball: what the call sets, and what it makes of ART's refusals."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from robust_plugins.adapters.art.silence import silent
from robust_plugins.adapters.checks import check_one_radius
from robust_plugins.adapters.views import by_radius
from robust_plugins.balls import Ball
from robust_plugins.errors import ArgumentError, ComponentError

if TYPE_CHECKING:
    from art.attacks import EvasionAttack
    from art.estimators.classification import PyTorchClassifier

MODEL = ("estimator", "classifier", "estimator_orig")
"""The names that ART's constructors give to the model, which the call sets."""

OVERRIDDEN = {
    "norm": "the ball's norm",
    "eps": "the ball's eps",
    "targeted": "`target=` of the call",
}
"""Constructor arguments that the call sets, and from what."""

MARGINS = 3
"""So many classes the loss 'difference_logits_ratio' needs: it divides by the best logit less the third best."""

OF_PROBABILITIES = ("SimBA",)
"""The attacks that refuse logits."""

REFUSALS = (ArithmeticError, AssertionError, AttributeError, LookupError, NotImplementedError, TypeError, ValueError)
"""The errors that ART raises for parameters and inputs that it cannot handle, on purpose or by stumbling."""


@dataclass(frozen=True)
class Plan:
    """One attack of ART to build: its class, and its constructor's arguments without those that the call sets.

    An argument that is a tuple of plans becomes a list of the attacks that they describe.
    """

    method: type
    arguments: dict[str, Any]


def run(
    plan: Callable[[float], Plan],
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    *,
    targeted: bool,
    name: str,
    loud: bool = False,
    sparing: bool = False,
    queries: int = 1,
) -> Tensor:
    """Runs the attack that `plan` describes for each eps, projected onto the ball; gives x itself where eps is 0.

    - `model`, `x`, `y`, `ball`, `targeted`: those of `Attack.perturb`.
    - `name`: of the attack, for messages.
    - `loud`: shows what ART prints, logs and draws.
    - `sparing`: leaves x where the attack has succeeded already, for attacks that look for the nearest success alone.
    - `queries`: so many inputs at least go through the model at a time where ART asks for them one by one.

    Raises ArgumentError where ART refuses the parameters, the ball, the inputs or the target.
    """
    from robust_plugins.adapters.art.estimator import Batched, estimator_for, moved, one_hot, reproducible

    if "eps" in arguments_of(plan(0.0).method):
        check_one_radius(name, ball)
    with torch.no_grad():
        logits = model(x)  # of the whole batch, for exported models that take no other size
    classes = logits.shape[1]
    spared = (logits.argmax(1) == y) == targeted if sparing else torch.zeros_like(y, dtype=torch.bool)
    asked = nn.Sequential(model, nn.Softmax(dim=1)) if plan(0.0).method.__name__ in OF_PROBABILITIES else model
    estimator = estimator_for(asked, x, ball, classes=classes, classifier=Batched)
    estimator.queries = queries
    found = x.clone()
    quiet: Callable[[], AbstractContextManager[None]] = nullcontext if loud else silent
    for eps, part in by_radius(ball, x):
        part = part[~spared[part]]
        if not len(part):
            continue
        before = x[part].cpu().numpy().astype("float32")
        labels = one_hot(y[part], estimator.nb_classes)
        try:
            # Norms of zero divide, and ART masks the result afterwards.
            with reproducible(), np.errstate(divide="ignore", invalid="ignore"), quiet():
                attack = _built(plan(eps), estimator, ball, eps, len(before), targeted)
                after = attack.generate(x=before.copy(), y=labels)  # ART may write into what it is given
        except REFUSALS as error:
            raise ArgumentError(
                "attack",
                f"{name}, which ART refuses: {type(error).__name__}: {error}",
                accepted="an attack and parameters that ART can run for this ball and these inputs",
                hint=_hint(ball, classes < MARGINS, str(error)),
            ) from error
        if np.shape(after) != before.shape:
            raise ComponentError(f"{name}: ART returned no example for each input, but {type(after).__name__}")
        found[part] = moved(x[part], before, after)
    return ball.project(found, x)  # an attack that minimises distance knows no ball


def arguments_of(method: type) -> dict[str, inspect.Parameter]:
    """The named arguments of the constructor of a class of ART."""
    named = dict(inspect.signature(method).parameters)
    return {name: p for name, p in named.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}


def _built(
    plan: Plan, estimator: PyTorchClassifier, ball: Ball, eps: float, batch: int, targeted: bool
) -> EvasionAttack:
    if ball.norm == 1 and plan.method.__name__ == "SquareAttack":
        raise ValueError("it accepts the norm, but searches nothing in L1")
    accepted = arguments_of(plan.method)
    given = dict(plan.arguments)
    for name, value in given.items():
        if isinstance(value, tuple) and any(isinstance(v, Plan) for v in value):
            given[name] = [_built(v, estimator, ball, eps, batch, targeted) for v in value]
    if "verbose" in accepted:
        given.setdefault("verbose", False)
    ours = {"norm": ball.norm, "eps": eps, "targeted": targeted}
    given |= {name: value for name, value in ours.items() if name in accepted}
    given |= {name: estimator for name in MODEL if name in accepted}
    if "batch_size" in accepted and given.get("batch_size") is None:
        # At ART's default of 32 most of the time is overhead; attacks by queries batch those and not the samples.
        attack = _in_batches(plan.method, given, max(batch, accepted["batch_size"].default))
    else:
        attack = plan.method(**given)
    if estimator.nb_classes < MARGINS and isinstance(getattr(attack, "attacks", None), list):
        attack.attacks = [part for part in attack.attacks if not _is_of_margins(part)]
        if not attack.attacks:
            raise ValueError(f"the loss of each of its attacks needs {MARGINS} classes")
    return attack


def _in_batches(method: type, given: dict[str, Any], size: int) -> EvasionAttack:
    try:
        return method(**given | {"batch_size": size})
    except ValueError as error:
        if "batch_size" not in str(error) or size == 1:
            raise
        return method(**given | {"batch_size": 1})  # SimBA, and ZOO with several coordinates at a time


def _is_of_margins(attack: EvasionAttack) -> bool:
    return getattr(attack, "loss_type", None) == "difference_logits_ratio"


def _hint(ball: Ball, few: bool, cause: str) -> str:
    if "batch_size" in cause:
        return "Give from_art the parameter batch_size=1."
    if few:
        return f"The loss 'difference_logits_ratio' needs {MARGINS} classes; its documentation says what else it takes."
    if ball.clip is None:
        return "Some attacks need a clip range: give the ball one."
    return "Its documentation says which norms, shapes and values it takes."
