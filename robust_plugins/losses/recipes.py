"""`recipe`, `recipes`: the mixed loss with the settings of published methods, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from inspect import signature
from typing import Any

from robust_plugins.balls import Ball
from robust_plugins.decisions import registered as components
from robust_plugins.decisions.attack import Attack
from robust_plugins.errors import ArgumentError
from robust_plugins.harness.documentation import with_points
from robust_plugins.harness.parameters import plain
from robust_plugins.losses.batch import WorstCase
from robust_plugins.losses.combiners import MART, TRADES, Combiner, MixedMargins, Powers, ThreeTerm, Worst
from robust_plugins.losses.divergence import Diverging
from robust_plugins.losses.mixed import MixedLoss, Schedule
from robust_plugins.losses.ramp import Ramp
from robust_plugins.losses.regularisers import Regulariser
from robust_plugins.losses.worst import Blended, SmallBox
from robust_plugins.registry.hookspecs import Register, hookimpl
from robust_plugins.registry.information import ComponentInfo, Kind
from robust_plugins.registry.naming import parse_component
from robust_plugins.registry.registry import build, registry

IBP = "interval:ibp"
SHARED = ("ball", "epochs", "regularisers", "task")
"""What `recipe` takes for every recipe, whether it has a parameter of that name or not."""

PARAMETERS = {
    "ball": "the set of inputs around each sample whose worst case is trained on.",
    "epochs": "how long training will be; the ramp takes a share of it.",
    "gamma": "the weight of the clean loss beside that of the worst case, 1 - gamma.",
    "beta": "the weight of the divergence.",
    "weight": "that of the divergence, the paper's lambda.",
    "ratio": "the radius of the boxes that are bounded, as a share of that of the ball.",
    "alpha": "the share of the bounds; the attack has the rest.",
    "steps": "how many the attack makes.",
    "step": "their length, in units of eps.",
    "schedule": "how eps and the weights grow; None is the ramp that `rp.recipe('ibp', ...)` describes.",
    "certifier": "the bounds, by name; they must be differentiable.",
    "regularisers": "terms that are added to the loss.",
}
"""What parameters of the recipes are, where a recipe's docstring says nothing else of them."""


def explained(factory: Callable[..., MixedLoss]) -> Callable[..., MixedLoss]:
    """A recipe whose docstring, which `describe` prints, says what each parameter is."""
    points = [f"- `{name}`: {PARAMETERS[name]}" for name in signature(factory).parameters]
    factory.__doc__ = with_points(factory.__doc__ or "", points)
    return factory


def standard() -> MixedLoss:
    """The loss on clean inputs alone."""
    return MixedLoss(worst=None, gamma=1.0, ball=None)


@explained
def goodfellow(*, ball: Ball, gamma: float = 0.5) -> MixedLoss:
    """FGSM. Goodfellow et al. 2015, "Explaining and harnessing adversarial examples", section 6 (alpha = 0.5)."""
    return MixedLoss(worst=components.first_available("art:fgsm", "rp:fgsm"), gamma=gamma, ball=ball)


@explained
def madry(*, ball: Ball, gamma: float = 0.0, steps: int = 7, step: float = 2 / 8) -> MixedLoss:
    """PGD with 7 steps of a quarter of eps from a random start, and no clean loss.

    Madry et al. 2018, "Towards deep learning models resistant to adversarial attacks", on CIFAR-10: steps of 2 for an
    eps of 8; on MNIST, 40 steps of 0.01 for an eps of 0.3. `step` is in units of eps, here and below.
    """
    return MixedLoss(worst=_pgd(steps, step), gamma=gamma, ball=ball)


@explained
def fast(*, ball: Ball, gamma: float = 0.0, step: float = 1.25) -> MixedLoss:
    """One step of 1.25 eps from a uniform start.

    Wong et al. 2020, "Fast is better than free: revisiting adversarial training".
    """
    return MixedLoss(worst=_pgd(1, step), gamma=gamma, ball=ball)


@explained
def trades(*, ball: Ball, beta: float = 6.0, steps: int = 10, step: float = 0.007 / 0.031) -> MixedLoss:
    """`L(y, f(x)) + beta * KL(f(x) || f(x'))`, x' by 10 steps up the divergence.

    Zhang et al. 2019, "Theoretically principled trade-off between robustness and accuracy", on CIFAR-10 (1 / lambda of
    6); on MNIST beta is 1, and there are 40 steps of 0.01 for an eps of 0.3.
    """
    return MixedLoss(worst=Diverging(steps=steps, step=step), gamma=0.0, ball=ball, combiner=TRADES(beta=beta))


