"""Planted faults: components that are wrong in the ways that real ones have been are found by the audit."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from support.study_answers import answers
from torch import nn

import robust_plugins as rp
from robust_plugins.balls import Linf
from robust_plugins.benchmark.auditing import Rule, Severity, audit
from robust_plugins.benchmark.columns import Columns
from robust_plugins.decisions.attack import Attack
from robust_plugins.decisions.certifier import Certifier
from robust_plugins.intervals import Interval


@pytest.fixture
def asked():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    x = torch.rand(20, 12)
    return model, x, model(x).argmax(1), rp.Linf(eps=0.05, clip=None)


def audited(*parts):
    return audit(Columns.of({n: getattr(r, n) for n in r.__dataclass_fields__} for part in parts for r in part))


@dataclass(frozen=True, kw_only=True)
class Steepest(Attack):
    """Finds the worst point of a linear model."""

    def perturb(self, model, x, y, ball, *, targeted):
        worst, least = x, None
        for other in range(3):
            z = x.clone().requires_grad_()
            logits = model(z)
            gap = logits[:, other] - logits.gather(1, y.unsqueeze(1)).squeeze(1)
            moved = x + ball.steepest(torch.autograd.grad(gap.sum(), z)[0])
            with torch.no_grad():
                margin = model(moved).gather(1, y.unsqueeze(1)).squeeze(1) - model(moved)[:, other]
            margin = torch.where(y == other, torch.inf, margin)
            take = margin < (torch.inf if least is None else least)
            worst, least = (
                torch.where(take.unsqueeze(1), moved, worst),
                torch.minimum(margin, least) if least is not None else margin,
            )
        return worst


@dataclass(frozen=True, kw_only=True)
class Certain(Certifier):
    """Bounds a linear model exactly, in a ball that is smaller than what was asked for by `lie`."""

    lie: float = 0.0
    rounding: ClassVar[float] = 1e-6

    def propagate(self, model, x, ball, spec):
        weight, bias = model[1].weight, model[1].bias
        rows = torch.eye(3).expand(len(x), 3, 3) if spec is None else spec
        centre = rows @ weight
        middle = (centre @ x.flatten(1).unsqueeze(2)).squeeze(2) + rows @ bias
        spread = ball.largest * (1 - self.lie) * centre.abs().sum(2)
        return Interval(middle - spread, middle + spread)


@dataclass(frozen=True, kw_only=True)
class Crowded(Certain):
    """Right alone; in a batch it takes the largest margin of its neighbours for everybody's."""

    def propagate(self, model, x, ball, spec):
        found = super().propagate(model, x, ball, spec)
        if len(x) == 1:
            return found
        upper = found.upper + (found.lower.amax(0) - found.lower)
        return Interval(found.lower.amax(0).expand_as(found.lower), upper)


def test_a_certifier_that_lies_by_one_per_cent(asked):
    attack = answers(Steepest(), *asked)
    assert audited(attack, answers(Certain(), *asked)).violations == []
    findings = audited(attack, answers(Certain(lie=0.01), *asked))
    assert findings.violations
    assert {f.rule for f in findings.violations} <= {Rule.MARGIN, Rule.INSIDE}


def test_a_lie_shows_at_other_radii_too(asked):
    model, x, y, _ = asked
    lying = answers(Certain(lie=0.9), model, x, y, rp.Linf(eps=0.3, clip=None))
    found = audited(answers(Steepest(), model, x, y, rp.Linf(eps=0.15, clip=None)), lying)
    assert {f.rule for f in found.violations} >= {Rule.RADIUS}


def test_an_attack_that_leaves_its_ball(asked, monkeypatch):
    assert not audited(answers(Steepest(), *asked)).of(Severity.VIOLATION)
    monkeypatch.setattr(Linf, "project", lambda self, z, x: z)
    monkeypatch.setattr(Linf, "steepest", lambda self, gradient: 1.01 * self.largest * gradient.sign())
    found = audited(answers(Steepest(), *asked))
    assert {f.rule for f in found.violations} == {Rule.BALL}


def test_a_certifier_that_is_right_alone_and_wrong_in_a_batch(asked):
    alone, crowded = answers(Crowded(), *asked, batch_size=1), answers(Crowded(), *asked, batch_size=20)
    assert audited(alone, answers(Certain(), *asked)).violations == []
    assert {f.rule for f in audited(alone, crowded).violations} == {Rule.BATCH}
    assert audited(answers(Steepest(), *asked), crowded).violations
