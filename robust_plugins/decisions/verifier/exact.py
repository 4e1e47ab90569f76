"""`milp:exact`: the margins of small networks by mixed-integer programmes, an independent judge of branch and bound.

Tjeng et al. 2019, "Evaluating robustness of neural networks with mixed integer programming".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from robust_plugins.balls import Ball
from robust_plugins.decisions.certifier import Certifier
from robust_plugins.decisions.certifiers import AlphaCROWN
from robust_plugins.decisions.judgement import Decision
from robust_plugins.decisions.verifier.clock import Clock, OutOfTimeError, check_timeout
from robust_plugins.decisions.verifier.root import Root
from robust_plugins.decisions.verifier.stages import MEMORY
from robust_plugins.decisions.verifier.verify import prepared
from robust_plugins.intervals import Interval
from robust_plugins.intervals.methods.ascent import Ascent
from robust_plugins.intervals.methods.unfolding import TooLargeError


@dataclass(frozen=True, kw_only=True)
class ExactMILP(Certifier):
    """The least margins themselves, by one mixed-integer programme for each class, solved by scipy's HiGHS.

    A binary variable says of each unstable neuron which sign its input has; their bounds are those of linear relaxation
    with optimised slopes. For small networks of piecewise linear layers; a sample is TIMEOUT after `timeout` seconds.
    Rests on the solver's word, to its tolerance of 1e-6. Sound for every ball, over the smallest box around it.
    """

    soundness = "real arithmetic, to the tolerances of the mixed-integer solver"
    rounding = 1e-5

    timeout: float = 60.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_timeout(self.timeout)

    def propagate(
        self,
        model: nn.Module,
        x: Float[Tensor, "batch *features"],
        ball: Ball,
        spec: Float[Tensor, "batch rows classes"] | None,
    ) -> Interval:
        """Gives the bounds of `interval:alpha-crown`: programmes are solved for decisions alone."""
        return AlphaCROWN().propagate(model, x, ball, spec)

    def decide(  # noqa: D102 (inherited)
        self,
        model: nn.Module,
        x: Float[Tensor, "batch *features"],
        y: Integer[Tensor, " batch"],
        ball: Ball,
        spec: Float[Tensor, "batch rows classes"],
    ) -> Decision:
        form, box, logits = prepared(model, x).relu, ball.box(x), model(x)
        lower = x.new_full(spec.shape[:2], -torch.inf)
        witness, stopped, messages = torch.full_like(x, torch.nan), [], []
        for i in range(len(x)):
            clock, message = Clock(self.timeout), ""
            if not bool(logits[i].isfinite().all()) or int(logits[i].argmax()) != int(y[i]):
                # There is nothing to solve: an error, or a witness already.
                lower[i] = torch.nan if bool(logits[i].isnan().any()) else -torch.inf
                stopped.append(False)
                messages.append("")
                continue
            one = Interval(box.lower[i : i + 1].cpu().double(), box.upper[i : i + 1].cpu().double())
            try:
                root = Root(form, [one], Ascent(steps=20, learning_rate=0.1, decay=0.98), MEMORY, clock=clock)
                for row in range(spec.shape[1]):
                    value, point = _least(root, spec[i, row].cpu().double(), clock)
                    lower[i, row] = value
                    if value <= 0 and point is not None:
                        z = root.input_at(point).to(x)
                        if int(model(z).argmax(1)) != int(y[i]):
                            witness[i] = z[0]
            except OutOfTimeError:
                message = "the time is used up"
            except TooLargeError:
                message = "the network is too large to be unfolded over this box"
            stopped.append(message.startswith("the time"))
            messages.append(message)
        upper = torch.full_like(lower, torch.inf)
        return Decision(Interval(lower, upper), witness, tuple(stopped), tuple(messages))


def _least(root: Root, spec: Tensor, clock: Clock) -> tuple[float, Tensor | None]:
    """The least of `spec z` over the box by HiGHS, less its tolerance, and where it is taken."""
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp

    clock.check()
    compact, n = root.compact, root.compact.inputs
    rows, const, _ = root.specified(spec.unsqueeze(0), spec.new_zeros(1))
    units = len(compact.offset)
    if not len(rows):  # the box is a point
        return float(const), rows.new_zeros((0, 1))
    free = compact.free[:, 0] > 0
    # A unit that is positive by no more than an underflow has a chord from which its lower bound cannot be read off.
    chord, sizes = compact.chord[:, 0], root.sizes
    reach = torch.cat([
        block.matrix.to_dense().abs() @ sizes[block.start : block.start + block.matrix.shape[1]]
        for block in compact.blocks
    ] or [chord])  # fmt: skip
    steep = free & (chord > 1e-12)
    least_inputs = torch.where(steep, -compact.intercept[:, 0] / chord, compact.offset[:, 0] - reach)
    low = torch.where(free, least_inputs.clamp(max=0), 0.0).numpy()
    up = sizes[n:].numpy()
    # Variables: inputs, outputs of units, and for each unit whether its input is positive.
    total = n + 2 * units
    matrix, least, most = [], [], []

    def constrain(line: Any, at_least: float, at_most: float) -> None:
        matrix.append(line)
        least.append(at_least)
        most.append(at_most)

    for block in compact.blocks:
        dense = block.matrix.to_dense().numpy()
        for k in range(block.last - block.first):
            unit = block.first - n + k
            line = np.zeros(total)
            line[block.start : block.start + dense.shape[1]] = -dense[k]
            line[n + unit] = 1.0  # h - M s
            offset = float(compact.offset[unit])
            if not bool(free[unit]):
                constrain(line, offset, offset)
                continue
            constrain(line, offset, np.inf)
            above = line.copy()
            above[n + units + unit] = -low[unit]
            constrain(above, -np.inf, offset - low[unit])  # h <= z - low (1 - on)
            switched = np.zeros(total)
            switched[n + unit], switched[n + units + unit] = 1.0, -up[unit]
            constrain(switched, -np.inf, 0.0)
    cost = np.concatenate([rows[:, 0].numpy(), np.zeros(units)])
    bounds = Bounds(
        np.concatenate([-np.ones(n), np.zeros(2 * units)]), np.concatenate([np.ones(n), up, np.ones(units)])
    )
    constraints = LinearConstraint(np.array(matrix), least, most) if matrix else ()
    integrality = np.concatenate([np.zeros(n + units), free.numpy().astype(float)])
    options = {"time_limit": max(clock.left, 0.1)}
    found = milp(cost, integrality=integrality, bounds=bounds, constraints=constraints, options=options)
    if found.status != 0:
        raise OutOfTimeError
    # A programme without binary variables has no other bound than its value.
    least_value = found.mip_dual_bound if bool(free.any()) else found.fun
    value = float(least_value + const)
    return value - 1e-6 * (1 + abs(value)), torch.tensor(found.x[:n]).unsqueeze(1)