@explained
def mart(*, ball: Ball, weight: float = 5.0, steps: int = 10, step: float = 0.007 / 0.031) -> MixedLoss:
    """Boosted cross-entropy and weighted divergence, by PGD with 10 steps.

    Wang et al. 2020, "Improving adversarial robustness requires revisiting misclassified examples" (lambda of 5). There
    PGD starts next to x, here anywhere in the ball.
    """
    return MixedLoss(worst=_pgd(steps, step), gamma=0.0, ball=ball, combiner=MART(weight=weight))


@explained
def ibp(
    *,
    ball: Ball,
    epochs: int,
    gamma: float = 0.5,
    schedule: Schedule | None = None,
    certifier: str = IBP,
    regularisers: Sequence[Regulariser] = (),
) -> MixedLoss:
    """Interval bounds; eps and the weight of their loss, 1 - gamma, are ramped.

    Gowal et al. 2018, "On the effectiveness of interval bound propagation" (kappa from 1 to 0.5). The ramp of the
    recipes with bounds is smooth over the first 20 / 70 of the epochs, the share for MNIST of Mao et al. 2024,
    "CTBench", at 0.1; short runs want a longer share. `certifier` is any whose bounds are differentiable, in all of
    them: `interval:ibp` bounds the box around an L2 or L1 ball, `lirpa:ibp` the ball itself.
    """
    return _certified(certifier, ball, epochs, gamma, schedule, regularisers)


@explained
def crown_ibp(
    *,
    ball: Ball,
    epochs: int,
    gamma: float = 0.5,
    schedule: Schedule | None = None,
    certifier: str = IBP,
    regularisers: Sequence[Regulariser] = (),
) -> MixedLoss:
    """Margins `beta * CROWN-IBP + (1 - beta) * IBP`, beta from 1 to 0 along the ramp.

    Zhang et al. 2020, "Towards stable and efficient training of verifiably robust neural networks". `certifier` is the
    cheap one of the two.
    """
    bounds = Blended(tight=components.certifier("interval:crown-ibp"), loose=components.certifier(certifier))
    return _certified(bounds, ball, epochs, gamma, schedule, regularisers)


@explained
def sabr(
    *,
    ball: Ball,
    epochs: int,
    ratio: float = 0.4,
    steps: int = 8,
    gamma: float = 0.0,
    schedule: Schedule | None = None,
    certifier: str = IBP,
    regularisers: Sequence[Regulariser] = (),
) -> MixedLoss:
    """Interval bounds on boxes of radius `ratio * eps` around adversarial examples, by PGD with 8 steps.

    Müller et al. 2023, "Certified training: small boxes are all you need" (ratio 0.4 on MNIST at 0.1, 0.6 at 0.3). The
    paper's steps shrink from eps / 2 on; these are 2.5 eps / 8 each. Here and in the recipes below the ramp is that of
    eps alone: `gamma`, the weight of the clean loss, is the same throughout. Where a ramp is short for its radius, a
    clean loss that gives way along it certifies more: `dataclasses.replace(loss, gamma=0.0)`.
    """
    attack = components.attack(components.first_available("art:pgd", "rp:pgd"), steps=steps, best=False)
    box = SmallBox(attack=attack, certifier=components.certifier(certifier), ratio=ratio)
    return _certified(box, ball, epochs, _steady(gamma), schedule, regularisers)


@explained
def mtl_ibp(
    *,
    ball: Ball,
    epochs: int,
    alpha: float = 0.5,
    steps: int = 1,
    step: float = 10.0,
    gamma: float = 0.0,
    schedule: Schedule | None = None,
    certifier: str = IBP,
    regularisers: Sequence[Regulariser] = (),
) -> MixedLoss:
    """`alpha * L(IBP) + (1 - alpha) * L(PGD)`.

    De Palma et al. 2024, "Expressive losses for verified robustness via convex combinations": one step of 10 eps from a
    random start, which ends in a corner of the box, and alpha 0.5 as on CIFAR-10 at 8/255; so do `cc-ibp` and
    `exp-ibp`. For networks that branch and bound is to certify, the paper takes far smaller ones: on MNIST 0.01
    (`cc-ibp` 0.1) at 0.1, trained with twice the eps, and 0.08 (0.3) at 0.3, with 1.334 times; and an L1 of 1e-5 to
    1e-6.
    """
    combiner = ThreeTerm(attack=_pgd(steps, step), alpha=alpha)
    return _certified(certifier, ball, epochs, _steady(gamma), schedule, regularisers, combiner)


