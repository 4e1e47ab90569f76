"""Elections tried with every change of few voters, at the level of votes."""

from __future__ import annotations

from itertools import combinations, permutations, product

import pytest
import torch
from torch import Tensor

from robust_plugins.poisoning.partitions.votes import NEVER, majority, run_off

VOTERS, CLASSES = 5, 3
RANKINGS = torch.tensor(list(permutations(range(CLASSES))), dtype=torch.float64)


def decided_by_hand(scores: Tensor, method: str) -> int:
    """The winner of one election, written as its definition."""
    prefers = [sorted(range(CLASSES), key=lambda c, s=s: (-s[c], c)) for s in scores.tolist()]
    votes = [sum(p[0] == c for p in prefers) for c in range(CLASSES)]
    order = sorted(range(CLASSES), key=lambda c: (-votes[c], c))
    if method == "majority":
        return order[0]
    a, b = sorted(order[:2])
    return a if 2 * sum(p.index(a) < p.index(b) for p in prefers) >= VOTERS else b


def reachable(scores: Tensor, changed: int, method: str) -> set[int]:
    """Every decision that some change of so many voters leads to."""
    elections = []
    for chosen in combinations(range(VOTERS), changed):
        for rankings in product(range(len(RANKINGS)), repeat=changed):
            other = scores.clone()
            other[list(chosen)] = RANKINGS[list(rankings)]
            elections.append(other)
    found, _ = (run_off if method == "run-off" else majority)(torch.stack(elections, 1))
    return set(found.tolist())


def elections(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return RANKINGS[torch.randint(0, len(RANKINGS), (VOTERS, count), generator=generator)]


@pytest.mark.parametrize("method", ["majority", "run-off"])
def test_decisions_are_those_of_the_definition(method: str) -> None:
    scores = elections(300)
    found, _ = (run_off if method == "run-off" else majority)(scores)
    assert found.tolist() == [decided_by_hand(scores[:, i], method) for i in range(300)]


@pytest.mark.parametrize("method", ["majority", "run-off"])
def test_no_fewer_voters_change_a_decision_and_so_many_often_do(method: str) -> None:
    scores = elections(24)
    decision, changed = (run_off if method == "run-off" else majority)(scores)
    exact = 0
    for i in range(scores.shape[1]):
        need = next(m for m in range(1, VOTERS + 1) if reachable(scores[:, i], m, method) != {int(decision[i])})
        assert int(changed[i]) <= need, f"election {i} is decided anew by {need} voters"
        exact += int(changed[i]) == need
    assert exact == 24 if method == "majority" else exact >= 22


def test_more_voters_than_the_counts_say_are_never_needed_in_larger_elections() -> None:
    # Random changes of one voter less than the count, in elections that no list can hold.
    generator = torch.Generator().manual_seed(1)
    for classes in (2, 4, 7):
        lean = torch.randn(1, 60, classes, generator=generator)
        scores = lean + torch.randn(31, 60, classes, generator=generator)
        for election in (majority, run_off):
            decision, changed = election(scores)
            for _ in range(12):
                other = scores.clone()
                # For the class that comes second where the poisoner chooses, or for another one.
                rival = torch.randint(0, classes, (60,), generator=generator)
                for i in range(60):
                    most = min(int(changed[i]) - 1, 31)
                    against = (scores[:, i].argmax(1) == decision[i]).double() * 2 + torch.rand(31, generator=generator)
                    chosen = against.topk(most).indices
                    other[chosen, i] = torch.nn.functional.one_hot(rival[i], classes).to(other)
                assert torch.equal(election(other)[0], decision)


def test_the_run_off_tolerates_more_where_votes_are_split() -> None:
    # 4 votes against 3 and 3; all others prefer class 0 to the rest.
    first = torch.tensor([[3.0, 2.0, 1.0]] * 4 + [[2.0, 3.0, 1.0]] * 3 + [[2.0, 1.0, 3.0]] * 3).unsqueeze(1)
    assert majority(first)[1].item() == 1
    assert run_off(first)[1].item() == 2


def test_a_single_class_is_never_left() -> None:
    for election in (majority, run_off):
        decision, changed = election(torch.zeros(3, 2, 1))
        assert decision.tolist() == [0, 0]
        assert changed.tolist() == [NEVER, NEVER]
