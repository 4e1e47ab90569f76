"""Attacks of ART that need no gradients: they ask the model for logits, or for decisions alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import ClassVar

from torch import Tensor, nn

from robust_plugins.adapters.art.running import Plan, run
from robust_plugins.adapters.checks import check_clip, check_counts, check_norm, check_positive, check_untargeted
from robust_plugins.adapters.views import Clamped, as_squares, stretched
from robust_plugins.balls import Ball, Linf
from robust_plugins.decisions.attack import Attack
from robust_plugins.errors import ArgumentError


@dataclass(frozen=True, kw_only=True)
class Square(Attack):
    """Random squares of ever smaller size, each kept where it lowers the margin; asks for logits.

    Andriushchenko et al. 2020, "Square attack: a query-efficient black-box adversarial attack via random search",
    algorithms 2 and 3. L-infinity and L2 balls with a clip range; untargeted only. Inputs that are no square images,
    or too small, are padded to such ones, and the model never sees the padding.

    - `queries` >= 1, per restart: how many squares are tried; `restarts` >= 1.
    - `share` in (0, 1): the share of the image that the first squares cover.
    """

    black_box: ClassVar[bool] = True

    queries: int = 1000
    restarts: int = 1
    share: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(queries=self.queries, restarts=self.restarts)
        if not 0 < self.share < 1:
            raise ArgumentError(
                "share", repr(self.share), accepted="a number between 0 and 1", hint="0.8 in the paper."
            )

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, ball: Ball, *, targeted: bool) -> Tensor:  # noqa: D102
        check_untargeted("art:square", targeted)
        check_norm("art:square", ball, inf, 2.0)
        check_clip("art:square", ball, "ART cuts every square to it")
        plan = square(self.queries, self.restarts, self.share, self.batch_size)
        view = as_squares(model, x, ball, lambda side: _roomy(side, self.share, ball))
        found = run(lambda eps: plan, view.model, view.x, y, view.ball, targeted=False, name="art:square", sparing=True)
        return ball.project(view.back(found), x)


def square(queries: int, restarts: int, share: float, batch_size: int | None) -> Plan:
    """ART's Square attack."""
    from art.attacks.evasion import SquareAttack

    arguments = {"max_iter": queries, "nb_restarts": restarts, "p_init": share, "batch_size": batch_size}
    return Plan(SquareAttack, arguments)


def _roomy(side: int, share: float, ball: Ball) -> int:
    """The side of an image in which ART has a place for its first square: it needs one pixel more than the square.

    In L2 its squares have an odd side of at least 3, and its start divides the image into 5 x 5 tiles of 2 pixels.
    """
    if not isinstance(ball, Linf):
        side = max(side, 10)
        while 2 * (round(share**0.5 * side) // 2) + 1 >= side:
            side += 1
        return side
    while round(share**0.5 * side) >= side:
        side += 1
    return side


@dataclass(frozen=True, kw_only=True)
class HopSkipJump(Attack):
    """Walks along the decision boundary towards `x`, by gradients estimated from decisions alone.

    Chen et al. 2020, "HopSkipJumpAttack: a query-efficient decision-based attack", algorithm 2. L-infinity and L2
    balls with a clip range, from which the first points are drawn; targeted or not, but it starts only where a random
    point has the target. Samples go one by one, so it is slow: tens of thousands of queries each.

    - `steps` >= 1 along the boundary.
    - `first_queries`, `most_queries` >= 1: per gradient, growing with the root of the step.
    - `tries` >= 1: random points drawn for the start.
    """

    black_box: ClassVar[bool] = True

    steps: int = 50
    first_queries: int = 100
    most_queries: int = 10_000
    tries: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(
            steps=self.steps, first_queries=self.first_queries, most_queries=self.most_queries, tries=self.tries
        )

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, ball: Ball, *, targeted: bool) -> Tensor:  # noqa: D102
        from art.attacks.evasion import HopSkipJump

        check_norm("art:hopskipjump", ball, inf, 2.0)
        arguments = {
            "max_iter": self.steps,
            "init_eval": self.first_queries,
            "max_eval": self.most_queries,
            "init_size": self.tries,
        }
        return _decided(self, "art:hopskipjump", HopSkipJump, arguments, model, x, y, ball, targeted)


