"""`recipe`, `recipes`: the mixed loss with the settings of published methods, by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from robust_plugins.balls import Ball
from robust_plugins.errors import ArgumentError, PluginError
from robust_plugins.hookspecs import Register, hookimpl
from robust_plugins.losses.combiners import MART, TRADES, MixedMargins, Powers, ThreeTerm
from robust_plugins.losses.mixed import MixedLoss, Schedule
from robust_plugins.losses.ramp import Ramp
from robust_plugins.losses.regularisers import Regulariser
from robust_plugins.losses.worst import Blended, SmallBox
from robust_plugins.plugins import ComponentInfo, Kind, attack, certifier, registry


def standard() -> MixedLoss:
    """The loss on clean inputs alone."""
    return MixedLoss(worst=None, gamma=1.0, ball=None)


def goodfellow(*, ball: Ball, gamma: float = 0.5) -> MixedLoss:
    """FGSM. Goodfellow et al. 2015, "Explaining and harnessing adversarial examples", section 6 (alpha = 0.5)."""
    return MixedLoss(worst="art:fgsm", gamma=gamma, ball=ball)


def madry(*, ball: Ball, gamma: float = 0.0, steps: int = 7) -> MixedLoss:
    """PGD with 7 steps of 2.5 eps / 7 from a random start, and no clean loss.

    Madry et al. 2018, "Towards deep learning models resistant to adversarial attacks" (7 steps on CIFAR-10).
    """
    return MixedLoss(worst=attack("art:pgd", steps=steps), gamma=gamma, ball=ball)


def fast(*, ball: Ball, gamma: float = 0.0) -> MixedLoss:
    """One step of 1.25 eps from a uniform start. Needs one eps for all samples.

    Wong et al. 2020, "Fast is better than free: revisiting adversarial training". The better of start and step is
    kept.
    """
    if isinstance(ball.radii, tuple):
        raise ArgumentError("ball.eps", "one per sample", accepted="a number", hint="The step is 1.25 times it.")
    step = 1.25 * ball.radii
    return MixedLoss(worst=attack("art:pgd", steps=1, step_size=step or None), gamma=gamma, ball=ball)


def trades(*, ball: Ball, beta: float = 6.0, steps: int = 10) -> MixedLoss:
    """`L(y, f(x)) + beta * KL(f(x) || f(x'))`, x' by PGD with 10 steps on the cross-entropy.

    Zhang et al. 2019, "Theoretically principled trade-off between robustness and accuracy", where x' maximises the
    divergence.
    """
    return MixedLoss(worst=attack("art:pgd", steps=steps), gamma=0.0, ball=ball, combiner=TRADES(beta=beta))


def mart(*, ball: Ball, weight: float = 5.0, steps: int = 10) -> MixedLoss:
    """Boosted cross-entropy and weighted divergence, by PGD with 10 steps.

    Wang et al. 2020, "Improving adversarial robustness requires revisiting misclassified examples".
    """
    return MixedLoss(worst=attack("art:pgd", steps=steps), gamma=0.0, ball=ball, combiner=MART(weight=weight))


def ibp(
    *,
    ball: Ball,
    epochs: int,
    gamma: float = 0.5,
    schedule: Schedule | None = None,
    certifier: str = "interval:ibp",
    regularisers: Sequence[Regulariser] = (),
) -> MixedLoss:
    """Interval bounds; eps and the weight of their loss, 1 - gamma, are ramped.

    Gowal et al. 2018, "On the effectiveness of interval bound propagation" (kappa from 1 to 0.5). The ramp of the
    recipes with bounds is smooth over the first 20 / 70 of the epochs, the share for MNIST of Mao et al. 2024,
    "CTBench", at 0.1; short runs want a longer share.
    """
    return MixedLoss(
        worst=certifier, gamma=gamma, ball=ball, schedule=schedule or _ramp(epochs), regularisers=regularisers
    )


def crown_ibp(*, ball: Ball, epochs: int, gamma: float = 0.5, schedule: Schedule | None = None) -> MixedLoss:
    """Margins `beta * CROWN-IBP + (1 - beta) * IBP`, beta from 1 to 0 along the ramp.

    Zhang et al. 2020, "Towards stable and efficient training of verifiably robust neural networks".
    """
    bounds = Blended(tight=certifier("interval:crown-ibp"), loose=certifier("interval:ibp"))
    return MixedLoss(worst=bounds, gamma=gamma, ball=ball, schedule=schedule or _ramp(epochs))


def sabr(
    *, ball: Ball, epochs: int, ratio: float = 0.4, steps: int = 8, gamma: float = 0.0, schedule: Schedule | None = None
) -> MixedLoss:
    """Interval bounds on boxes of radius `ratio * eps` around adversarial examples, by PGD with 8 steps.

    Müller et al. 2023, "Certified training: small boxes are all you need" (ratio 0.4 on MNIST at 0.1, 0.6 at 0.3).
    """
    box = SmallBox(attack=attack("art:pgd", steps=steps), certifier=certifier("interval:ibp"), ratio=ratio)
    return MixedLoss(worst=box, gamma=gamma, ball=ball, schedule=schedule or _ramp(epochs))


def mtl_ibp(
    *, ball: Ball, epochs: int, alpha: float = 0.5, steps: int = 8, gamma: float = 0.0, schedule: Schedule | None = None
) -> MixedLoss:
    """`alpha * L(IBP) + (1 - alpha) * L(PGD)`.

    De Palma et al. 2024, "Expressive losses for verified robustness via convex combinations" (alpha 0.5 on CIFAR-10 at
    8/255; where eps is small, alpha is far smaller). So are `cc-ibp` and `exp-ibp`.
    """
    combiner = ThreeTerm(attack=attack("art:pgd", steps=steps), alpha=alpha)
    return MixedLoss(
        worst="interval:ibp", gamma=gamma, ball=ball, schedule=schedule or _ramp(epochs), combiner=combiner
    )


def cc_ibp(
    *, ball: Ball, epochs: int, alpha: float = 0.5, steps: int = 8, gamma: float = 0.0, schedule: Schedule | None = None
) -> MixedLoss:
    """The loss of `alpha * IBP margins + (1 - alpha) * PGD margins`. De Palma et al. 2024."""
    combiner = MixedMargins(attack=attack("art:pgd", steps=steps), alpha=alpha)
    return MixedLoss(
        worst="interval:ibp", gamma=gamma, ball=ball, schedule=schedule or _ramp(epochs), combiner=combiner
    )


def exp_ibp(
    *, ball: Ball, epochs: int, alpha: float = 0.5, steps: int = 8, gamma: float = 0.0, schedule: Schedule | None = None
) -> MixedLoss:
    """`L(IBP)^alpha * L(PGD)^(1 - alpha)`. De Palma et al. 2024."""
    combiner = Powers(attack=attack("art:pgd", steps=steps), alpha=alpha)
    return MixedLoss(
        worst="interval:ibp", gamma=gamma, ball=ball, schedule=schedule or _ramp(epochs), combiner=combiner
    )


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

    Parameters may be part of the name: `"sabr(ratio=0.6)"`. Raises UnknownNameError for an unknown name or parameter,
    PluginError where the plugin failed or a backend is missing, ArgumentError for a parameter's value.
    """
    found = registry().create(Kind.LOSS, name, **parameters)
    if not isinstance(found, MixedLoss):
        raise PluginError(f"{Kind.LOSS} {name!r}: its factory returned {found!r}, which is no rp.MixedLoss")
    return found


def recipes() -> list[ComponentInfo]:
    """Every registered recipe, with its plugin and its parameters."""
    return registry().components(Kind.LOSS)


def _ramp(epochs: int) -> Ramp:
    return Ramp(start=0, end=epochs * 20 / 70)
