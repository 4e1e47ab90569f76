"""`minimal`: any attack of a fixed radius as an attack of smallest radius."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from robust_plugins.balls import Ball
from robust_plugins.decisions.attack import Attack
from robust_plugins.decisions.attacks.closest import Closest, check_share, with_radii
from robust_plugins.decisions.attacks.objectives import objective
from robust_plugins.decisions.attacks.root_search import RootSearch
from robust_plugins.errors import ArgumentError
from robust_plugins.harness.component import chunks
from robust_plugins.harness.parameters import check_count
from robust_plugins.registry.information import Kind
from robust_plugins.registry.registry import build


@dataclass(frozen=True, kw_only=True)
class Minimal(Attack):
    """The nearest adversarial example that an attack of a fixed radius finds, by bisection of each sample's radius.

    The ball's radius is the largest that is tried, in the first call; what each later call is asked lies between the
    radius at which the sample last held and that of the nearest example so far, about where the margins found at both
    promise zero. The result holds that example, and its `distance`; samples that hold at the largest radius stay as
    they are, without success.

    - `attack`: a registered name, with parameters where wanted, or an attack itself. Targeted where that one is.
    - `tolerance`: a sample is done when the radii next to its smallest are within this part of the ball's radius.
    - `calls`: the most calls of the attack; 12 are always enough for a thousandth, and about 6 are usual. A sample that
      is done is in no further one.

    The bisection assumes that an attack which succeeds at one radius does at larger ones. One that overshoots, like a
    single step, may fail at the largest and is then not asked at others: give it several radii instead.
    """

    nearest: ClassVar[bool] = True

    attack: str | Attack = "rp:margin-pgd"
    tolerance: float = 1e-3
    calls: int = 12

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.attack, str | Attack):
            raise ArgumentError(
                "attack", repr(self.attack), accepted="an attack or its registered name", hint="For example 'art:pgd'."
            )
        check_share("tolerance", self.tolerance, hint="1e-3 is a thousandth of the ball's radius.")
        check_count("calls", self.calls)
        built = build(Kind.ATTACK, Attack, self.attack) if isinstance(self.attack, str) else self.attack
        object.__setattr__(self, "_built", built)  # once, and no field: the name is the data

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, ball: Ball, *, targeted: bool) -> Tensor:  # noqa: D102
        largest, lead = ball.radii_for(x), objective("margin", y, targeted=targeted)
        closest = Closest(model, x, y, ball, targeted=targeted)
        with torch.no_grad():
            search = RootSearch(torch.where(closest.found, 0, largest), lead(model(x)))
        for call in range(self.calls):
            at, radii = search.next(self.tolerance * largest)
            if not len(at):
                break
            z = self._run(model, x[at], y[at], with_radii(ball, radii), targeted)
            with torch.no_grad():
                logits = model(z.clone())
            won = closest.offer(z, at, logits=logits)
            gain = objective("margin", y[at], targeted=targeted)(logits)
            search.answer(at, radii, won, gain, known=closest.distance[at])
            if call == 0:  # the first example is as far away as it may be, and the line back to x leads to a nearer one
                closest.pull()
                search.nearer(closest.distance)
        return closest.pull()

    def _run(self, model: nn.Module, x: Tensor, y: Tensor, ball: Ball, targeted: bool) -> Tensor:
        attack: Attack = self.__dict__["_built"]
        found = [
            ball[part].project(attack.perturb(model, x[part], y[part], ball[part], targeted=targeted).detach(), x[part])
            for part in chunks(len(x), attack.batch_size)
        ]
        return torch.cat(found)


def minimal(attack: str | Attack, *, tolerance: float = 1e-3, calls: int = 12, batch_size: int | None = None) -> Attack:
    """An attack that looks for the nearest adversarial example where `attack` looks for any in the ball.

    - `attack`: of a fixed radius, by its registered name (`"art:pgd(steps=20)"`) or itself.
    - `tolerance`: where the bisection of a sample's radius ends, as a part of the ball's radius.
    - `calls`: the most calls of `attack`.
    - `batch_size`: samples that go through the bisection at a time; None for all.

    `rp.minimal("art:pgd")(model, x, y, rp.Linf(eps=0.5, clip=(0, 1))).distance` holds the distances, at most 0.5, of
    the examples where `success` is True. Raises ArgumentError for unusable arguments, UnknownNameError for an unknown
    name.

    >>> model, x, y = torch.nn.Identity(), torch.tensor([[1.0, 0.0]]), torch.tensor([0])
    >>> nearest = rp.minimal("rp:pgd")(model, x, y, rp.Linf(eps=1.0, clip=(0, 1)), seed=0)
    >>> 0.5 < nearest.distance.item() < 0.51
    True
    """
    return Minimal(attack=attack, tolerance=tolerance, calls=calls, batch_size=batch_size)