@dataclass(frozen=True, kw_only=True)
class Boundary(Attack):
    """Walks along the decision boundary towards `x` by random steps, from decisions alone, in L2.

    Brendel et al. 2018, "Decision-based adversarial attacks: reliable attacks against black-box machine learning
    models", algorithm 1. Needs a clip range, from which the first points are drawn; targeted or not, but it starts only
    where a random point has the target. What it finds is projected onto balls of other norms. Samples go one by one.

    - `steps` >= 1; `trials` >= 1 per step, each of `directions` >= 1 random points.
    - `orthogonal_step`, `forward_step` > 0: the first step lengths, in units of the distance left.
    - `tries` >= 1: random points drawn for the start.
    """

    black_box: ClassVar[bool] = True

    steps: int = 1000
    trials: int = 25
    directions: int = 20
    orthogonal_step: float = 0.01
    forward_step: float = 0.01
    tries: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(steps=self.steps, trials=self.trials, directions=self.directions, tries=self.tries)
        check_positive(orthogonal_step=self.orthogonal_step, forward_step=self.forward_step)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, ball: Ball, *, targeted: bool) -> Tensor:  # noqa: D102
        from art.attacks.evasion import BoundaryAttack

        arguments = {
            "max_iter": self.steps,
            "num_trial": self.trials,
            "sample_size": self.directions,
            "delta": self.orthogonal_step,
            "epsilon": self.forward_step,
            "init_size": self.tries,
        }
        return _decided(self, "art:boundary", BoundaryAttack, arguments, model, x, y, ball, targeted)


def _decided(
    attack: Attack, name: str, method: type, arguments: Mapping[str, float], model: nn.Module, x: Tensor, y: Tensor,
    ball: Ball, targeted: bool,
) -> Tensor:  # fmt: skip
    check_clip(name, ball, "its first points are drawn from it")
    view = stretched(model, x, ball)  # the tolerances of ART's bisections suit [0, 1]
    plan = Plan(method, {**arguments, "batch_size": attack.batch_size})
    found = run(lambda eps: plan, view.model, view.x, y, view.ball, targeted=targeted, name=name, sparing=True)
    return ball.project(view.back(found), x)


@dataclass(frozen=True, kw_only=True)
class ZOO(Attack):
    """Carlini and Wagner's L2 attack with derivatives of random coordinates estimated from differences of logits.

    Chen et al. 2017, "ZOO: zeroth order optimization based black-box attacks", algorithm 2, without its resizing of
    images; targeted or not. Needs a clip range: ART clips the *perturbation* to it, so that on inputs in [0, 1] it
    could only ever raise them, and cuts its points to it too late. Here ART sees inputs in [-1, 1], and the model
    points inside. What it finds is projected onto balls of other norms.

    - `steps` >= 1, for each constant; `searches` >= 1, how many constants are tried.
    - `coordinates` >= 1: so many derivatives per step, at most one for each feature.
    - `first_constant`, `learning_rate`, `difference` > 0: the first weight of the margin, Adam's step, and the distance
      of the two queries, on inputs in [-1, 1].
    """

    black_box: ClassVar[bool] = True

    steps: int = 100
    searches: int = 3
    coordinates: int = 128
    first_constant: float = 0.1
    learning_rate: float = 0.02
    difference: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(steps=self.steps, searches=self.searches, coordinates=self.coordinates)
        check_positive(first_constant=self.first_constant, learning_rate=self.learning_rate, difference=self.difference)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, ball: Ball, *, targeted: bool) -> Tensor:  # noqa: D102
        from art.attacks.evasion import ZooAttack

        check_clip("art:zoo", ball, "ART clips to it")
        arguments = {
            "max_iter": self.steps,
            "binary_search_steps": self.searches,
            "nb_parallel": min(self.coordinates, x[0].numel()),
            "initial_const": self.first_constant,
            "learning_rate": self.learning_rate,
            "variable_h": self.difference,
            "abort_early": False,
            "use_resize": False,
            "use_importance": False,
            "batch_size": 1,
        }
        span = (-1.0, 1.0)
        view = stretched(model, x, ball, span)
        found = run(
            lambda eps: Plan(ZooAttack, arguments),
            Clamped(view.model, span), view.x, y, view.ball, targeted=targeted, name="art:zoo", sparing=True,
            queries=2 * self.coordinates if self.batch_size is None else self.batch_size,
        )  # fmt: skip
        return ball.project(view.back(found), x)
