"""`to_art`: attacks, losses and certifiers of this package where a script of ART wants its own. Imports ART late."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

from robust_plugins.adapters.art.certified import Certified
from robust_plugins.adapters.art.model import module_of
from robust_plugins.balls import Ball
from robust_plugins.decisions.attack import Attack
from robust_plugins.decisions.certifier import Certifier
from robust_plugins.errors import ArgumentError, PluginError
from robust_plugins.losses import MixedLoss
from robust_plugins.registry.information import Kind
from robust_plugins.registry.registry import registry

if TYPE_CHECKING:
    from robust_plugins.adapters.art.evasion import Evasion
    from robust_plugins.adapters.art.trainer import MixedTrainer


@overload
def to_art(
    component: Attack, estimator: Any, *, ball: Ball, targeted: bool = ..., minimal: bool = ..., seed: int | None = ...
) -> Evasion: ...
@overload
def to_art(component: MixedLoss, estimator: Any) -> MixedTrainer: ...
@overload
def to_art(component: Certifier, estimator: Any, *, ball: Ball) -> Certified: ...
@overload
def to_art(component: str, estimator: Any, *, ball: Ball, targeted: bool = ..., minimal: bool = ...,
           seed: int | None = ...) -> Any: ...  # fmt: skip
def to_art(
    component: str | Attack | Certifier | MixedLoss,
    estimator: Any,
    *,
    ball: Ball | None = None,
    targeted: bool = False,
    minimal: bool = False,
    seed: int | None = None,
) -> Any:
    """The way back from `from_art`: a component as an object of ART's, for its trainers, metrics and evaluations.

        attack = rp.to_art("rp:margin-pgd", classifier, ball=rp.Linf(eps=0.1, clip=(0, 1)))
        AdversarialTrainer(classifier, attack).fit(x, y)
        adversarial_accuracy(classifier, x, y, attack_crafter=attack)

        rp.to_art(rp.recipe("ibp", ball=ball, epochs=20), classifier).fit(x, y, nb_epochs=20)
        classes, radii = rp.to_art("interval:crown", classifier, ball=ball).certify(x)

    - `component`: an attack, which becomes an `art.attacks.EvasionAttack` (`generate` takes and gives numpy arrays);
      an `rp.MixedLoss`, which becomes an `art.defences.trainer.Trainer`; or a certifier, which becomes an object whose
      `certify` and `adversarial_accuracy` are what ART's estimate is held against. Attacks and certifiers also by name.
    - `estimator`: a PyTorchClassifier of ART. Its normalisation is part of what is attacked, trained and certified.
    - `ball`: the perturbations; a loss has its own.
    - `targeted`, `minimal`, `seed`: of attacks. Whether labels are to be reached; whether the nearest example is looked
      for, as by `rp.minimal`, which ART's metrics ask for by `set_params(minimal=True)`; and the seed of every call,
      where None draws one from numpy's global state.

    Raises ArgumentError for anything else, for an estimator that is more than a network behind a normalisation, and
    for a ball whose clip range is not the estimator's; PluginError where ART is missing.
    """
    try:
        import art  # noqa: F401
    except ImportError as error:
        raise PluginError("to_art needs art, which cannot be imported; install it: "
                          "pip install 'robust_plugins[art]'") from error  # fmt: skip
    if isinstance(component, str):
        component = registry().create(registry().kind_of(component, (Kind.ATTACK, Kind.CERTIFIER)), component)
    if not isinstance(component, Attack | Certifier | MixedLoss):
        raise ArgumentError(
            "component", repr(component), accepted="an attack, a certifier or an rp.MixedLoss",
            hint="For example rp.attack('rp:pgd'), or rp.recipe('madry', ball=ball).",
        )  # fmt: skip
    if not isinstance(component, Attack):
        for name, given in (("targeted", targeted), ("minimal", minimal), ("seed", seed is not None)):
            if given:
                raise ArgumentError(name, "given", accepted="nothing: it is of attacks", hint=f"Leave `{name}` out.")
    if isinstance(component, MixedLoss):
        if ball is not None:
            raise ArgumentError("ball", "given", accepted="nothing: a loss has its own", hint="Leave `ball` out.")
        ball = component.ball
    elif not isinstance(ball, Ball):
        raise ArgumentError("ball", repr(ball), accepted="rp.Linf, rp.L2, rp.L1 or rp.Box",
                            hint="For example ball=rp.Linf(eps=8 / 255, clip=(0, 1)).")  # fmt: skip
    if module_of(estimator, ball) is None:
        raise ArgumentError(
            "estimator", type(estimator).__name__, accepted="a PyTorchClassifier of ART",
            hint="A torch.nn.Module needs no to_art: rp.attack and rp.certifier take it as it is.",
        )  # fmt: skip
    if isinstance(component, MixedLoss):
        from robust_plugins.adapters.art.trainer import MixedTrainer

        return MixedTrainer(estimator, component)
    assert ball is not None  # only a loss comes without one
    if isinstance(component, Certifier):
        return Certified(estimator=estimator, certifier=component, ball=ball)
    from robust_plugins.adapters.art.evasion import Evasion

    return Evasion(estimator, attack=component, ball=ball, targeted=targeted, minimal=minimal, seed=seed)