@explained
def cc_ibp(
    *,
    ball: Ball,
    epochs: int,
    alpha: float = 0.5,
    steps: int = 1,
    step: float = 10.0,
    gamma: float = 0.0,
    schedule: Schedule | None = None,
    certifier: str = IBP,
    regularisers: Sequence[Regulariser] = (),
) -> MixedLoss:
    """The loss of `alpha * IBP margins + (1 - alpha) * PGD margins`. De Palma et al. 2024."""
    combiner = MixedMargins(attack=_pgd(steps, step), alpha=alpha)
    return _certified(certifier, ball, epochs, _steady(gamma), schedule, regularisers, combiner)


@explained
def exp_ibp(
    *,
    ball: Ball,
    epochs: int,
    alpha: float = 0.5,
    steps: int = 1,
    step: float = 10.0,
    gamma: float = 0.0,
    schedule: Schedule | None = None,
    certifier: str = IBP,
    regularisers: Sequence[Regulariser] = (),
) -> MixedLoss:
    """`L(IBP)^alpha * L(PGD)^(1 - alpha)`. De Palma et al. 2024."""
    combiner = Powers(attack=_pgd(steps, step), alpha=alpha)
    return _certified(certifier, ball, epochs, _steady(gamma), schedule, regularisers, combiner)


@hookimpl
def register_losses(register: Register) -> None:
    """Registers the recipes of this package."""
    register("standard", standard)
    register("goodfellow", goodfellow)
    register("madry", madry)
    register("fast", fast)
    register("trades", trades)
    register("mart", mart)
    register("ibp", ibp)
    register("crown-ibp", crown_ibp)
    register("sabr", sabr)
    register("mtl-ibp", mtl_ibp)
    register("cc-ibp", cc_ibp)
    register("exp-ibp", exp_ibp)


def recipe(name: str, /, **parameters: Any) -> MixedLoss:
    """The loss registered as `name`, for example `rp.recipe("ibp", ball=ball, epochs=10)`.

    Parameters may be part of the name: `"sabr(ratio=0.6)"`. Every recipe takes four: `ball` and `epochs`, how long
    training will be, for which one that is plain, or has no ramp, has no use; `regularisers` and `task`, as
    `rp.MixedLoss` does. Raises UnknownNameError for an unknown name or parameter, PluginError where the plugin failed
    or a backend is missing, ArgumentError for a parameter's value.

    >>> loss = rp.recipe("ibp", ball=rp.Linf(eps=0.1, clip=(0, 1)), epochs=10)
    >>> loss.worst, loss.gamma
    ('interval:ibp', 0.5)
    """
    base, written = parse_component(name)
    given = {parameter: plain(value) for parameter, value in (written | parameters).items()}
    known = next((info.parameters for info in recipes() if info.name == base), None)
    shared = (
        {} if known is None or "**" in known else {k: given.pop(k) for k in SHARED if k in given and k not in known}
    )
    if "epochs" in shared:
        _check_epochs(shared["epochs"])
    if not isinstance(shared.get("ball"), Ball | None):
        raise ArgumentError("ball", repr(shared["ball"]), accepted="rp.Linf, rp.L2 or rp.L1", hint="Say over what.")
    loss = build(Kind.LOSS, MixedLoss, base, **given)
    added = {name: shared[name] for name in ("regularisers", "task") if name in shared}
    return replace(loss, **added) if added else loss


def recipes() -> list[ComponentInfo]:
    """Every registered recipe, with its plugin and its parameters."""
    return registry().components(Kind.LOSS)


def _pgd(steps: int, step: float) -> Attack:
    name = components.first_available("art:pgd", "rp:pgd")
    return components.attack(name, steps=steps, relative_step=step, best=False)


def _certified(
    worst: str | WorstCase,
    ball: Ball,
    epochs: int,
    gamma: float | Schedule,
    schedule: Schedule | None,
    regularisers: Sequence[Regulariser],
    combiner: Combiner | None = None,
) -> MixedLoss:
    _check_epochs(epochs)
    return MixedLoss(
        worst=worst,
        gamma=gamma,
        ball=ball,
        schedule=schedule or Ramp(start=0, end=epochs * 20 / 70),
        combiner=combiner or Worst(),
        regularisers=regularisers,
    )


def _check_epochs(epochs: object) -> None:
    if not isinstance(epochs, int) or isinstance(epochs, bool) or epochs < 1:
        raise ArgumentError(
            "epochs", repr(epochs), accepted="an integer of at least 1", hint="As many as will be trained."
        )


def _steady(gamma: float) -> Schedule:
    """The same number in every epoch, where a number would be ramped."""
    if not (isinstance(gamma, int | float) and 0 <= gamma <= 1):
        raise ArgumentError("gamma", repr(gamma), accepted="a number in [0, 1]", hint="0 is no clean loss.")
    return Ramp(start=0, end=0, first=gamma, last=gamma)
