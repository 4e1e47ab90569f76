"""Models that answer the same input in different ways: what attacks claim of them."""

from __future__ import annotations

import torch
from support.toys import SignStep
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.decisions.attack import Again, Attack, Found, _again
from robust_plugins.testing.networks import Case, mlp_case


class Noisy(nn.Module):
    """Draws noise in its forward, in evaluation mode too."""

    def __init__(self, body: nn.Module, size: float) -> None:
        super().__init__()
        self.body, self.size = body, size

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x + self.size * torch.randn_like(x))


class Mixing(nn.Module):
    """Rows that depend on one another, and on no draw."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


def _case() -> Case:
    case = mlp_case(batch=200)
    return Case(Noisy(case.model, 0.05), case.x, case.y, rp.Linf(eps=0.2, clip=(0, 1)))


def _survive(case: Case, result: rp.AttackResult) -> float:
    torch.manual_seed(5)
    with torch.no_grad():
        again = torch.stack([case.model(result.x_adv).argmax(1) != case.y for _ in range(20)])
    return again[:, result.success].float().mean().item()


def test_claims_survive_another_evaluation() -> None:
    case = _case()
    result = SignStep()(case.model, case.x, case.y, case.ball, seed=0)
    assert _survive(case, result) > 0.95
    assert "draws at random" in repr(result)
    assert torch.equal(result.success, result.logits.argmax(1) != case.y)
    with torch.no_grad():  # the planted fault: one evaluation alone
        once = case.model(result.x_adv).argmax(1) != case.y
    assert once.sum() > result.success.sum()


def test_targets_are_confirmed_too() -> None:
    case = _case()
    target = (case.y + 1) % 4
    result = SignStep()(case.model, case.x, case.y, rp.Linf(eps=1.0, clip=None), target=target, seed=0)
    assert result.success.any()
    torch.manual_seed(5)
    with torch.no_grad():
        again = torch.stack([case.model(result.x_adv).argmax(1) == target for _ in range(20)])
    assert again[:, result.success].float().mean() > 0.9
    assert torch.equal(result.success, result.logits.argmax(1) == target)


def test_other_models_are_evaluated_once() -> None:
    case = mlp_case()
    for model in (case.model, nn.Sequential(Mixing(), case.model)):
        assert SignStep()(model, case.x, case.y, case.ball, seed=0).notes == ()
        with torch.no_grad():
            assert _again(model, case.x, model(case.x), None) is not Again.OTHERWISE


class Both(Attack):
    """Names an attack for every second sample."""

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, ball: rp.Ball, *, targeted: bool) -> Tensor:
        return SignStep().perturb(model, x, y, ball, targeted=targeted)

    def find(self, model: nn.Module, x: Tensor, y: Tensor, ball: rp.Ball, *, targeted: bool) -> Found:
        found = self.perturb(model, x, y, ball, targeted=targeted)
        return Found(found, tuple("ab"[i % 2] for i in range(len(x))), ("told",))


def test_successes_are_named_in_chunks_too() -> None:
    case = mlp_case(batch=8)
    ball = rp.Linf(eps=0.3, clip=(0, 1))
    for size in (None, 4):
        result = Both(batch_size=size)(case.model, case.x, case.y, ball, seed=0)
        assert result.notes == ("told",)
        assert result.found_by is not None
        for i, name in enumerate(result.found_by):
            expected = ("a", "b")[i % 2] if result.success[i] else ""
            assert name in (expected, "the input itself" if i == 7 else expected)
    assert SignStep()(case.model, case.x, case.y, ball, seed=0).found_by is None
