"""`PDPGD`: primal-dual proximal gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from robust_plugins.balls import L1, L2, Ball, Box, Linf
from robust_plugins.decisions.attack import Attack
from robust_plugins.decisions.attacks.ascent import slope
from robust_plugins.decisions.attacks.boundaries import goals, linear_distance, margin
from robust_plugins.decisions.attacks.closest import Closest, check_norm, falling, per_sample
from robust_plugins.decisions.attacks.objectives import Objective
from robust_plugins.decisions.attacks.proximal import shortened
from robust_plugins.harness.parameters import check_count, check_length


@dataclass(frozen=True, kw_only=True)
class PDPGD(Attack):
    """The closest adversarial example, by steps that pay for the norm at a price that follows the margin.

    Matyasko and Chau 2021, "PDPGD: Primal-dual proximal gradient descent adversarial attack": descent on
    `norm(z - x) + weight * what the margin lacks` over `z`, ascent over the weight. A step along the gradient is
    followed by the proximal map of the norm and the clip range, which on L1 leaves most inputs exactly where they were.
    Three things are ours: gradients have length 1 in the dual norm, so that a weight of 1 balances the norm whatever
    the scale of the logits; the weight grows by the factor `exp(dual_step)` at most, in proportion to the lacking part
    of the margin at `x`, and shrinks so where nothing lacks; steps are in units of the linearised distance.

    - `steps` >= 1. Both kinds of steps fall along a cosine.
    - `step_size` > 0 in units of the distance at which the margin's linearisation at `x` is zero; on L1 no more than
      the clip range.
    - `dual_step` > 0, in units of the weight's logarithm.
    - `targets` >= 0: so many further runs, each towards one class: those whose boundaries are closest in the model's
      linearisation at `x`.

    L-infinity, L2 and L1, on which it beats `rp:fmn` as often as not: both are in `rp:auto`; and the distance of an
    `rp.Box`, in units of each feature's radius. The ball bounds the search: what is returned lies inside it and is the
    closest found, brought to where it stops failing. Targeted too. Raises ArgumentError for other balls and unusable
    parameters, and for a model that is not differentiable in its input.
    """

    nearest: ClassVar[bool] = True

    steps: int = 100
    step_size: float = 1.0
    dual_step: float = 1.5
    targets: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("steps", self.steps)
        check_count("targets", self.targets, least=0)
        check_length(
            "step_size", self.step_size, unit="units of the linearised distance", hint="1 reaches it in one step."
        )
        check_length("dual_step", self.dual_step, unit="units of a logarithm", hint="The default is 1.5.")

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, ball: Ball, *, targeted: bool) -> Tensor:  # noqa: D102
        check_norm(ball, Linf, L2, L1, Box, name="rp:pdpgd")
        closest = Closest(model, x, y, ball, targeted=targeted)
        if not bool((~closest.found & ball.radii_for(x).gt(0)).any()):
            return closest.x
        for to in goals(model, x, y, ball, count=self.targets, targeted=targeted):
            self._search(model, x, ball, margin(y, to, targeted=targeted), closest)
        return closest.refined()

    def _search(self, model: nn.Module, x: Tensor, ball: Ball, raised: Objective, closest: Closest) -> None:
        gradient, _, value = slope(model, x, raised)
        lacking = (-value).clamp(min=torch.finfo(x.dtype).tiny)
        size = self.step_size * _scale(ball, gradient, -value, x)
        z, weight = x, torch.ones_like(size)
        for step in range(self.steps):
            gradient, logits, value = slope(model, z, raised)
            closest.offer(z, logits=logits)
            rate = falling(step, self.steps)
            weight = weight * torch.exp(self.dual_step * rate * (-value / lacking).nan_to_num(0.0).clamp(-1, 1))
            price = rate * size
            ahead = z + per_sample(price * weight, x) * _unit(ball, gradient.nan_to_num(0.0), x)
            z = shortened(ball, ahead, x, price)
        closest.offer(z)


def _scale(ball: Ball, gradient: Tensor, needed: Tensor, x: Tensor) -> Tensor:
    """The price at which one step with a weight of 2 has the length of the linearised distance, about."""
    limit = ball.radii_for(x)
    reach = linear_distance(ball, gradient, needed, x).nan_to_num(torch.inf, posinf=torch.inf).minimum(limit)
    if isinstance(ball, L1) and ball.clip is not None:  # one coordinate goes no farther than its range
        return reach.clamp(max=ball.clip[1] - ball.clip[0])
    return reach * max(1, x[0].numel()) if isinstance(ball, Linf | Box) else reach  # whose price all features share


def _unit(ball: Ball, gradient: Tensor, x: Tensor) -> Tensor:
    """The gradient with length 1 in the dual norm, or zero; of a box the step that it is in units of each feature."""
    if isinstance(ball, Box):
        units = ball.units(x)
        return units * _unit(Linf(eps=0, clip=None), units * gradient, x)
    flat = gradient.flatten(1)
    if not flat.shape[1]:
        return gradient
    flat = flat / flat.abs().amax(1, keepdim=True).clamp(min=torch.finfo(flat.dtype).tiny)  # squares stay normal
    order = {L1: torch.inf, L2: 2.0}.get(type(ball), 1.0)
    length: Tensor = torch.linalg.vector_norm(flat, ord=order, dim=1, keepdim=True)
    return (flat / length.clamp(min=1.0)).view_as(gradient)
