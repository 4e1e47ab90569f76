"""Attacks of foolbox by their methods; which of its classes runs is decided by the norm of the ball.

Inputs of any range are shown to it in [0, 1]; the ball needs a clip range for that. Steps are in units of each sample's
eps.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from dataclasses import dataclass
from math import inf
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from robust_plugins.adapters.checks import check_counts, check_positive
from robust_plugins.adapters.wrapped import Stepped, Wrapped
from robust_plugins.balls import Ball
from robust_plugins.errors import ArgumentError

PREFIXES = {inf: "Linf", 2.0: "L2", 1.0: "L1"}

BEYOND = 1.01
"""What `foolbox:fmn` projects onto in L2 and L1, in radii: steps of exactly that length end at the boundary, where
rounding decides whether it is ever crossed."""


@dataclass(frozen=True, kw_only=True)
class FoolboxAttack(Wrapped):
    """An attack of foolbox, which `build` makes."""

    norms: ClassVar[tuple[float, ...]] = (inf, 2.0, 1.0)

    @abstractmethod
    def build(self, attacks: ModuleType, ball: Ball) -> Any:
        """The attack of foolbox, from its module of attacks, for a ball of one radius."""

    def generate(  # noqa: D102
        self, model: nn.Module, x: Tensor, y: Tensor, ball: Ball, *, targeted: bool, classes: int
    ) -> Tensor:
        foolbox = _foolbox()
        criteria = foolbox.criteria
        criterion = criteria.TargetedMisclassification(y) if targeted else criteria.Misclassification(y)
        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device)
        found: Tensor = self.build(foolbox.attacks, ball)(wrapped, x, criterion, epsilons=ball.radii)[1]
        return found


@dataclass(frozen=True, kw_only=True)
class FGSM(FoolboxAttack):
    """One step of length eps along the steepest direction of the ball's norm, by foolbox; untargeted."""

    name: ClassVar[str] = "foolbox:fgsm"
    targets: ClassVar[bool] = False

    def build(self, attacks: ModuleType, ball: Ball) -> Any:  # noqa: D102
        return getattr(attacks, f"{PREFIXES[ball.norm]}FastGradientAttack")()


@dataclass(frozen=True, kw_only=True)
class PGD(FoolboxAttack, Stepped):
    """Projected gradient descent on cross-entropy from a random start, by foolbox; the last iterate counts.

    `steps` >= 1 of length `relative_step` > 0 in units of eps, 2.5 / steps where it is None.
    """

    name: ClassVar[str] = "foolbox:pgd"

    def build(self, attacks: ModuleType, ball: Ball) -> Any:  # noqa: D102
        return getattr(attacks, f"{PREFIXES[ball.norm]}PGD")(steps=self.steps, rel_stepsize=self.length)


@dataclass(frozen=True, kw_only=True)
class _Nearest(FoolboxAttack):
    nearest: ClassVar[bool] = True

    steps: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(steps=self.steps)


@dataclass(frozen=True, kw_only=True)
class FMN(_Nearest):
    """The fast minimum-norm attack by foolbox: gradient steps while the radius shrinks and grows; `steps` >= 1.

    In L2, foolbox 3.3.4 never shortens an iterate to the radius (it divides a norm by itself), so that its first
    example, about a step away, stays its best; and on piecewise linear networks its steps in L2 and L1 end at the
    boundary without crossing it. Here iterates are projected in L2, and radii of both norms are a hundredth longer.
    """

    name: ClassVar[str] = "foolbox:fmn"

    def build(self, attacks: ModuleType, ball: Ball) -> Any:  # noqa: D102
        attack = getattr(attacks, f"{'LInf' if ball.norm == inf else PREFIXES[ball.norm]}FMNAttack")(steps=self.steps)
        if ball.norm != inf:
            onto = _onto_l2 if ball.norm == 2 else attack.project
            attack.project = lambda *, x, x0, epsilon: onto(x=x, x0=x0, epsilon=BEYOND * epsilon)
        return attack


@dataclass(frozen=True, kw_only=True)
class DDN(_Nearest):
    """The decoupled direction and norm attack by foolbox, for L2; `steps` >= 1."""

    name: ClassVar[str] = "foolbox:ddn"
    norms: ClassVar[tuple[float, ...]] = (2.0,)

    def build(self, attacks: ModuleType, ball: Ball) -> Any:  # noqa: D102
        return attacks.DDNAttack(steps=self.steps)


@dataclass(frozen=True, kw_only=True)
class DeepFool(_Nearest):
    """DeepFool by foolbox, for L-infinity and L2, untargeted; `steps` >= 1, `overshoot` > 0 of the way beyond."""

    name: ClassVar[str] = "foolbox:deepfool"
    norms: ClassVar[tuple[float, ...]] = (inf, 2.0)
    targets: ClassVar[bool] = False

    overshoot: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(overshoot=self.overshoot)

    def build(self, attacks: ModuleType, ball: Ball) -> Any:  # noqa: D102
        return getattr(attacks, f"{PREFIXES[ball.norm]}DeepFoolAttack")(steps=self.steps, overshoot=self.overshoot)


