"""`from_art`: any evasion attack of ART, as a class or as a configured object, behind the common interface."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from robust_plugins.adapters.art.model import check_defences, is_normalising
from robust_plugins.adapters.art.silence import silent
from robust_plugins.balls import Ball
from robust_plugins.decisions.attack import Attack
from robust_plugins.errors import ArgumentError, ComponentError, PluginError, UnknownNameError
from robust_plugins.harness.wrappers import TwoLogits, Untouched

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

REFUSALS = (ArithmeticError, AssertionError, AttributeError, LookupError, NotImplementedError, TypeError, ValueError)
"""The errors that ART raises for parameters and inputs that it cannot handle, on purpose or by stumbling."""


@dataclass(frozen=True, kw_only=True, repr=False)
class ArtAttack(Attack):
    """An evasion attack of ART; made by `from_art`.

    `method` is ART's class, `parameters` are its constructor's arguments, sorted by name.
    """

    method: type
    parameters: tuple[tuple[str, Any], ...] = ()
    built_for: Any = field(default=None, compare=False)
    """The estimator of a configured object: its bare network is not the model that it stands for."""

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.parameters)
        return f"ArtAttack(batch_size={self.batch_size}, method={self.method.__name__}({arguments}))"

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, ball: Ball, *, targeted: bool) -> Tensor:  # noqa: D102
        from robust_plugins.adapters.art.estimator import classes_of, estimator_for, moved, one_hot, reproducible

        if targeted and "targeted" not in _arguments(self.method):
            raise ArgumentError(
                "target",
                "given",
                accepted=f"None: ART's {self.method.__name__} has no targeted form",
                hint="Leave `target` out, or choose another attack.",
            )
        _check_model(model, self.built_for)
        classes = classes_of(model, x)
        estimator = estimator_for(model, x, ball, classes=classes)
        found = x.clone()
        for eps, part in _groups(ball, x):
            before = x[part].cpu().numpy().astype("float32")
            labels = one_hot(y[part], estimator.nb_classes)
            try:
                # Norms of zero divide, and ART masks the result afterwards.
                with reproducible(), np.errstate(divide="ignore", invalid="ignore"), self._quiet():
                    attack = self._configured(estimator, ball, eps, len(before), targeted)
                    after = attack.generate(x=before.copy(), y=labels)  # ART may write into what it is given
            except REFUSALS as error:
                raise ArgumentError(
                    "attack",
                    f"{self}, which ART refuses: {type(error).__name__}: {error}",
                    accepted="an attack and parameters that ART can run for this ball and these inputs",
                    hint=_hint(ball, classes < MARGINS, str(error)),
                ) from error
            if np.shape(after) != before.shape:
                raise ComponentError(f"{self}: ART returned no example for each input, but {type(after).__name__}")
            found[part] = moved(x[part], before, after)
        return ball.project(found, x)  # an attack that minimises distance knows no ball

    def _configured(
        self, estimator: PyTorchClassifier, ball: Ball, eps: float, batch: int, targeted: bool
    ) -> EvasionAttack:
        accepted = _arguments(self.method)
        ours = {"norm": ball.norm, "eps": eps, "targeted": targeted}
        given = dict(self.parameters)
        for name, value in given.items():
            if isinstance(value, tuple) and any(isinstance(v, ArtAttack) for v in value):
                given[name] = [v._configured(estimator, ball, eps, batch, targeted) for v in value]
        if "batch_size" in accepted and "batch_size" not in given:
            # At ART's default of 32 most of the time is overhead; attacks by queries batch those and not the samples.
            given["batch_size"] = max(batch, accepted["batch_size"].default)
        if "verbose" in accepted:
            given.setdefault("verbose", False)
        given |= {name: value for name, value in ours.items() if name in accepted}
        given |= {name: estimator for name in MODEL if name in accepted}
        attack = self.method(**given)
        if estimator.nb_classes < MARGINS and isinstance(getattr(attack, "attacks", None), list):
            attack.attacks = [part for part in attack.attacks if not _is_of_margins(part)]
            if not attack.attacks:
                raise ValueError(f"the loss of each of its attacks needs {MARGINS} classes")
        return attack

    def _quiet(self) -> AbstractContextManager[None]:
        return nullcontext() if dict(self.parameters).get("verbose") else silent()


def _is_of_margins(attack: EvasionAttack) -> bool:
    return getattr(attack, "loss_type", None) == "difference_logits_ratio"


def _check_model(model: nn.Module, built_for: Any) -> None:
    while isinstance(model, TwoLogits | Untouched):
        model = model.model
    if built_for is not None and is_normalising(built_for) and model is getattr(built_for, "model", None):
        raise ArgumentError(
            "model",
            "the bare network of the estimator that this attack was built for, without its normalisation",
            accepted="the estimator itself, or a torch.nn.Module that normalises its inputs",
            hint="Pass the estimator in the place of the network.",
        )


def from_art(attack: type[EvasionAttack] | EvasionAttack, **parameters: Any) -> Attack:
    """An `rp.Attack` that runs an evasion attack of ART: a class with its parameters, or a configured object.

        attack = rp.from_art(art.attacks.evasion.DeepFool, max_iter=20)
        attack = rp.from_art(existing)          # an object that was built for any estimator

    Each call builds ART's attack anew for the model and the ball at hand; an object that was passed in, and its
    estimator, are never touched. Of the constructor's arguments these are set by the call, where there are any:

    - `estimator`, `classifier`, `estimator_orig`: the model of the call, with cross-entropy on its logits and the
      ball's clip range as clip values. Give an estimator of ART as the model, and its normalisation is part of it; the
      bare network of an object's own normalising estimator is refused, for it is another model.
    - `norm`, `eps`: the ball's. Samples with different eps are attacked in groups of equal eps, and those with eps 0
      not at all. An attack without these searches in its own norm, and the common call projects what it finds.
    - `targeted`: from `target=` of the call.
    - `verbose`: False unless it is a parameter here; without it nothing that ART prints, logs or draws is shown.
      `batch_size`: the whole batch (at least ART's default) unless it
      is a parameter here; an object keeps its own.

    All others are kept: mind ART's defaults, such as `eps_step=0.1`, which suit inputs in [0, 1] and a large eps.
    ART computes in float32; for other models inputs and logits are cast, and the result keeps the inputs' dtype.

    ART's AutoAttack leaves out the attacks whose loss needs three classes where there are two.

    Raises ArgumentError for what is no evasion attack of ART, for an argument that the call sets, and for a configured
    object whose parameters cannot be read or whose estimator has a defence that is no normalisation; UnknownNameError,
    with the nearest names, for an unknown parameter; PluginError where ART is missing. The call raises ArgumentError
    where ART refuses the parameters, the norm, the inputs' shape, a missing clip range or a target.
    """
    try:
        from art.attacks import EvasionAttack
    except ImportError as error:
        raise PluginError("from_art needs art, which cannot be imported; install it: "
                          "pip install 'robust_plugins[art]'") from error  # fmt: skip
    method = attack if isinstance(attack, type) else type(attack)
    if not issubclass(method, EvasionAttack):
        raise ArgumentError(
            "attack",
            repr(attack),
            accepted="a class of art.attacks.evasion, or an object of one",
            hint="For example rp.from_art(art.attacks.evasion.DeepFool, max_iter=20).",
        )
    for name in parameters:
        if name in OVERRIDDEN or name in MODEL:
            raise ArgumentError(
                name,
                "given",
                accepted=f"nothing: it is set by {OVERRIDDEN.get(name, 'the model of the call')}",
                hint=f"Leave `{name}` out.",
            )
        if name not in _arguments(method):
            known = _arguments(method).keys() - OVERRIDDEN.keys() - set(MODEL)
            raise UnknownNameError(f"parameter of ART's {method.__name__}:", name, known)
    built_for = None if isinstance(attack, type) else getattr(attack, "estimator", None)
    check_defences(built_for)
    kept = ({} if isinstance(attack, type) else _parameters_of(attack)) | parameters
    if kept.get("parallel_pool_size"):
        raise ArgumentError(
            "parallel_pool_size",
            kept["parallel_pool_size"],
            accepted="0: the model stays in this process",
            hint="Leave it out, and run several calls in processes of your own.",
        )
    return ArtAttack(
        batch_size=kept.get("batch_size"),  # ART's own applies to its passes only, and not to ours
        method=method,
        parameters=tuple((k, _wrapped(v)) for k, v in sorted(kept.items())),
        built_for=built_for,
    )


def _arguments(method: type) -> dict[str, inspect.Parameter]:
    named = dict(inspect.signature(method).parameters)
    return {name: p for name, p in named.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}


def _parameters_of(attack: EvasionAttack) -> dict[str, Any]:
    """The arguments that a configured attack was constructed with, without those that the call sets."""
    found = {}
    for name in _arguments(type(attack)).keys() - {*MODEL, *OVERRIDDEN, "verbose"}:
        # ART's dispatchers keep some of their parameters in the attack to which they dispatch.
        owner = attack if hasattr(attack, name) else getattr(attack, "_attack", None)
        if not hasattr(owner, name):
            raise ArgumentError(
                "attack",
                f"a {type(attack).__name__} whose `{name}` cannot be read",
                accepted="an object that keeps its constructor's arguments as attributes",
                hint=f"Pass the class and its parameters: rp.from_art({type(attack).__name__}, {name}=...).",
            )
        value = getattr(owner, name)
        # Two defaults are not what was given: a method of the object itself, and no summary writer.
        if getattr(value, "__self__", None) is not owner and not (name == "summary_writer" and value is None):
            found[name] = value
    return found


def _wrapped(value: Any) -> Any:
    """The attacks in a list of them (ART's ensembles) become wrapped ones, which are built anew as well."""
    from art.attacks import EvasionAttack

    if isinstance(value, list | tuple) and value and all(isinstance(v, EvasionAttack) for v in value):
        return tuple(from_art(v) for v in value)
    return value


def _groups(ball: Ball, x: Tensor) -> Iterator[tuple[float, Tensor]]:
    """Each eps above zero with the indices of its samples."""
    values = ball.radii if isinstance(ball.radii, tuple) else (ball.radii,) * len(x)
    for eps in sorted(set(values) - {0.0}):
        yield eps, torch.tensor([i for i, value in enumerate(values) if value == eps], device=x.device)


def _hint(ball: Ball, few: bool, cause: str) -> str:
    if "batch_size" in cause:
        return "Give from_art the parameter batch_size=1."
    if few:
        return f"The loss 'difference_logits_ratio' needs {MARGINS} classes; its documentation says what else it takes."
    if ball.clip is None:
        return "Some attacks need a clip range: give the ball one."
    return "Its documentation says which norms, shapes and values it takes."
