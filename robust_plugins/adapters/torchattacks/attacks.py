"""Attacks of torchattacks by the names of their classes there, with the parameters that decide their strength.

Inputs of any range are shown to it in [0, 1], to which it clamps; the ball needs a clip range for that. Steps are in
units of each sample's eps.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from math import inf
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from robust_plugins.adapters.checks import check_counts, check_positive
from robust_plugins.adapters.wrapped import Stepped, Wrapped
from robust_plugins.balls import Ball, Linf
from robust_plugins.errors import ArgumentError

Loss = Literal["ce", "dlr"]


@dataclass(frozen=True, kw_only=True)
class Torchattack(Wrapped):
    """An attack of torchattacks, which `build` makes."""

    images: ClassVar[bool] = True

    @abstractmethod
    def build(self, model: nn.Module, ball: Ball, classes: int) -> Any:
        """The attack of torchattacks for a model of inputs in [0, 1] and a ball of one radius."""

    def generate(  # noqa: D102
        self, model: nn.Module, x: Tensor, y: Tensor, ball: Ball, *, targeted: bool, classes: int
    ) -> Tensor:
        attack = self.build(model, ball, classes)
        attack.set_device(x.device)
        if targeted:
            attack.set_mode_targeted_by_label(quiet=True)
        found: Tensor = attack(x, y)
        return found

    @staticmethod
    def common(ball: Ball) -> dict[str, Any]:
        """The arguments of those that know both norms; torchattacks seeds the generators from its own default."""
        norm = "Linf" if isinstance(ball, Linf) else "L2"
        return {"norm": norm, "eps": ball.radii, "seed": int(torch.randint(2**31, ()))}


@dataclass(frozen=True, kw_only=True)
class FGSM(Torchattack):
    """One step of size eps along the sign of the gradient, by torchattacks, for L-infinity."""

    name: ClassVar[str] = "torchattacks:fgsm"
    norms: ClassVar[tuple[float, ...]] = (inf,)

    def build(self, model: nn.Module, ball: Ball, classes: int) -> Any:  # noqa: D102
        import torchattacks

        return torchattacks.FGSM(model, eps=ball.radii)


@dataclass(frozen=True, kw_only=True)
class PGD(Torchattack, Stepped):
    """Projected gradient descent on cross-entropy from a random start, by torchattacks, for L-infinity and L2.

    `steps` >= 1 of length `relative_step` > 0 in units of eps, 2.5 / steps where it is None. The last iterate counts.
    """

    name: ClassVar[str] = "torchattacks:pgd"
    norms: ClassVar[tuple[float, ...]] = (inf, 2.0)

    def build(self, model: nn.Module, ball: Ball, classes: int) -> Any:  # noqa: D102
        import torchattacks

        kind = torchattacks.PGD if isinstance(ball, Linf) else torchattacks.PGDL2
        return kind(model, eps=ball.radii, alpha=self.length * ball.largest, steps=self.steps, random_start=True)


@dataclass(frozen=True, kw_only=True)
class MIFGSM(Torchattack, Stepped):
    """Signed steps along a decaying sum of normalised gradients, by torchattacks, for L-infinity.

    `steps` and `relative_step` are those of `torchattacks:pgd`; `decay` > 0 is what the next step keeps of the sum.
    """

    name: ClassVar[str] = "torchattacks:mifgsm"
    norms: ClassVar[tuple[float, ...]] = (inf,)

    decay: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(decay=self.decay)

    def build(self, model: nn.Module, ball: Ball, classes: int) -> Any:  # noqa: D102
        import torchattacks

        step = self.length * ball.largest
        return torchattacks.MIFGSM(model, eps=ball.radii, alpha=step, steps=self.steps, decay=self.decay)


@dataclass(frozen=True, kw_only=True)
class _Restarts(Torchattack):
    norms: ClassVar[tuple[float, ...]] = (inf, 2.0)
    targets: ClassVar[bool] = False

    steps: int = 100
    restarts: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(steps=self.steps, restarts=self.restarts)


@dataclass(frozen=True, kw_only=True)
class APGD(_Restarts):
    """Auto-PGD by torchattacks, for L-infinity and L2, untargeted.

    `steps` >= 1 for each of `restarts` >= 1; `loss` is `"ce"` (cross-entropy) or `"dlr"` (the difference of logits
    ratio).
    """

    name: ClassVar[str] = "torchattacks:apgd"

    loss: Loss = "ce"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss not in get_args(Loss):
            raise ArgumentError("loss", repr(self.loss), accepted="'ce' or 'dlr'", hint="Choose one of them.")

    def build(self, model: nn.Module, ball: Ball, classes: int) -> Any:  # noqa: D102
        import torchattacks

        model = _with(3, model, classes)
        return torchattacks.APGD(model, steps=self.steps, n_restarts=self.restarts, loss=self.loss, **self.common(ball))


@dataclass(frozen=True, kw_only=True)
class APGDT(_Restarts):
    """Auto-PGD on the targeted logit ratio towards every class in turn, by torchattacks.

    For L-infinity and L2. It chooses its targets itself, so it is given none; `steps`, `restarts` >= 1.
    """

    name: ClassVar[str] = "torchattacks:apgdt"

    def build(self, model: nn.Module, ball: Ball, classes: int) -> Any:  # noqa: D102
        import torchattacks

        return torchattacks.APGDT(
            _with(4, model, classes), steps=self.steps, n_restarts=self.restarts, n_classes=classes, **self.common(ball)
        )


@dataclass(frozen=True, kw_only=True)
class FAB(_Restarts):
    """The fast adaptive boundary attack by torchattacks, for L-infinity and L2, untargeted.

    `steps` >= 1 for each of `restarts` >= 1.
    """

    name: ClassVar[str] = "torchattacks:fab"

    def build(self, model: nn.Module, ball: Ball, classes: int) -> Any:  # noqa: D102
        import torchattacks

        return torchattacks.FAB(
            model, steps=self.steps, n_restarts=self.restarts, n_classes=classes, **self.common(ball)
        )


@dataclass(frozen=True, kw_only=True)
class Square(Torchattack):
    """The Square attack by torchattacks, by logits alone, for L-infinity and L2.

    `queries` >= 1 for each of `restarts` >= 1.
    """

    name: ClassVar[str] = "torchattacks:square"
    norms: ClassVar[tuple[float, ...]] = (inf, 2.0)

    queries: int = 1000
    restarts: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(queries=self.queries, restarts=self.restarts)

    def build(self, model: nn.Module, ball: Ball, classes: int) -> Any:  # noqa: D102
        import torchattacks

        return torchattacks.Square(model, n_queries=self.queries, n_restarts=self.restarts, **self.common(ball))


@dataclass(frozen=True, kw_only=True)
class AutoAttack(Torchattack):
    """AutoAttack by torchattacks: Auto-PGD, targeted Auto-PGD and FAB, then Square, each on what is left.

    Croce and Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
    attacks", the standard version, for L-infinity and L2, untargeted. `steps` >= 1 of the first three and `queries`
    >= 1 of Square are those of the paper, where torchattacks itself takes 10 steps.
    """

    name: ClassVar[str] = "torchattacks:autoattack"
    norms: ClassVar[tuple[float, ...]] = (inf, 2.0)
    targets: ClassVar[bool] = False

    steps: int = 100
    queries: int = 5000

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(steps=self.steps, queries=self.queries)

    def build(self, model: nn.Module, ball: Ball, classes: int) -> Any:  # noqa: D102
        import torchattacks

        model, common = _with(4, model, classes), self.common(ball)
        targeted = {"steps": self.steps, "n_classes": classes, **common}
        return torchattacks.MultiAttack(
            [
                torchattacks.APGD(model, steps=self.steps, **common),
                torchattacks.APGDT(model, **targeted),
                torchattacks.FAB(model, multi_targeted=True, **targeted),
                torchattacks.Square(model, n_queries=self.queries, **common),
            ]
        )


@dataclass(frozen=True, kw_only=True)
class CW(Torchattack):
    """Carlini and Wagner's L2 attack by torchattacks, with one constant for all samples.

    `steps` >= 1 of Adam with `learning_rate` > 0; `constant` > 0 weighs the margin against the squared distance, and
    `confidence` >= 0 is the margin that it aims at.
    """

    name: ClassVar[str] = "torchattacks:cw"
    norms: ClassVar[tuple[float, ...]] = (2.0,)
    nearest: ClassVar[bool] = True

    steps: int = 50
    constant: float = 1.0
    learning_rate: float = 0.01
    confidence: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(steps=self.steps)
        check_positive(constant=self.constant, learning_rate=self.learning_rate)
        if not self.confidence >= 0:
            raise ArgumentError("confidence", repr(self.confidence), accepted="a number >= 0", hint="0 is any success.")

    def build(self, model: nn.Module, ball: Ball, classes: int) -> Any:  # noqa: D102
        import torchattacks

        return torchattacks.CW(model, c=self.constant, kappa=self.confidence, steps=self.steps, lr=self.learning_rate)


BEYOND = 1.001
"""How far to what DeepFool finds and past it."""


@dataclass(frozen=True, kw_only=True)
class DeepFool(Torchattack):
    """DeepFool by torchattacks: the nearest boundary in L2, untargeted; `steps` >= 1, `overshoot` > 0 of the way.

    Its last steps are as short as rounding, so that what it finds is decided otherwise alone and as before in a batch:
    a thousandth of the distance is added.
    """

    name: ClassVar[str] = "torchattacks:deepfool"
    norms: ClassVar[tuple[float, ...]] = (2.0,)
    targets: ClassVar[bool] = False
    nearest: ClassVar[bool] = True

    steps: int = 50
    overshoot: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(steps=self.steps)
        check_positive(overshoot=self.overshoot)

    def build(self, model: nn.Module, ball: Ball, classes: int) -> Any:  # noqa: D102
        import torchattacks

        return torchattacks.DeepFool(model, steps=self.steps, overshoot=self.overshoot)

    def generate(  # noqa: D102
        self, model: nn.Module, x: Tensor, y: Tensor, ball: Ball, *, targeted: bool, classes: int
    ) -> Tensor:
        found = super().generate(model, x, y, ball, targeted=targeted, classes=classes)
        return (x + BEYOND * (found - x)).clamp(0, 1)


@dataclass(frozen=True, kw_only=True)
class EAD(Torchattack):
    """The elastic-net attack by torchattacks, with its decision rule for L1.

    `steps` >= 10 (it looks at its progress ten times) for each of `searches` >= 1 constants; `learning_rate` > 0;
    `first_constant` > 0.
    """

    name: ClassVar[str] = "torchattacks:ead"
    norms: ClassVar[tuple[float, ...]] = (1.0,)
    nearest: ClassVar[bool] = True

    steps: int = 100
    searches: int = 9
    learning_rate: float = 0.01
    first_constant: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(steps=self.steps, searches=self.searches)
        if self.steps < 10:
            raise ArgumentError("steps", self.steps, accepted="an integer of at least 10", hint="Take 10 or more.")
        check_positive(learning_rate=self.learning_rate, first_constant=self.first_constant)

    def build(self, model: nn.Module, ball: Ball, classes: int) -> Any:  # noqa: D102
        import torchattacks

        return torchattacks.EADL1(
            model, lr=self.learning_rate, binary_search_steps=self.searches, max_iterations=self.steps,
            initial_const=self.first_constant,
        )  # fmt: skip


class _Padded(nn.Module):
    """A model with more logits than it has, below the least of its own: some losses divide by the third or fourth."""

    def __init__(self, model: nn.Module, missing: int) -> None:
        super().__init__()
        self._call, self.missing = model.__call__, missing

    def forward(self, z: Tensor) -> Tensor:
        logits: Tensor = self._call(z)
        low = logits.detach().amin(1, keepdim=True) - 1
        return torch.cat([logits, low.expand(-1, self.missing)], 1)


def _with(least: int, model: nn.Module, classes: int) -> nn.Module:
    return model if classes >= least else _Padded(model, least - classes).eval()
