"""`Zonotope`: the parameters of abstract gradient training as a zonotope that is carried through every update."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from robust_plugins.errors import ArgumentError, UnsupportedModelError
from robust_plugins.intervals import Interval, Network
from robust_plugins.poisoning.budget import PoisoningBudget
from robust_plugins.poisoning.zonotope.forward import hidden, outputs, outputs_over_box
from robust_plugins.poisoning.zonotope.gradient import output_slopes
from robust_plugins.poisoning.zonotope.layers import Layer, Tail
from robust_plugins.poisoning.zonotope.set import State
from robust_plugins.poisoning.zonotope.slopes import LossSlope, Sigmoid, Softmax, Squared
from robust_plugins.poisoning.zonotope.update import update

MEMORY = 2**28
"""Bytes that one chunk of intermediate values may take."""


_PROBES = 200
"""Outputs of samples by which generators are chosen."""

_USELESS = 1e30
"""A zonotope of such a width would soon overflow, and goes on as its box."""


class Zonotope:
    r"""A zonotope around all parameters that poisoned training can reach, intersected with a box.

    The parameters are theta = c + G xi + U diag(r) eta, |xi|, |eta| <= 1. An update theta' = theta - lr g(theta) maps
    them to c - lr g(c) + (I - lr J)(G xi + U diag(r) eta) and a box of remainders, with the gradient's Jacobian J at
    the centre: unlike in a box, what contracts in training contracts here.

    Bounds hold for exact arithmetic on the parameters, in evaluation mode; they are computed in float64 whatever the
    model's dtype, and rounded to nearest.
    """

    def __init__(
        self, tail: Tail, loss: LossSlope, budget: PoisoningBudget, basis: Tensor, shared: Tensor, state: State,
        memory: int, generators: int,
    ) -> None:  # fmt: skip
        self.tail, self.loss, self.budget, self.memory, self.generators = tail, loss, budget, memory, generators
        self._basis, self._shared, self._state = basis, shared, state

    @classmethod
    def start(
        cls, network: Network, names: Sequence[str], loss: str, budget: PoisoningBudget, *,
        memory: int = MEMORY, generators: int | None = None,
    ) -> Zonotope:  # fmt: skip
        """The point of the network's present weights.

        `network` is `trace(model, x)` of the initial model, `names` are the trained parameters: those of the last
        Linear layer, or of the last two with ReLU between them. `loss` is "cross_entropy", "binary_cross_entropy" (one
        logit, labels 0 and 1) or "mse" (mean over the outputs). At most about `generators` generators are kept; None:
        three per parameter. Raises UnsupportedModelError or ArgumentError, saying what is supported.
        """
        tail = Tail.of(network, names)
        parameters = {name: value.double() for name, value in tail.parameters().items()}
        rows = tail.last.row(parameters)
        slope, basis = _loss(loss, len(rows), budget, rows)
        if budget.unbounded or budget.change == "removal":
            raise ArgumentError("budget", budget.change, accepted="moved features and changed labels",
                                hint="domain='box' covers samples that are replaced, added or removed.")  # fmt: skip
        layout = tail.layout(basis.shape[1])
        # Three matrices of that size: the Jacobian, and new generators before and after transport.
        if 3 * 8 * layout.size**2 > 32 * memory:
            raise UnsupportedModelError(
                f"the zonotope domain needs matrices of {layout.size} x {layout.size} for this many trained parameters;"
                " train fewer, raise memory=, or use domain='box'"
            )
        hidden_rows = tail.hidden.row(parameters) if tail.hidden else rows[:0, :0]
        shared = rows.mean(0) if loss == "cross_entropy" else torch.zeros_like(rows[0])
        state = State.point(layout, layout.join(hidden_rows, basis.T @ (rows - shared)))
        return cls(tail, slope, budget, basis, shared, state, memory, generators or 3 * layout.size)

    @torch.no_grad()
    def step(
        self, x: Float[Tensor, "batch *features"], y: Shaped[Tensor, "batch *labels"], *, lr: float,
        weight_decay: float = 0.0, box: Mapping[str, Interval],
    ) -> dict[str, Interval]:  # fmt: skip
        """One update by the mean gradient over a batch plus `weight_decay` times the parameters.

        `box` are bounds on the updated parameters from elsewhere. Returns bounds on them.
        """
        features = self.tail.first.append_one(self.tail.features(x))
        moves = self.tail.moves(x, self.budget)
        labels = self._labels(y)
        state = update(self._state, self.loss, self.budget, features, labels, moves, lr=lr, weight_decay=weight_decay,
                       memory=self.memory)  # fmt: skip
        self._shared = self._shared * (1 - lr * weight_decay)
        state = self._boxed(state, box)
        if not bool(state.reach.sum() < _USELESS):
            state = state.as_box()
        if self.loss.centered:
            state = _centered(state)
        self._state = self._reduced(state, features)
        return self.hull()

    def hull(self) -> dict[str, Interval]:
        """Bounds on the parameters, by name, in their dtype."""
        hull, split, basis = self._state.hull, self._state.layout.split, self._basis
        low, high = split(hull.lower), split(hull.upper)
        plus, minus = basis.clamp(min=0), basis.clamp(max=0)
        rows = Interval(plus @ low[1] + minus @ high[1], plus @ high[1] + minus @ low[1]) + self._shared
        lower, upper = self.tail.last.named(rows.lower), self.tail.last.named(rows.upper)
        if self.tail.hidden is not None:
            lower, upper = lower | self.tail.hidden.named(low[0]), upper | self.tail.hidden.named(high[0])
        return {
            name: _outward(Interval(lower[name], upper[name]), value.dtype)
            for name, value in self.tail.parameters().items()
        }

    @torch.no_grad()
    def bounds(self, x: Interval, spec: Float[Tensor, "batch rows outputs"]) -> Interval:
        """Bounds on `spec @ output` for all parameters of the set and all inputs in the box x: (batch, rows)."""
        spec = spec.double()
        rows, sums = spec @ self._basis, spec.sum(2, keepdim=True)
        state = self._state
        if (self._shared != 0).any() and (sums != 0).any():
            state, rows = state.with_row(self._shared), torch.cat([rows, sums], 2)
        if x.is_point:
            features = self.tail.first.append_one(self.tail.features(x.lower))
            found = outputs(state, hidden(state, features, memory=self.memory), rows, memory=self.memory).range
        else:
            box = self.tail.over(x)
            center = self.tail.first.append_one(box.center)
            found = outputs_over_box(state, center, box.radius, rows, memory=self.memory)
        return _outward(found, x.dtype)

    def kept(self) -> dict[str, Any]:
        """Returns what `restored` needs, for files."""
        return {"memory": self.memory, "generators": self.generators, "tensors": self.state_dict()}

    @classmethod
    def restored(
        cls, network: Network, names: Sequence[str], loss: str, budget: PoisoningBudget, kept: Mapping[str, Any]
    ) -> Zonotope:
        """The domain that `kept` came from; the other arguments are those of `start`."""
        found = cls.start(network, names, loss, budget, memory=kept["memory"], generators=kept["generators"])
        found.load_state_dict(kept["tensors"])
        return found

    def state_dict(self) -> dict[str, Tensor]:
        """Returns what `load_state_dict` needs to go on bit for bit."""
        return {**self._state.tensors(), "shared": self._shared}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Goes on from a `state_dict` of a domain that was started with the same arguments."""
        tensors = dict(tensors)
        self._shared = tensors.pop("shared").to(self._shared)
        self._state = self._state.restored(tensors)

    def _reduced(self, state: State, features: Tensor) -> State:
        """Fewer generators, chosen so that the outputs of a few of the samples lose least."""
        if state.generators.shape[1] <= self.generators:
            return state
        some = features[:: max(1, len(features) * state.layout.outputs // _PROBES)]
        h = hidden(state, some, memory=self.memory)
        return state.reduced(self.generators, output_slopes(state, h, h.slopes, slice(None)).flatten(0, 1))

    def _boxed(self, state: State, box: Mapping[str, Interval]) -> State:
        """The state with a box of named parameters as its own."""

        def rows(end: str, layer: Layer) -> Tensor:
            return layer.row({n: getattr(box[n], end).double() for n in layer.names})

        last = Interval(rows("lower", self.tail.last), rows("upper", self.tail.last)) - self._shared
        if self._basis.shape[1] == 1:
            each = last * (1 / self._basis)  # each row gives the one combination that training changes
            last = Interval(each.lower.amax(0, keepdim=True), each.upper.amin(0, keepdim=True))
        hidden_layer = self.tail.hidden
        lower, upper = (
            state.layout.join(last_end[:0, :0] if hidden_layer is None else rows(end, hidden_layer), last_end)
            for end, last_end in (("lower", last.lower), ("upper", last.upper))
        )
        return replace(state, lower=lower, upper=upper)

    def _labels(self, y: Tensor) -> Tensor:
        if isinstance(self.loss, Softmax):
            return y
        return y.double()[:, None] if y.dim() == 1 else y.double()


def _centered(state: State) -> State:
    """The projection to rows of the last layer that sum to 0, as they do where the errors sum to 0.

    The set is mapped as a whole, so the box along the axes, which the projection tilts, becomes generators first.
    """
    layout = state.layout
    w, v = layout.split(state.radii)
    tilted = state.axes.generators(layout, layout.join(torch.zeros_like(w), v))
    radii = layout.join(w, torch.zeros_like(v))

    def projected(t: Tensor) -> Tensor:
        hidden_part, last = layout.split(t)
        return layout.join(hidden_part, last - last.mean(0, keepdim=True))

    generators = projected(torch.cat([state.generators, tilted], 1))
    before = state.hull
    return replace(state, center=projected(state.center), generators=generators, radii=radii,
                   lower=before.lower, upper=before.upper)  # fmt: skip


def _loss(name: str, outputs: int, budget: PoisoningBudget, like: Tensor) -> tuple[LossSlope, Tensor]:
    """The loss, and the combinations of outputs that it needs as the columns of an orthonormal matrix."""
    if name not in ("cross_entropy", "binary_cross_entropy", "mse"):
        raise ArgumentError("loss", repr(name), accepted="'cross_entropy', 'binary_cross_entropy' or 'mse'",
                            hint="domain='box' covers more losses.")  # fmt: skip
    eye = torch.eye(outputs, dtype=like.dtype, device=like.device)
    if budget.labels and (name == "mse") != (budget.label_radius is not None):
        raise ArgumentError("label_radius", budget.label_radius, accepted="a number with 'mse', None for classes",
                            hint="Say how labels change.")  # fmt: skip
    if name == "mse":
        return Squared(outputs, budget.label_radius or 0.0, like), eye
    if name == "binary_cross_entropy":
        if outputs != 1:
            raise UnsupportedModelError(f"binary cross-entropy takes one logit, the model has {outputs}")
        return Sigmoid(1.0, budget.target, like), eye
    if outputs < 2:
        raise UnsupportedModelError("cross-entropy takes two or more logits; use binary_cross_entropy for one")
    if outputs == 2:
        basis = like.new_tensor([[-1.0], [1.0]]) / math.sqrt(2)
        return Sigmoid(math.sqrt(2), budget.target, like), basis
    return Softmax(outputs, budget.target, like), eye


def _outward(found: Interval, dtype: torch.dtype) -> Interval:
    """In a narrower dtype, rounded outward."""
    if found.dtype == dtype:
        return found
    low, high = found.lower.to(dtype), found.upper.to(dtype)
    infinity = torch.full_like(low, math.inf)
    return Interval(torch.nextafter(low, -infinity), torch.nextafter(high, infinity))
