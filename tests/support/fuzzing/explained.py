"""What is asked of an explanation certifier on a case: no gradient of the ball lies outside its bounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

import robust_plugins as rp
from support.fuzzing.checks import REFUSALS, Outcome, Violation, place_of
from support.fuzzing.drawing import Case, outputs
from support.fuzzing.reaching import Reached
from support.fuzzing.traces import changed, snapshot

OF = ("logit", "margin", "loss")
COMPONENTS = 4
"""Of the gradient, that are pushed one by one."""


def check_explanations(name: str, certifier: rp.ExplanationCertifier, cases: Sequence[tuple[Case, Reached]]) -> Outcome:
    """Compares gradient bounds, and the certificate's statements, with the gradients of points. Double models only."""
    model = cases[0][0].written.model()
    found: dict[str, Violation] = {}
    bounded, message = False, ""
    for case, reached in cases:
        if case.written.flags & {"batch", "chance"}:
            continue
        before, x, of = snapshot(model), case.x.clone(), OF[case.seed % 3]
        try:
            bounds = certifier.bounds(model, x, case.y, case.ball, of=of).detach()
            certificate = certifier(model, x, case.y, case.ball, of=of, delta=0.1)
            bounded = True
            low, high = _extremes(case, reached, of)
            for what, interval in (("gradient bounds", bounds), ("certified gradient bounds", certificate.gradient)):
                if detail := _left(interval, low, high):
                    found.setdefault(what, Violation(name, what, f"of={of}: {detail}", case.seed))
            if rp.Verdict.ERROR in certificate.verdicts:
                detail = next(m for m in certificate.messages if m)
                found.setdefault("error", Violation(name, "error", detail, case.seed))
            turned = (((low < 0) & (certificate.value > 0)) | ((high > 0) & (certificate.value < 0))).flatten(1).any(1)
            if bool((certificate.keeps_sign() & turned).any()):
                found.setdefault("sign", Violation(name, "sign", f"of={of}: a kept sign turns", case.seed))
        except REFUSALS as error:
            message = str(error)
        except Exception as error:  # which no caller should meet
            found.setdefault("raises", Violation(name, "raises", place_of(error), case.seed))
        if not torch.equal(x, case.x):
            found.setdefault("changes x", Violation(name, "changes x", "x is not what it was", case.seed))
        if trace := changed(before, model, writes="writes" in case.written.flags):
            found.setdefault("leaves a trace", Violation(name, "leaves a trace", trace, case.seed))
            model = case.written.model()
    return Outcome(bounded, tuple(found.values()), message)


def _left(bounds: rp.Interval, low: Tensor, high: Tensor) -> str:
    scale = torch.maximum(bounds.magnitude.nan_to_num(posinf=0.0), torch.maximum(low.abs(), high.abs()))
    scale = scale.flatten(1).amax(1).view(-1, *[1] * (low.dim() - 1))
    excess = torch.maximum(bounds.lower - low, high - bounds.upper) - 1e-11 * scale - 1e-14
    if not bool((excess > 0).any()):
        return ""
    at = int(excess.argmax())
    ends = [t.flatten()[at].item() for t in (bounds.lower, bounds.upper, low, high)]
    return "component {}: [{:.9g}, {:.9g}] but [{:.9g}, {:.9g}] was reached".format(at, *ends)


def _number(case: Case, of: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The number that is explained, of outputs (n, classes) and of the samples that they belong to."""
    with torch.no_grad():
        clean = outputs(case.written.model(), case.x)
    other = clean.scatter(1, case.y.unsqueeze(1), -torch.inf).argmax(1)

    def number(z: Tensor, sample: Tensor) -> Tensor:
        y = case.y[sample].unsqueeze(1)
        if of == "loss":
            return F.cross_entropy(z, y.squeeze(1), reduction="none")
        own = z.gather(1, y).squeeze(1)
        return own if of == "logit" else own - z.gather(1, other[sample].unsqueeze(1)).squeeze(1)

    return number


def _extremes(case: Case, reached: Reached, of: str) -> tuple[Tensor, Tensor]:
    """The least and greatest value of each component that was found, shaped like x."""
    model, number = case.written.model(), _number(case, of)
    draw = torch.Generator().manual_seed(case.seed)

    def gradients(z: Tensor, *, twice: bool = False) -> Tensor:
        """At z of shape (n, batch, *features)."""
        sample = torch.arange(len(case.x)).repeat(len(z))
        flat = z.flatten(0, 1)
        if not flat.requires_grad:
            flat = flat.detach().requires_grad_()
        (g,) = torch.autograd.grad(number(outputs(model, flat), sample).sum(), flat, create_graph=twice)
        return g.view(z.shape)

    points = [case.x.unsqueeze(0), reached.at.flatten(0, 1)]
    points += [case.ball.sample(case.x, 64, draw, draw=kind) for kind in ("uniform", "corner")]  # type: ignore[arg-type]
    z = torch.cat(points)
    with torch.enable_grad():
        g = gradients(z)
        found = [g]
        features = case.x[0].numel()
        for i in torch.randperm(features, generator=draw)[:COMPONENTS].tolist():
            for sign in (1.0, -1.0):
                best = (sign * g.flatten(2)[..., i]).argmax(0)
                at = z[best, torch.arange(len(case.x))].unsqueeze(0)
                found += _climbed(case, gradients, at, i, sign)
    every = torch.cat(found)
    return every.amin(0), every.amax(0)


def _climbed(case: Case, gradients: Callable[..., Tensor], z: Tensor, component: int, sign: float) -> list[Tensor]:
    found = []
    eps = case.ball.eps_for(case.x)
    for size in (0.5, 0.25, 0.1, 0.02):
        z = z.detach().requires_grad_()
        try:
            g = gradients(z, twice=True)
            (up,) = torch.autograd.grad(sign * g.flatten(2)[..., component].sum(), z)
        except RuntimeError:  # piecewise linear, or not twice differentiable in place
            return found
        direction = up.sign() if case.ball.norm == torch.inf else F.normalize(up.flatten(2), dim=2).view_as(up)
        z = case.ball.project((z.detach() + size * eps * direction)[0], case.x).unsqueeze(0)
        found.append(gradients(z).detach())
    return found
