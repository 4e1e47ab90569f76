"""Poison with clean labels, by ART and by this package: within its budget, and working where its papers say so."""

from __future__ import annotations

import contextlib
import io

import pytest
import torch
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.poisoning.attacks.goals import features_of

pytest.importorskip("art")

DIGITS = rp.dataset("digits")
X, Y = DIGITS.x_train[:500], DIGITS.y_train[:500]
TEST = (DIGITS.x_test[:200], DIGITS.y_test[:200])
BUDGET = rp.PoisoningBudget(points=30, eps=0.4, clip=(0, 1))


def learned(model: nn.Module, parameters: list[nn.Parameter], x: Tensor, y: Tensor, steps: int = 60) -> nn.Module:
    optimizer = torch.optim.Adam(parameters, lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


def train(x: Tensor, y: Tensor) -> nn.Module:
    """A network from scratch."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10)).to(x)
    return learned(model, list(model.parameters()), x, y)


def fine_tune(x: Tensor, y: Tensor) -> nn.Module:
    """A new last layer on features that were learned before, as in transfer learning."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = train(X, Y)
        model[3] = nn.Linear(48, 10)
    return learned(model, list(model[3].parameters()), x, y, 100)


def barely(x: Tensor, y: Tensor) -> nn.Module:
    """A linear network that has hardly begun to learn."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).to(x)
    return learned(model, list(model.parameters()), x, y, 5)


def weak_goal(train: object) -> tuple[Tensor, Tensor]:
    """A test sample that is decided rightly by little, and the class that comes second."""
    torch.manual_seed(0)
    logits = train(X, Y)(TEST[0]).detach()
    others = logits.scatter(1, TEST[1].unsqueeze(1), -torch.inf)
    margin = logits.gather(1, TEST[1].unsqueeze(1)).squeeze(1) - others.amax(1)
    chosen = int(margin.masked_fill(margin < 0.3, torch.inf).argmin())
    return TEST[0][chosen : chosen + 1], others[chosen].argmax().view(1)


def margin(model: nn.Module, goal: tuple[Tensor, Tensor]) -> float:
    """How far the goal's class is ahead of the best other one."""
    logits = model(goal[0])[0].detach()
    wanted = int(goal[1])
    return (logits[wanted] - logits[torch.arange(10) != wanted].max()).item()


def poisoned(attack: str, learner: object, goal: tuple[Tensor, Tensor] | None, budget: rp.PoisoningBudget = BUDGET):
    return rp.poison_and_train(attack, learner, X, Y, budget, test=TEST, goal=goal)


@pytest.mark.parametrize(
    ("attack", "learner"),
    [
        ("art:gradient-matching(steps=60)", train),
        ("poison:bullseye", fine_tune),
        ("art:feature-collision(steps=20)", fine_tune),
    ],
)
def test_poison_brings_the_goal_nearer_and_keeps_its_labels(attack: str, learner: object) -> None:
    goal = weak_goal(learner)
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
        found = poisoned(attack, learner, goal)
    assert not shown.getvalue(), "ART is silent"
    assert torch.equal(found.data[1], Y), "labels stay"
    assert 0 < int(found.changed.sum()) <= 30
    assert (Y[found.changed] == goal[1]).all(), "samples of the wanted class move"
    torch.manual_seed(0)
    assert margin(found.model, goal) > margin(poisoned("poison:random(count=1)", learner, goal).model, goal) + 0.2


def test_bullseye_brings_features_to_the_goals() -> None:
    goal = weak_goal(train)
    found = poisoned("poison:bullseye", train, goal)
    torch.manual_seed(0)
    model = rp.poison_and_train("poison:random(count=1)", train, X, Y, rp.PoisoningBudget(), test=TEST).model
    wanted = features_of(model, goal[0]).detach()
    moved = found.changed

    def distance(x: Tensor) -> float:
        return (features_of(model, x[moved]).mean(0) - wanted[0]).norm().item()

    assert distance(found.data[0]) < 0.7 * distance(X)


def test_a_clean_label_backdoor_is_learned_from_samples_of_its_own_class() -> None:
    budget = rp.PoisoningBudget(points=50, eps=1.0, clip=(0, 1))
    found = poisoned("art:clean-label-backdoor(target=3,size=3)", train, None, budget)
    assert torch.equal(found.data[1], Y)
    assert (Y[found.changed] == 3).all()
    assert found.clean.backdoor is not None
    assert found.poisoned.backdoor is not None
    assert found.poisoned.backdoor > found.clean.backdoor + 0.3


def test_a_sleeper_agent_hides_its_trigger() -> None:
    budget = rp.PoisoningBudget(points=40, eps=0.3, clip=(0, 1))
    found = poisoned("art:sleeper-agent(target=3,steps=40)", train, None, budget)
    assert torch.equal(found.data[1], Y)
    assert 0 < int(found.changed.sum()) <= 40
    assert (Y[found.changed] == 3).all()
    assert (found.data[0] - X).abs().max() <= 0.3 + 1e-6
    rows = TEST[0].flatten(1), TEST[1]
    again = rp.poison_and_train(
        "art:sleeper-agent(target=3,steps=5,source=1)", barely, X.flatten(1), Y, budget, test=rows
    )
    assert int(again.changed.sum()) > 0
    with pytest.raises(rp.ArgumentError, match="`source` is 3; accepted: another class than target"):
        poisoned("art:sleeper-agent(target=3,source=3)", barely, None, budget)


def test_goals_of_several_classes_and_budgets_without_features_are_refused() -> None:
    with pytest.raises(rp.ArgumentError, match="`goal` is with 2 classes"):
        poisoned("poison:bullseye", barely, (TEST[0][:2], torch.tensor([1, 2])))
    with pytest.raises(rp.ArgumentError, match=r"accepted: one with points and eps: the attack moves features"):
        poisoned("art:gradient-matching", barely, None, rp.PoisoningBudget(labels=3))
