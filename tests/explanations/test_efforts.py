"""Effort goes to what is open: the verdicts are those of full effort for all, and less is bounded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.explanations.bounds.joint_gates import JointGates
from robust_plugins.explanations.certifiers import IBP, Relaxed
from robust_plugins.testing.networks import mlp_case

CASE = mlp_case(activation=nn.Tanh, normalised=False)
BALL = rp.Linf(eps=0.05, clip=(0.0, 1.0))


@pytest.mark.parametrize(("effort", "of"), [(1, "logit"), (2, "loss"), (3, "margin")])
def test_verdicts_are_those_of_full_effort(effort: int, of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    certifier = Relaxed(effort=effort)
    first = Relaxed()(CASE.model, CASE.x, CASE.y, BALL, of=of, delta=torch.inf)
    full = certifier(CASE.model, CASE.x, CASE.y, BALL, of=of, delta=torch.inf)
    # Some components are open for effort 0, and some of these for more of it; one sample is robust at once.
    delta = 0.5 * (first.width + full.width)
    delta[:, ::2] = 2 * first.width[:, ::2]
    delta[:, 1] = 0.5 * full.width[:, 1]
    delta[0] = 2 * first.width[0]
    rows: list[int] = []
    original = JointGates.bounds

    def counted(self: JointGates, node: int, plane: Any, **options: Any) -> Any:
        entries: Tensor | None = options.get("entries")
        if node == len(self.adjoint.nodes) - 1:
            rows.append(len(self.values[0]) * (CASE.x[0].numel() if entries is None else len(entries)))
        return original(self, node, plane, **options)

    monkeypatch.setattr(JointGates, "bounds", counted)
    staged = certifier(CASE.model, CASE.x, CASE.y, BALL, of=of, delta=delta)
    assert torch.equal(staged.robust, full.width <= delta)
    assert staged.robust.any()
    assert not staged.robust.all()
    still = first.width > delta
    assert (staged.width[still] <= full.width[still] * (1 + 1e-6) + 1e-7).all()
    assert (staged.width <= first.width * (1 + 1e-6) + 1e-7).all()
    few = rows.copy()
    rows.clear()
    certifier(CASE.model, CASE.x, CASE.y, BALL, of=of, delta=torch.inf)
    assert max(few) < 0.7 * max(rows)
    rows.clear()
    assert rp.Verdict.UNKNOWN not in certifier(CASE.model, CASE.x, CASE.y, BALL, of=of, delta=2 * first.width).verdicts
    assert rows == []


def test_eps_of_each_sample_and_weights() -> None:
    radii = [0.01 + 0.01 * i for i in range(len(CASE.x))]
    ball = rp.Linf(eps=radii, clip=(0.0, 1.0))
    certifier = Relaxed(effort=1)
    full = certifier(CASE.model, CASE.x, CASE.y, ball, delta=torch.inf, radius=0.01)
    delta = full.width.median()
    staged = certifier(CASE.model, CASE.x, CASE.y, ball, delta=float(delta), radius=0.01)
    assert torch.equal(staged.robust, full.width <= delta)


@dataclass(frozen=True, kw_only=True)
class _Crossing(IBP):
    """A plugin whose refined bounds are wrong."""

    def cheaper(self, model: nn.Module, x: Tensor) -> rp.ExplanationCertifier | None:
        return IBP()

    def refined(self, *args: Any, wanted: Tensor, **kwargs: Any) -> rp.Interval:
        found = self.gradient_bounds(*args, **kwargs)
        return rp.Interval(found.upper + 1, found.upper + 2)


def test_faults_of_the_refinement_are_errors() -> None:
    found = _Crossing()(CASE.model, CASE.x, CASE.y, BALL, delta=0.0)
    assert set(found.verdicts) == {rp.Verdict.ERROR}
    assert found.gradient.lower.isinf().all()
