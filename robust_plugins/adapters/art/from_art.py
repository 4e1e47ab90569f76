"""`from_art`: any evasion attack of ART, as a class or as a configured object, behind the common interface."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from robust_plugins.adapters.art.model import check_defences, is_normalising
from robust_plugins.adapters.art.running import MODEL, OVERRIDDEN, Plan, arguments_of, run
from robust_plugins.balls import Ball
from robust_plugins.decisions.attack import Attack
from robust_plugins.errors import ArgumentError, PluginError, UnknownNameError, of_type
from robust_plugins.harness.wrappers import TwoLogits, Untouched

if TYPE_CHECKING:
    from art.attacks import EvasionAttack


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
        """The attack with the parameters that are not ART's defaults: a name for tables."""
        usual = {name: p.default for name, p in arguments_of(self.method).items()}
        given = dict(self.parameters) | ({"batch_size": self.batch_size} if self.batch_size else {})
        told = [f"{k}={v!r}" for k, v in sorted(given.items()) if not _is_same(usual.get(k, _NOTHING), v)]
        return f"ArtAttack({self.method.__name__}({', '.join(told)}))"

    @property
    def plan(self) -> Plan:
        """The attack of ART to build, whatever the ball."""
        arguments = dict(self.parameters)
        for name, value in arguments.items():
            if isinstance(value, tuple) and any(isinstance(v, ArtAttack) for v in value):
                arguments[name] = tuple(v.plan for v in value)
        return Plan(self.method, arguments)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, ball: Ball, *, targeted: bool) -> Tensor:  # noqa: D102
        if targeted and not _has_targets(self.method):
            raise ArgumentError(
                "target",
                "given",
                accepted=f"None: ART's {self.method.__name__} has no targeted form",
                hint="Leave `target` out, or choose another attack.",
            )
        _check_model(model, self.built_for)
        loud = bool(dict(self.parameters).get("verbose"))
        return run(lambda eps: self.plan, model, x, y, ball, targeted=targeted, name=repr(self), loud=loud)


_NOTHING = object()


def _is_same(a: object, b: object) -> bool:
    return type(a) is type(b) and not isinstance(a, np.ndarray) and a == b


def _has_targets(method: type) -> bool:
    from art.attacks.evasion import AutoAttack

    # AutoAttack's flag adds attacks on every other class; what it is given as y is a label to leave all the same.
    return "targeted" in arguments_of(method) and not issubclass(method, AutoAttack)


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
    from robust_plugins.adapters.art.evasion import Evasion

    if isinstance(attack, Evasion) and not parameters:
        return attack.attack  # it came from to_art
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
        if name not in arguments_of(method):
            known = arguments_of(method).keys() - OVERRIDDEN.keys() - set(MODEL)
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


def _parameters_of(attack: EvasionAttack) -> dict[str, Any]:
    """The arguments that a configured attack was constructed with, without those that the call sets."""
    found = {}
    for name in arguments_of(type(attack)).keys() - {*MODEL, *OVERRIDDEN, "verbose"}:
        # ART's dispatchers keep some of their parameters in the attack to which they dispatch.
        owner = attack if hasattr(attack, name) else getattr(attack, "_attack", None)
        if not hasattr(owner, name):
            raise ArgumentError(
                "attack",
                f"{of_type(attack)} whose `{name}` cannot be read",
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
