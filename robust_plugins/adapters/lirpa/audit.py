"""Looks, once per conversion and method, for points that lie outside the bounds: a net under the table of known faults.

Finding none proves nothing. It does find operators that a release of auto_LiRPA misreads for the model at hand. The
graph serves the weights that come later as well, and a fault may hide at those it was made with (where every ReLU is
shut, nothing shows): so a copy with drawn weights is audited too, and the model itself again as it is trained.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robust_plugins.adapters.lirpa.ascent import batched, extremes, step_up, values
from robust_plugins.adapters.lirpa.bounded import Bounded
from robust_plugins.adapters.lirpa.failures import inside_backend, out_of_memory
from robust_plugins.adapters.lirpa.graph import is_chain
from robust_plugins.adapters.lirpa.structure import weights_of
from robust_plugins.balls import Ball, Linf
from robust_plugins.errors import UnsupportedModelError
from robust_plugins.harness.component import ERRORS
from robust_plugins.harness.evaluation import evaluation_error
from robust_plugins.harness.memory import activation_sizes
from robust_plugins.intervals import Interval

_RADII = (0.003, 0.01, 0.03, 0.1, 0.5)
_RADII_OF_DRAWN = (0.01, 0.1)
_RADII_ALONE = (0.01, 0.1)
_RADII_OF_CHAINS = (0.01, 0.1)
_CENTERS = 3
_LOGITS = 6
_VALUES = 3e7
"""Activations that the ascents of one audit may take: fewer logits are followed in a large network."""
_ROUNDING = 2e-6
"""Of the largest value or bound: the backend does not round outward, and is off by about a third of this."""
_OF_WIDTH = 1e-3

Bounds = Callable[[Bounded, nn.Module, Tensor, Ball, Tensor | None], Interval]


@dataclass
class Audited:
    """The state of one method's audits: how often its bounds were asked for, and the weights last audited."""

    calls: int
    weights: tuple[object, ...]

    def due(self, model: nn.Module) -> bool:
        """Counts a call. True at every power of two, where the weights are no longer those that were audited."""
        self.calls += 1
        return self.calls & (self.calls - 1) == 0 and self.weights != weights_of(model)


def refuse_violated(
    converted: Bounded, model: nn.Module, x: Tensor, method: str, bounds: Bounds, *, centers: int = _CENTERS
) -> None:
    """Raises UnsupportedModelError where a point of a ball lies outside `bounds`.

    For several radii, the balls are those around `centers` inputs: the first of `x`, and one in their neighbourhood.
    Points are what an ascent finds that moves one logit, or the difference of two, up or down. Bounds of a batch and of
    single samples are both looked at, and those that cross count as violated. A ball that the backend fails on, or
    bounds by infinities, is passed over. Chains, in which no fault is known, are looked at a third as often.
    """
    known: Audited | None = converted.audited.get(method)
    if known is not None and not known.due(model):
        return
    with torch.inference_mode(False), torch.no_grad():
        x = x.clone() if x.is_inference() else x
        chain = is_chain(converted.module)
        audit = _Audit(converted, x, method, bounds, min(centers, 2) if chain else centers)
        few = 1 if chain else 2
        audit.run(model, _RADII_OF_CHAINS if chain else _RADII, _RADII_ALONE[:few] if known is None else ())
        if known is None:
            for seed in range(few):
                if (drawn := _drawn(model, converted, x, seed)) is not None:
                    audit.run(drawn, _RADII_OF_DRAWN[:few], ())
    calls = 1 if known is None else known.calls
    converted.audited[method] = Audited(calls, weights_of(model))


class _Audit:
    def __init__(self, converted: Bounded, x: Tensor, method: str, bounds: Bounds, centers: int) -> None:
        self.converted, self.method, self.bounds = converted, method, bounds
        self.generator = torch.Generator().manual_seed(0)
        size = converted.samples or centers
        near = x[:1].expand(size, *x.shape[1:])
        noise = torch.rand(near.shape, generator=self.generator, dtype=x.dtype).to(x.device) - 0.5
        self.x = torch.cat((x[: size if converted.samples else max(1, size - 1)], near + noise))[:size]

    def run(self, model: nn.Module, radii: tuple[float, ...], alone: tuple[float, ...]) -> None:
        spec, run = self._rows(model), batched(model, self.converted.samples)
        clean = run(self.x)
        off = evaluation_error(model, self.x, clean)
        for eps in radii:
            ball = Linf(eps=eps, clip=None)
            try:
                logits = torch.cat((clean[None], values(run, extremes(run, self.x, ball, spec, self.generator))))
            except Exception as error:  # the model refuses inputs like these
                if out_of_memory(error):
                    raise
                continue
            self._hold(model, self.x, ball, spec, logits, off)
            if eps in alone and self.converted.samples is None:
                i = round(1000 * eps) % len(self.x)
                one = slice(i, i + 1)
                self._hold(model, self.x[one], ball, None, logits[:, one], off[one])

    def _hold(self, model: nn.Module, x: Tensor, ball: Ball, spec: Tensor | None, logits: Tensor, off: Tensor) -> None:
        try:
            found = self.bounds(self.converted, model, x, ball, spec).detach()
        except Exception as error:
            if out_of_memory(error) or not inside_backend(error):
                raise
            return
        if excess := violation(found, spec, logits, off):
            where = f"at eps={ball.eps} a point lies {excess:.3g} outside its bounds"
            raise _wrong(self.converted, model, self.method, where, found)

    def _rows(self, model: nn.Module) -> Tensor:
        """Single logits, a difference of two and a combination of all, the same for each input."""
        classes, like = self.converted.classes, self.x
        cost = 24 * len(self.x) * sum(activation_sizes(model, self.x))
        chosen = torch.randperm(classes, generator=self.generator)[: max(1, min(_LOGITS, int(_VALUES / max(1, cost))))]
        rows = [*torch.eye(classes)[chosen]]
        if classes > 1:
            rows.append(torch.eye(classes)[chosen[0]] - torch.eye(classes)[chosen[0] - 1])
        rows.append(torch.randn(classes, generator=self.generator))
        return torch.stack(rows).to(like).expand(len(like), -1, -1)


