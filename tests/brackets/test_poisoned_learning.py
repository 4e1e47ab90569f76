"""`poison_and_train`: what poison does to learners on digits, and what votes certify of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from sklearn.naive_bayes import GaussianNB
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.poisoning.attacks.interface import Case
from robust_plugins.poisoning.concrete.batches import PoisonedBatch
from robust_plugins.poisoning.concrete.trainings import Trainings
from robust_plugins.poisoning.partitions.ensemble import PartitionEnsemble

Budget = rp.PoisoningBudget
DIGITS = rp.dataset("digits")
X, Y, TEST = DIGITS.x_train[:600], DIGITS.y_train[:600], (DIGITS.x_test, DIGITS.y_test)


def train(x: Tensor, y: Tensor) -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)).to(x)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


def test_a_backdoor_hides_and_its_trigger_is_obeyed() -> None:
    budget = Budget(points=40, labels=40, eps=1.0, clip=(0, 1))
    before = torch.get_rng_state()
    found = rp.poison_and_train("poison:backdoor(target=3)", train, X, Y, budget, test=TEST)
    assert torch.equal(before, torch.get_rng_state())
    assert found.clean.backdoor is not None
    assert found.poisoned.backdoor is not None
    assert found.clean.backdoor < 0.1
    assert found.poisoned.backdoor > 0.8
    assert found.poisoned.accuracy > found.clean.accuracy - 0.1
    assert int(found.changed.sum()) == 40
    assert (found.data[1][found.changed] == 3).all()
    assert "trigger obeyed" in str(found)
    assert repr(found).startswith("PoisonedLearning(attack='static backdoor', changed=40")


def test_flips_by_loss_and_by_influence_cost_more_than_random_ones() -> None:
    left = {
        name: rp.poison_and_train(name, train, X, Y, Budget(labels=120), test=TEST).poisoned.accuracy
        for name in ("poison:random(count=1)", "poison:loss-ascent", "poison:alignment")
    }
    assert left["poison:loss-ascent"] < left["poison:random(count=1)"] - 0.03
    assert left["poison:alignment"] < left["poison:random(count=1)"] - 0.03


def test_the_most_helpful_samples_are_removed() -> None:
    found = rp.poison_and_train("poison:alignment", train, X, Y, Budget.removal(200), test=TEST)
    assert len(found.data[0]) == 400
    assert int(found.changed.sum()) == 200
    assert found.poisoned.accuracy < found.clean.accuracy


@dataclass(frozen=True, kw_only=True)
class Relabel(rp.PoisoningAttack):
    """Gives the training samples nearest to the goal the poisoner's class."""

    def poison(self, case: Case, trainings: Trainings, x: Tensor, y: Tensor) -> PoisonedBatch:
        assert case.goal is not None
        near = torch.cdist(case.goal[0].flatten(1), x.flatten(1))[0].topk(case.budget.labels, largest=False).indices
        return PoisonedBatch.whole(x, y.index_fill(0, near, int(case.goal[1][0])))


def test_attacks_see_the_goal_and_are_judged_by_it() -> None:
    goal = (TEST[0][:1], (TEST[1][:1] + 1) % 10)
    found = rp.poison_and_train(Relabel(), train, X, Y, Budget(labels=30), test=TEST, goal=goal)
    assert (found.clean.goal, found.poisoned.goal) == (0.0, 1.0)
    assert "goal reached" in str(found)


def test_votes_of_partitions_keep_what_they_prove() -> None:
    learner = GaussianNB(var_smoothing=0.1)
    found = rp.poison_and_train("poison:loss-ascent", learner, X, Y, Budget(labels=2), test=TEST, partitions=12)
    assert found.votes is not None
    achieved, certified = found.votes
    assert achieved is not None
    assert certified is not None
    assert 0.3 < certified <= achieved
    assert not found.crossings
    assert "at least" in str(found)


def test_votes_that_prove_too_much_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = PartitionEnsemble.certify

    def lying(*args: object, **kwargs: object) -> rp.PartitionCertificate:
        found = honest(*args, **kwargs)
        return replace(found, tolerated=found.tolerated + 1000)

    monkeypatch.setattr(PartitionEnsemble, "certify", lying)
    learner = GaussianNB(var_smoothing=0.1)
    found = rp.poison_and_train("poison:loss-ascent", learner, X, Y, Budget(labels=200), test=TEST, partitions=12)
    assert found.crossings
    assert "CONTRADICTION: sample" in str(found)


@pytest.mark.usefixtures("unchecked")
def test_wrong_arguments_are_named() -> None:
    budget = Budget(labels=2)
    with pytest.raises(rp.ArgumentError, match=r"`test` is torch.float32 of shape .*; accepted: a pair of samples"):
        rp.poison_and_train("poison:random", train, X, Y, budget, test=(X, X))
    with pytest.raises(rp.ArgumentError, match="`budget` is 3"):
        rp.poison_and_train("poison:random", train, X, Y, 3, test=TEST)
    with pytest.raises(rp.ArgumentError, match=r"`train` is Linear; accepted: a function"):
        rp.poison_and_train("poison:random", nn.Linear(2, 2), X, Y, budget, test=TEST)
    with pytest.raises(rp.UnknownNameError, match="Did you mean 'poison:random'"):
        rp.poison_and_train("poison:randm", train, X, Y, budget, test=TEST)


@pytest.mark.usefixtures("unchecked")
def test_data_surrogates_and_learners_that_do_not_fit_are_named() -> None:
    budget = Budget(labels=2)
    for said, name, train_with, more in (
        (r"`x, y` is with features that are not finite", "poison:random", train, {"x": X * torch.nan}),
        (r"`test` is with features that are not finite", "poison:random", train, {"test": (TEST[0] / 0, TEST[1])}),
        (r"`test` is torch.float64 of shape .*as the training samples", "poison:random", train,
         {"test": (TEST[0].double(), TEST[1])}),
        (r"`goal` is torch.float32 of shape \(1, 2\)", "poison:random", train,
         {"goal": (torch.zeros(1, 2), torch.zeros(1, dtype=torch.long))}),
        (r"`surrogate` is with 9 outputs; accepted: at least 10", "poison:random", train,
         {"surrogate": nn.Sequential(nn.Flatten(), nn.Linear(64, 9))}),
        (r"`surrogate` is a Linear that does not take", "poison:random", train, {"surrogate": nn.Linear(3, 10)}),
        (r"`budget` is the removal of 600 of 600 samples", "poison:random", train, {"budget": Budget.removal(600)}),
        (r"`classes` is 9; accepted: an integer of at least 10", "poison:random", train, {"classes": 9}),
    ):  # fmt: skip
        arguments = {"x": X, "y": Y, "budget": budget, "test": TEST, **more}
        with pytest.raises(rp.ArgumentError, match=said):
            rp.poison_and_train(name, train_with, **arguments)  # type: ignore[arg-type]
    with pytest.raises(rp.ComponentError, match="training returned NoneType, which is no model"):
        rp.poison_and_train("poison:random", lambda x, y: None, X, Y, budget, test=TEST)


def test_a_learner_with_more_outputs_than_classes_seen_and_a_trigger_that_nobody_can_obey() -> None:
    few = Y < 3
    found = rp.poison_and_train("poison:backdoor(target=0)", train, X[few], Y[few],
                                Budget(points=3, labels=3, eps=1.0, clip=(0, 1)),
                                test=(TEST[0][TEST[1] == 0], TEST[1][TEST[1] == 0]), classes=10)  # fmt: skip
    assert found.poisoned.backdoor is None, "no test sample is of another class"
    assert "nan" not in str(found)
