"""`SGD`, `Adam` and `AdamW`: the updates of torch's optimizers, on parameters and on intervals of them.

Every update holds for all parameters, states and gradients in their intervals, taken as independent of each other; the
state (momentum, moments) is an interval too. `t` counts the updates that were made before, from 0.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from robust_plugins.errors import ArgumentError
from robust_plugins.harness.parameters import check_fields
from robust_plugins.intervals import Interval, rounding

State = dict[str, Interval]
"""What an optimizer remembers of one parameter, by torch's names."""


@dataclass(frozen=True, kw_only=True)
class Optimizer(ABC):
    """The learning rate and its schedule: `max(lr / (1 + decay t), min_lr)`, times `factor` at each milestone passed.

    - `lr`, `decay`, `min_lr`: those of the formula, where t counts updates.
    - `milestones`: updates after which the rate is multiplied by `factor`.
    - `factor`: by how much.
    - `weight_decay`: torch's.
    """

    lr: float
    decay: float = 0.0
    min_lr: float = 0.0
    milestones: tuple[int, ...] = ()
    factor: float = 0.1
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        if not isinstance(self.milestones, Iterable):
            _check("milestones", self.milestones, False, "increasing updates")
        object.__setattr__(self, "milestones", tuple(self.milestones))
        _check("lr", self.lr, 0 < self.lr < math.inf, "a finite number above 0")
        for name in ("decay", "min_lr", "weight_decay"):
            _check(name, getattr(self, name), 0 <= getattr(self, name) < math.inf, "a finite number >= 0")
        _check("factor", self.factor, 0 < self.factor < math.inf, "a finite number above 0")
        ordered = list(self.milestones) == sorted(self.milestones)
        _check("milestones", self.milestones, ordered and min(self.milestones, default=0) >= 0, "increasing updates")

    def learning_rate(self, t: int) -> float:
        """That of the update which `t` updates came before."""
        return max(self.lr / (1 + self.decay * t), self.min_lr) * self.factor ** bisect_right(self.milestones, t)

    @abstractmethod
    def torch(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        """The optimizer of torch; its learning rate is to be set before each step."""

    @abstractmethod
    def start(self, value: Interval) -> State:
        """The state of a parameter before the first update."""

    @abstractmethod
    def update(self, t: int, value: Interval, gradient: Interval, state: State) -> tuple[Interval, State]:
        """The parameter and its state after an update."""


@dataclass(frozen=True, kw_only=True)
class SGD(Optimizer):
    """Stochastic gradient descent: `v <- momentum v + g + weight_decay theta`, `theta <- theta - lr v`.

    With `nesterov`, `theta <- theta - lr (g + weight_decay theta + momentum v)` for the new v, as torch has it. theta's
    own part in the step is taken together with theta, so that plain weight decay contracts its interval.

    - `lr`: the learning rate at first.
    - `decay`: how fast it falls: update t, counted from 0, has `lr / (1 + decay t)`.
    - `min_lr`: the learning rate never falls below it, milestones apart.
    - `milestones`: counts of updates; after each the learning rate is multiplied by `factor`.
    - `factor`: see `milestones`.
    - `weight_decay`: added to the gradient, times the parameter, as in torch.
    - `momentum`: how much of the last step is kept, from 0 on.
    - `nesterov`: whether the step looks ahead along the momentum.
    """

    momentum: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _check("momentum", self.momentum, 0 <= self.momentum < math.inf, "a finite number >= 0")
        _check("nesterov", self.nesterov, not self.nesterov or self.momentum > 0, "False without momentum")

    def torch(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:  # noqa: D102 (inherited)
        return torch.optim.SGD(
            parameters, lr=self.lr, momentum=self.momentum, nesterov=self.nesterov, weight_decay=self.weight_decay
        )

    def start(self, value: Interval) -> State:  # noqa: D102 (inherited)
        return {"momentum_buffer": Interval.point(torch.zeros_like(value.lower))} if self.momentum else {}

    def update(self, t: int, value: Interval, gradient: Interval, state: State) -> tuple[Interval, State]:
        """The step written out in theta, g and the old v, each of which it then holds once."""
        lr, mu, decay = self.learning_rate(t), self.momentum, self.weight_decay
        on_gradient = 1 + mu if self.nesterov else 1.0
        moved = _combination((1 - lr * on_gradient * decay, value), (-lr * on_gradient, gradient))
        if not mu:
            return moved, {}
        old = state["momentum_buffer"]
        new = _combination((mu, old), (1.0, gradient), (decay, value))
        on_buffer = mu * mu if self.nesterov else mu
        return _combination((1.0, moved), (-lr * on_buffer, old)), {"momentum_buffer": new}


@dataclass(frozen=True, kw_only=True)
class Adam(Optimizer):
    """Kingma and Ba 2015, algorithm 1: a step along `m^ / (sqrt(v^) + eps)`, of the moments m and v of the gradient.

    `weight_decay` adds to the gradient, as in torch. The gradient's part in m and that in v are taken together: the
    step's range over the gradient is bounded on pieces. By the inequality of Cauchy and Schwarz it also never exceeds
    the root of `sum_s a_s^2 / b_s`, where m^ and v^ weigh the gradient of update s by a_s and b_s.

    - `lr`: the learning rate at first.
    - `decay`: how fast it falls: update t, counted from 0, has `lr / (1 + decay t)`.
    - `min_lr`: the learning rate never falls below it, milestones apart.
    - `milestones`: counts of updates; after each the learning rate is multiplied by `factor`.
    - `factor`: see `milestones`.
    - `weight_decay`: added to the gradient, times the parameter, as in torch.
    - `betas`: how slowly the two moments forget, each in [0, 1).
    - `eps`: added to the root, above 0.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    decoupled = False
    PIECES = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        listed = isinstance(self.betas, Sequence) and all(isinstance(b, Real) for b in self.betas)
        _check("betas", self.betas, listed, "two numbers in [0, 1)")
        object.__setattr__(self, "betas", tuple(self.betas))
        _check(
            "betas", self.betas, len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas), "two numbers in [0, 1)"
        )
        _check("eps", self.eps, 0 < self.eps < math.inf, "a finite number above 0")

    def torch(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:  # noqa: D102 (inherited)
        kind = torch.optim.AdamW if self.decoupled else torch.optim.Adam
        return kind(parameters, lr=self.lr, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay)

    def start(self, value: Interval) -> State:  # noqa: D102 (inherited)
        zero = Interval.point(torch.zeros_like(value.lower))
        return {"exp_avg": zero, "exp_avg_sq": zero}

    def update(self, t: int, value: Interval, gradient: Interval, state: State) -> tuple[Interval, State]:  # noqa: D102
        lr, (b1, b2) = self.learning_rate(t), self.betas
        if self.weight_decay and not self.decoupled:
            gradient = _combination((1.0, gradient), (self.weight_decay, value))
        m = _combination((b1, state["exp_avg"]), (1 - b1, gradient))
        v = _combination((b2, state["exp_avg_sq"]), (1 - b2, _square(gradient)))
        step = self._direction(t, gradient, state)
        keep = 1 - lr * self.weight_decay if self.decoupled else 1.0
        return _combination((keep, value), (-lr, step)), {"exp_avg": m, "exp_avg_sq": v}

    def _direction(self, t: int, gradient: Interval, state: State) -> Interval:
        """The range of `m^ / (sqrt(v^) + eps)` over the gradient and the old moments."""
        largest = self._largest(t)
        low = gradient.lower.new_full(gradient.shape, math.inf)
        up = -low
        ends = torch.linspace(0, 1, self.PIECES + 1, dtype=torch.float64).tolist()
        for a, b in pairwise(ends):
            piece = Interval(_between(gradient, a), _between(gradient, b))
            found = self._quotient(t, piece, state)
            low, up = torch.minimum(low, found.lower), torch.maximum(up, found.upper)
        low, up = low.clamp(min=-largest), up.clamp(max=largest)
        return Interval(*rounding.widened(torch.minimum(low, up), torch.maximum(low, up), ulps=64, scale=largest))

    def _quotient(self, t: int, gradient: Interval, state: State) -> Interval:
        b1, b2 = self.betas
        m = _combination((b1, state["exp_avg"]), (1 - b1, gradient)) * (1 / (1 - b1 ** (t + 1)))
        v = _combination((b2, state["exp_avg_sq"]), (1 - b2, _square(gradient))) * (1 / (1 - b2 ** (t + 1)))
        small, large = v.lower.clamp(min=0).sqrt() + self.eps, v.upper.clamp(min=0).sqrt() + self.eps
        # The quotient is largest for the largest m: over the smallest root where m > 0, the largest where m < 0.
        return Interval(
            m.lower / torch.where(m.lower < 0, small, large), m.upper / torch.where(m.upper > 0, small, large)
        )

    def _largest(self, t: int) -> float:
        b1, b2 = self.betas
        first = [(1 - b1) * b1 ** (t - s) / (1 - b1 ** (t + 1)) for s in range(t + 1)]
        second = [(1 - b2) * b2 ** (t - s) / (1 - b2 ** (t + 1)) for s in range(t + 1)]
        if any(b == 0 < a for a, b in zip(first, second, strict=True)):
            return math.inf
        return math.sqrt(sum(a * a / b for a, b in zip(first, second, strict=True) if b)) * (1 + 1e-9)


@dataclass(frozen=True, kw_only=True)
class AdamW(Adam):
    """Adam, but `theta <- (1 - lr weight_decay) theta - lr step` (Loshchilov and Hutter 2019, algorithm 2).

    - `lr`: the learning rate at first.
    - `decay`: how fast it falls: update t, counted from 0, has `lr / (1 + decay t)`.
    - `min_lr`: the learning rate never falls below it, milestones apart.
    - `milestones`: counts of updates; after each the learning rate is multiplied by `factor`.
    - `factor`: see `milestones`.
    - `weight_decay`: how much a parameter shrinks at each step, in units of the learning rate.
    - `betas`: how slowly the two moments forget, each in [0, 1).
    - `eps`: added to the root, above 0.
    """

    weight_decay: float = 0.01

    decoupled = True


def update_all(
    optimizer: Optimizer,
    t: int,
    parameters: Mapping[str, Interval],
    gradients: Mapping[str, Interval],
    states: Mapping[str, State],
) -> tuple[dict[str, Interval], dict[str, State]]:
    """One update of every parameter."""
    found = {name: optimizer.update(t, p, gradients[name], states[name]) for name, p in parameters.items()}
    return {name: p for name, (p, _) in found.items()}, {name: s for name, (_, s) in found.items()}


def _combination(*terms: tuple[float, Interval]) -> Interval:
    """`sum_i c_i x_i` for independent x_i; rounded outward with slack for torch's own order of operations."""
    low = up = magnitude = None
    for c, x in terms:
        a, b = (x.lower, x.upper) if c >= 0 else (x.upper, x.lower)
        low, up = (c * a, c * b) if low is None or up is None else (low + c * a, up + c * b)
        if rounding.active():
            size = abs(c) * x.magnitude
            magnitude = size if magnitude is None else magnitude + size
    assert low is not None
    assert up is not None
    return Interval(*rounding.widened(low, up, ulps=16, scale=magnitude))


def _square(x: Interval) -> Interval:
    least = torch.where((x.lower <= 0) & (x.upper >= 0), torch.zeros_like(x.lower),
                        torch.minimum(x.lower.abs(), x.upper.abs()))  # fmt: skip
    return Interval(*rounding.widened(least * least, x.magnitude**2, ulps=4))


def _between(x: Interval, share: float) -> Tensor:
    """The point at that share of the interval; its ends for 0 and 1."""
    if share in (0.0, 1.0):
        return x.lower if share == 0.0 else x.upper
    return torch.minimum(torch.maximum(x.lower + share * (x.upper - x.lower), x.lower), x.upper)


def _check(name: str, value: Any, fine: bool, accepted: str) -> None:
    if not fine:
        raise ArgumentError(name, value, accepted=accepted, hint="It is that of torch's optimizer of this name.")