@dataclass(frozen=True, kw_only=True)
class _Searched(_Nearest):
    searches: int = 9
    first_constant: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(searches=self.searches)
        check_positive(first_constant=self.first_constant)

    def arguments(self) -> dict[str, Any]:
        """The arguments that Carlini and Wagner's attack and the elastic net have in common."""
        return {
            "binary_search_steps": self.searches,
            "steps": self.steps,
            "initial_const": self.first_constant,
        }


@dataclass(frozen=True, kw_only=True)
class CW(_Searched):
    """Carlini and Wagner's L2 attack by foolbox.

    `steps` >= 1 for each of `searches` >= 1 constants, of which `first_constant` > 0 is the first.
    """

    name: ClassVar[str] = "foolbox:cw"
    norms: ClassVar[tuple[float, ...]] = (2.0,)

    def build(self, attacks: ModuleType, ball: Ball) -> Any:  # noqa: D102
        return attacks.L2CarliniWagnerAttack(**self.arguments())


@dataclass(frozen=True, kw_only=True)
class EAD(_Searched):
    """The elastic-net attack by foolbox, with its decision rule for L1.

    `steps` >= 1 for each of `searches` >= 1 constants, of which `first_constant` > 0 is the first.
    """

    name: ClassVar[str] = "foolbox:ead"
    norms: ClassVar[tuple[float, ...]] = (1.0,)

    def build(self, attacks: ModuleType, ball: Ball) -> Any:  # noqa: D102
        return attacks.EADAttack(decision_rule="L1", **self.arguments())


@dataclass(frozen=True, kw_only=True)
class _Started(_Nearest):
    """Walks along the boundary from a random point that is a success; samples for which none is found stay."""

    tries: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(tries=self.tries)

    def generate(self, model: nn.Module, x: Tensor, y: Tensor, ball: Ball, *, targeted: bool, classes: int) -> Tensor:
        foolbox = _foolbox()
        starts, open_ = x.clone(), torch.ones_like(y, dtype=torch.bool)
        for _ in range(self.tries):
            drawn = torch.rand_like(x)
            with torch.no_grad():
                hit = open_ & ((model(drawn).argmax(1) == y) == targeted)
            starts[hit] = drawn[hit]
            open_ &= ~hit
            if not open_.any():
                break
        found = x.clone()
        if bool((~open_).any()):
            part = ~open_
            criteria = foolbox.criteria
            criterion = (criteria.TargetedMisclassification if targeted else criteria.Misclassification)(y[part])
            wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device)
            attack = self.build(foolbox.attacks, ball)
            found[part] = attack(wrapped, x[part], criterion, epsilons=ball.radii, starting_points=starts[part])[1]
        return found


@dataclass(frozen=True, kw_only=True)
class HopSkipJump(_Started):
    """Walks along the boundary by gradients estimated from decisions alone, by foolbox, for L-infinity and L2.

    `steps` >= 1; `first_queries`, `most_queries` >= 1 for each gradient; `tries` >= 1 random points for the start.
    """

    name: ClassVar[str] = "foolbox:hopskipjump"
    norms: ClassVar[tuple[float, ...]] = (inf, 2.0)

    steps: int = 64
    first_queries: int = 100
    most_queries: int = 10_000

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(first_queries=self.first_queries, most_queries=self.most_queries)
        if self.most_queries < self.first_queries:
            raise ArgumentError(
                "most_queries", f"{self.most_queries} with first_queries={self.first_queries}",
                accepted="at least first_queries", hint="Queries grow with the root of the step.",
            )  # fmt: skip

    def build(self, attacks: ModuleType, ball: Ball) -> Any:  # noqa: D102
        return attacks.HopSkipJumpAttack(
            steps=self.steps, initial_gradient_eval_steps=self.first_queries,
            max_gradient_eval_steps=self.most_queries, constraint=PREFIXES[ball.norm].lower(),
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Boundary(_Started):
    """Walks along the boundary by random steps, from decisions alone, by foolbox, for L2.

    `steps` >= 1; `tries` >= 1 random points for the start.
    """

    name: ClassVar[str] = "foolbox:boundary"
    norms: ClassVar[tuple[float, ...]] = (2.0,)

    steps: int = 1000

    def build(self, attacks: ModuleType, ball: Ball) -> Any:  # noqa: D102
        return attacks.BoundaryAttack(steps=self.steps)


def _onto_l2(*, x: Any, x0: Any, epsilon: Any) -> Any:
    """The points nearest to `x` in the L2 balls around `x0`, tensors of eagerpy as foolbox passes them."""
    step = x.raw - x0.raw
    norm = torch.linalg.vector_norm(step.flatten(1), dim=1).clamp(min=torch.finfo(step.dtype).tiny)
    scale = (epsilon.raw / norm).clamp(max=1).view(-1, *[1] * (step.dim() - 1))
    return x0 + type(x)(step * scale)


def _foolbox() -> ModuleType:
    with warnings.catch_warnings():  # it imports a name of scipy from where it was before
        warnings.simplefilter("ignore", DeprecationWarning)
        import foolbox
    module: ModuleType = foolbox
    return module
