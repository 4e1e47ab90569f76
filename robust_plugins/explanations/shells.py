"""The proof of a local Lipschitz constant: the set around x is cut into shells of Euclidean distances from x."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from robust_plugins.balls import L2, Linf
from robust_plugins.explanations.attributions import classes_of
from robust_plugins.explanations.bounds.hessian import hessian_norm
from robust_plugins.explanations.bounds.widening import widened
from robust_plugins.explanations.certificate import most
from robust_plugins.explanations.explained import explained_by
from robust_plugins.explanations.score_runs import Run
from robust_plugins.harness.call import calling, ordinary
from robust_plugins.intervals import Interval, crown, trace

FEATURES = 2048
"""Inputs of more features have no bounds on their Hessian."""
MEMORY = 2**28


@dataclass(frozen=True, kw_only=True, repr=False)
class Core(L2):
    """The points of an L-infinity ball that are near to its centre: the Euclidean distance is at most `eps`.

    - `reach`: the L-infinity ball's radius, the same for all samples.
    """

    reach: float

    def project(self, z: Tensor, x: Tensor) -> Tensor:
        """A point of the set: of the Euclidean ball the nearest to `z`, moved into the box."""
        box, near = self.box(x), super().project(z, x)
        return torch.minimum(torch.maximum(near, box.lower), box.upper)

    def box(self, x: Float[Tensor, "batch *features"]) -> Interval:
        """The smallest box around the set."""
        near, whole = super().box(x), Linf(eps=self.reach, clip=self.clip).box(x)
        return Interval(torch.maximum(near.lower, whole.lower), torch.minimum(near.upper, whole.upper))


def proved_constant(run: Run, ball: Linf, refinements: int) -> Float[Tensor, " batch"]:
    """The largest quotient over `ball` that the bounds allow, in float64, after so many cuts of each one's worst shell.

    `ball` has one radius for all samples.
    """
    reach = ball.radii
    assert isinstance(reach, float)  # checked by `local_lipschitz`
    x, dtype = run.inputs, run.value.dtype
    if reach == 0:  # there is no other point
        return torch.zeros(len(x), dtype=torch.float64, device=x.device)
    size = x[0].numel() if len(x) else 1

    def measured(radii: Tensor) -> tuple[Tensor, Tensor]:
        core = Core(eps=radii.tolist(), clip=ball.clip, reach=reach)
        return run.farthest(core), _steepness(run, core)

    outer = x.new_full((len(x),), 1.001 * reach * size**0.5, dtype=torch.float64).to(dtype).double()
    # Of each sample one column for each shell, from within: its distances, how far explanations of points up to the
    # outer one are from that of x, and the Hessian's norm there.
    shells = torch.stack((torch.zeros_like(outer), outer, *measured(outer))).unsqueeze(2)
    for _ in range(refinements if len(x) else 0):
        worst = quotients(shells).argmax(1, keepdim=True)
        inner, outer, far, steep = shells.gather(2, worst.expand(4, -1, -1)).squeeze(2)
        jumping = torch.where(inner > 0, (inner * outer).sqrt(), outer / 8)
        cut = torch.where(steep.isfinite(), (inner + outer) / 2, jumping).to(dtype).double()
        within = torch.stack((inner, cut, *measured(cut)))
        shells = shells.scatter(2, worst.expand(4, -1, -1), within.unsqueeze(2))
        shells = torch.cat((shells, torch.stack((cut, outer, far, steep)).unsqueeze(2)), 2)
        shells = shells.gather(2, shells[0].argsort(1).expand_as(shells))
    return most(quotients(shells).amax(1), run.value.double())


def quotients(shells: Float[Tensor, "4 batch shells"]) -> Float[Tensor, "batch shells"]:
    """The largest quotient in each shell, with the change at its inner distance.

    On the straight way from x to a point the explanation changes no faster than the Hessian's norm in the shell that is
    being passed, nor by more than is allowed for the points so far out. With the change c at the inner distance a of a
    shell whose points are within f, and whose Hessian's norm is h, the quotient at distance r is at most
    `min(f, c + h (r - a)) / r`: largest at a, or where both meet.
    """
    inner, outer, far, steep = shells
    # What is true of a shell is true of all within it.
    far, steep = (t.flip(1).cummin(1).values.flip(1) for t in (far, steep))
    change, found = torch.zeros_like(inner[:, 0]), []
    for a, b, f, h in zip(*(t.unbind(1) for t in (inner, outer, far, steep)), strict=True):
        change = torch.minimum(change, f)
        meeting = torch.where(f > change, (a + (f - change) / h).clamp(max=b), b)
        reached = torch.where(meeting > a, torch.minimum(f, change + h * (meeting - a)), f)
        jump = torch.where(f > 0, torch.inf, 0.0)
        at_meeting = torch.where(meeting > 0, reached / meeting, jump)
        found.append(torch.maximum(at_meeting, torch.where(a > 0, change / a, 0.0)))
        rise = torch.where(h.isfinite(), change + h * (b - a), torch.inf)
        change = torch.minimum(f, rise)
    return torch.stack(found, 1)


def _steepness(run: Run, ball: Core) -> Float[Tensor, " batch"]:
    """The spectral norm of the Hessian over the ball is at most this."""
    inputs = run.inputs
    if not len(inputs) or inputs[0].numel() > FEATURES:
        return torch.full((len(inputs),), torch.inf, dtype=torch.float64, device=inputs.device)
    with torch.no_grad(), calling(run.explanation.model, inputs, ball) as call:
        x = call.x.detach()
        model, explained = explained_by(call.model, x, ordinary(classes_of(inputs, run.target)), "logit")
        network = trace(model, x)
        values = widened(network, crown(network, ball.box(x), support=ball.support(x), entries="bent"), x)
        return hessian_norm(network, values, "logit", explained.coefficients, memory=MEMORY)