def _drawn(model: nn.Module, converted: Bounded, x: Tensor, seed: int) -> nn.Module | None:
    """A copy with weights drawn anew, of the size that keeps values in range; None where the graph is not its graph."""
    with suppress(Exception):
        twin = copy.deepcopy(model)
        generator = torch.Generator().manual_seed(seed)
        for parameter in twin.parameters():
            if parameter.is_floating_point():
                fan_in = parameter[0].numel() if parameter.dim() > 1 else 4
                noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
                parameter.copy_(noise * (2 / fan_in) ** 0.5)
        if converted.agrees(twin, x[: converted.samples or 2]):  # weights that were read in Python are constants
            return twin
    return None


def refuse_contradicted(
    converted: Bounded, model: nn.Module, x: Tensor, ball: Ball, spec: Tensor | None, found: Interval, method: str
) -> None:
    """Raises UnsupportedModelError where one gradient step from a sample leads out of the bounds found for its ball.

    The step lowers the row with the lowest bound as far as the ball allows, so that it meets certificates where they
    are weakest, for a fraction of what linear bounds cost.
    """
    with torch.inference_mode(False), torch.no_grad():
        run = batched(model, converted.samples)
        found = found.detach()
        clean = run(x)
        rows = torch.eye(converted.classes).to(x).expand(len(x), -1, -1) if spec is None else spec
        lowest = found.lower.nan_to_num().argmin(1)
        goal = -rows[torch.arange(len(x), device=x.device), lowest]
        logits = torch.stack((clean, run(step_up(run, x, ball, goal))))
        excess = violation(found, spec, logits, evaluation_error(model, x, clean))
    if excess:
        raise _wrong(converted, model, method, f"a point of the ball lies {excess:.3g} outside its bounds", found)


def _wrong(converted: Bounded, model: nn.Module, method: str, what: str, found: Interval) -> UnsupportedModelError:
    version = ".".join(map(str, converted.backend.version))
    return UnsupportedModelError(
        f"auto_LiRPA {version} bounds {type(model).__name__} wrongly with {method}: {what}, which are "
        f"{float(found.width.mean()):.3g} wide; so it is refused"
    )


def violation(found: Interval, spec: Tensor | None, logits: Tensor, off: Tensor) -> float:
    """How far the worst of `logits` (points, batch, classes) lies outside the bounds; 0 where only rounding does so.

    Bounds that cross violate as well. `off` is each sample's rounding error of the model itself. What is not finite is
    passed over.
    """
    value = logits if spec is None else torch.einsum("brc,pbc->pbr", spec, logits)
    slack = _OF_WIDTH * found.width.clamp(min=0) + _rounding(found, spec, value, off)
    crossed = (found.lower - found.upper).unsqueeze(0)
    outside = torch.cat((found.lower - value, value - found.upper, crossed))
    outside = outside.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    return float(torch.where(outside > slack, outside, 0.0).amax())


def rejoined(converted: Bounded, model: nn.Module, x: Tensor, spec: Tensor | None, found: Interval) -> Interval:
    """`found`, its ends exchanged where they cross by no more than rounding does, that of the model at `x` included."""
    with torch.no_grad():
        crossed = found.lower > found.upper
        if not bool(crossed.any()):
            return found
        logits = batched(model, converted.samples)(x)
        value = logits.unsqueeze(0) if spec is None else torch.einsum("brc,bc->br", spec, logits).unsqueeze(0)
        off = evaluation_error(model, x, logits)
        near = crossed & (found.lower - found.upper <= _rounding(found, spec, value, off))
    lower, upper = found.lower, found.upper
    return Interval(torch.where(near, upper, lower), torch.where(near, lower, upper))


def _rounding(found: Interval, spec: Tensor | None, value: Tensor, off: Tensor) -> Tensor:
    """How far bounds and values (points, batch, rows) may be off by rounding, per sample and row."""
    largest = torch.cat((found.lower.abs()[None], found.upper.abs()[None], value.abs()))
    scale = largest.nan_to_num(posinf=0.0, neginf=0.0).amax((0, 2)).unsqueeze(1)
    return _ROUNDING * scale + ERRORS * off.unsqueeze(1) * (1 if spec is None else spec.abs().sum(2))
