"""`compare_errors`: the largest error of a regressor in a ball, reached by attacks and bounded by certifiers.

An attack moves decisions, so that one output of the regressor becomes one: the two logits `(t - z, z - t) / 2` with a
threshold t that no input reaches, whose margin falls as z rises. Both directions of every output are attacked, and the
largest error among all that was found counts. Certifiers bound the outputs themselves.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robust_plugins.balls import Ball
from robust_plugins.brackets.components import Components, resolved, with_bar
from robust_plugins.brackets.crossing import Crossing, crossings
from robust_plugins.brackets.error_comparison import ErrorComparison, ErrorRow
from robust_plugins.brackets.observing import observed
from robust_plugins.decisions.attack import Attack
from robust_plugins.decisions.certifier import Certifier
from robust_plugins.errors import ArgumentError
from robust_plugins.harness.call import calling, ordinary
from robust_plugins.harness.component import ERRORS
from robust_plugins.harness.evaluation import NEIGHBOURS, checked_seed, evaluation_error
from robust_plugins.harness.failures import told
from robust_plugins.harness.wrappers import Logits, Model, logits_in
from robust_plugins.intervals import Interval
from robust_plugins.registry.information import Kind

ROUNDING = 1e-6
"""Relative to outputs and references: how far an error may lie above a proved one before it is a contradiction."""
ROUNDS = 3
"""So often the threshold is raised where an attack has passed it: an attack may stop where a decision changes."""


def compare_errors(
    model: Model,
    x: Float[Tensor, "batch *features"],
    y: Tensor | None,
    ball: Ball,
    components: Components,
    *,
    seed: int | None = None,
    progress: bool = False,
) -> ErrorComparison:
    """Does what `compare` says of `task="regression"`."""
    named = resolved(components, {Kind.ATTACK: Attack, Kind.CERTIFIER: Certifier})
    outputs, x = _outputs(model, x, ball)
    with torch.no_grad(), calling(model, x, ball) as call:
        if len(x) and logits_in(out := call.model(x[:1].clone())) is not out:
            model = Logits(call.model)
    reference = outputs if y is None else _reference(y, outputs)
    seed = checked_seed(seed)
    rows: list[ErrorRow] = []
    with observed([name for name, _ in named], ball, seed=seed, samples=len(x)) as tell:
        for name, component in with_bar(named, progress):
            rows.append(_row(name, component, model, x, reference, ball, seed))
            if rows[-1].errors is not None:
                tell(name, rows[-1])
    clean = _error(outputs, reference)
    slack = ROUNDING * (outputs.abs() + reference.abs()).amax(1) + ERRORS * _rounding(model, x, outputs)
    return ErrorComparison(x, reference, ball, seed, clean, tuple(rows), tuple(_crossings(rows, slack)), slack)


class Rising(nn.Module):
    """One output of a regressor as a decision: `sign * z - threshold`, in units of `scale`."""

    def __init__(self, model: nn.Module, place: int, sign: float, threshold: float, scale: float) -> None:
        super().__init__()
        self.model, self.place = model, place
        self.factor, self.shift = sign / scale, threshold / scale

    def forward(self, x: Any) -> Any:  # tracing sends stand-ins for tensors
        """One number per sample, above 0 beyond the threshold."""
        z = self.model(x)
        if z.dim() == 2:
            z = z[:, self.place]
        return z * self.factor - self.shift


def _row(
    name: str, component: Attack | Certifier, model: Model, x: Tensor, reference: Tensor, ball: Ball, seed: int
) -> ErrorRow:
    kind = Kind.ATTACK if isinstance(component, Attack) else Kind.CERTIFIER
    start = time.perf_counter()
    try:
        if isinstance(component, Attack):
            errors, x_adv = _attacked(component, model, x, reference, ball, seed)
            return ErrorRow(name, kind, errors, x_adv, None, time.perf_counter() - start)
        bounds = _bounds(component, model, x, reference, ball)
    except (Exception, SystemExit) as error:  # one backend's failure must not lose the others' results
        return ErrorRow(name, kind, None, None, None, time.perf_counter() - start, told(error), error)
    proved = torch.maximum(bounds.upper - reference, reference - bounds.lower).amax(1)
    return ErrorRow(name, kind, proved, None, bounds, time.perf_counter() - start)


def _attacked(
    attack: Attack, model: Model, x: Tensor, reference: Tensor, ball: Ball, seed: int
) -> tuple[Tensor, Tensor]:
    outputs, _ = _outputs(model, x, ball)
    with calling(model, x, ball) as call:
        module = call.model
    best, x_adv = _error(outputs, reference), x
    if not len(x):
        return best, x_adv
    seen, _ = _outputs(model, ball.sample(x, 1, torch.Generator().manual_seed(seed), draw="corner")[0], None)
    for place in range(outputs.shape[1]):
        for sign in (1.0, -1.0):
            there = sign * torch.cat((outputs, seen))[:, place]
            top, spread = there.max().item(), (there.max() - there.min()).item()
            spread = max(spread, 1e-3 * abs(top), 1e-6)
            for _ in range(ROUNDS):
                rising = Rising(module, place, sign, top + 2 * spread, spread)
                found = attack(rising, x, torch.zeros(len(x), dtype=torch.long, device=x.device), ball, seed=seed)
                reached, _ = _outputs(model, found.x_adv, None)
                error = _error(reached, reference)
                better = error > best
                best = torch.where(better, error, best)
                x_adv = torch.where(better.view(-1, *[1] * (x.dim() - 1)), found.x_adv, x_adv)
                if not bool(found.success.any()):
                    break
                top, spread = (sign * reached[:, place]).max().item(), 2 * spread
    return best, x_adv


def _bounds(certifier: Certifier, model: Model, x: Tensor, reference: Tensor, ball: Ball) -> Interval:
    with torch.no_grad():
        found = certifier.bounds(model, x, ball)
    if reference.shape[1] == 1:  # of the two logits (-z/2, z/2)
        found = found.map(lambda t: 2 * t[:, 1:])
    return found


def _outputs(model: Model, x: Tensor, ball: Ball | None) -> tuple[Tensor, Tensor]:
    """The model's outputs, (batch, outputs), and x as it is when no mode of the caller's is in force."""
    with torch.no_grad(), calling(model, x, ball) as call:
        x = call.x.detach()
        out = call.model(x.clone())
        out = logits_in(out)
    if not isinstance(out, Tensor) or out.dim() not in (1, 2) or len(out) != len(x):
        what = f"of shape {tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
        raise ArgumentError(
            "model", f"returning a tensor {what}" if isinstance(out, Tensor) else f"returning a {what}",
            accepted="one number per sample, or a row of them: (batch,) or (batch, outputs)",
            hint="Wrap it so that forward returns these alone.",
        )  # fmt: skip
    return (out if out.dim() == 2 else out.unsqueeze(1)), x


def _reference(y: Tensor, outputs: Tensor) -> Tensor:
    given = ordinary(y).detach().to(outputs)
    if given.dim() == 1:
        given = given.unsqueeze(1)
    if given.shape != outputs.shape or not bool(given.isfinite().all()):
        raise ArgumentError(
            "y", f"of shape {tuple(y.shape)}", accepted=f"finite numbers of shape {tuple(outputs.shape)}, or None",
            hint="None compares with the model's own predictions at x.",
        )  # fmt: skip
    return given


def _error(outputs: Tensor, reference: Tensor) -> Float[Tensor, " batch"]:
    return (outputs - reference).abs().amax(1)


def _rounding(model: Model, x: Tensor, outputs: Tensor) -> Tensor:
    if not len(x):
        return outputs[:, :0].sum(1)
    with torch.no_grad(), calling(model, x) as call:
        flat = (
            call.model if call.model(x[:1].clone()).dim() == 2 else nn.Sequential(call.model, nn.Unflatten(0, (-1, 1)))
        )
        return evaluation_error(flat, x, outputs, neighbours=NEIGHBOURS)


def _crossings(rows: Sequence[ErrorRow], slack: Tensor) -> list[Crossing]:
    found: list[Crossing] = []
    for attack in (row for row in rows if row.kind is Kind.ATTACK and row.errors is not None):
        for certifier in (row for row in rows if row.kind is Kind.CERTIFIER and row.errors is not None):
            assert attack.errors is not None
            assert certifier.errors is not None
            found += crossings(
                attack.name, certifier.name, "the error", attack.errors, certifier.errors, side="at most", slack=slack
            )
    return found
