"""How many voters must change before an election may end otherwise: by majority, and by a run-off.

A poisoner who reaches into m partitions decides on everything that the m models trained on these answer, and on nothing
else. The counts here are the smallest m for which the decision may be another one; below, it is proved to stay.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Integer
from torch import Tensor

NEVER = torch.iinfo(torch.int64).max
"""The number of changed voters where no number of them changes the decision."""


def majority(
    scores: Float[Tensor, "voters samples classes"],
) -> tuple[Integer[Tensor, " samples"], Integer[Tensor, " samples"]]:
    """The class with the most votes, of equal ones the first, and how many voters must change before it may change.

    A voter votes for the class of its largest score. One that changes takes a vote from the winner and gives it to
    another class, so that a lead of g votes is lost to ceil(g / 2) voters: Levine and Feizi 2021, "Deep partition
    aggregation", theorem 1.
    """
    votes = _votes(scores)
    winner = _first(votes)
    return winner, _others(_needed(_leads(votes, winner)), winner).amin(1)


def run_off(
    scores: Float[Tensor, "voters samples classes"],
) -> tuple[Integer[Tensor, " samples"], Integer[Tensor, " samples"]]:
    """The winner of a second round between the two classes with the most votes, and how many voters must change.

    In the second round each voter is for that one of both classes to which it gives the larger score. The decision
    changes where two classes overtake the winner in the first round, or where another class comes into the second
    round (so that it is ahead of all others but the winner) and wins that: Rezaei et al. 2023, "Run-off election",
    section 4. Never fewer than that theorem gives, for a class has to be ahead of every other one.
    """
    votes = _votes(scores)
    first = _first(votes)
    taken = torch.arange(votes.shape[1], device=votes.device) == first.unsqueeze(1)
    second = _first(votes.masked_fill(taken, -1)) if votes.shape[1] > 1 else first
    ahead = _duel(scores, first).gather(1, second.unsqueeze(1)).squeeze(1) > 0
    winner = torch.where(ahead | (first == second), first, second)

    leads = _leads(votes, winner)
    # Out in the first round: a voter that changes takes two votes of lead from one rival and one from the other.
    rivals = _others(leads.clamp(min=0), winner).sort(1).values[:, :2]
    out = torch.full_like(winner, NEVER)
    if votes.shape[1] > 2:
        one, two = rivals.unbind(1)
        out = torch.stack((_needed(one), _needed(two), (one + two + 2) // 3)).amax(0)
    # Beaten in the second round: by a class that every other one but the winner lets pass.
    gaps = votes.unsqueeze(2) - votes.unsqueeze(1) + _before(votes)  # [d, c]: the lead of d over c
    own = torch.arange(votes.shape[1], device=votes.device) == winner.unsqueeze(1)
    gaps = gaps.masked_fill(own.unsqueeze(2), 0).diagonal_scatter(torch.zeros_like(votes), dim1=1, dim2=2)
    passes = _needed(gaps).amax(1)
    beaten = torch.maximum(passes, _needed(_duel(scores, winner)))
    return winner, torch.minimum(out, _others(beaten, winner).amin(1))


def _votes(scores: Tensor) -> Tensor:
    """How many voters are for each class: (samples, classes)."""
    return torch.zeros(scores.shape[1:], dtype=torch.int64, device=scores.device).scatter_add_(
        1, (choice := scores.argmax(2).T), torch.ones_like(choice)
    )


def _first(votes: Tensor) -> Tensor:
    """The class with the most votes, of equal ones the first."""
    classes = votes.shape[1]
    return (votes * classes + torch.arange(classes - 1, -1, -1, device=votes.device)).argmax(1)


def _before(votes: Tensor) -> Tensor:
    """1 where the first class of the pair comes before the second, which then wins a draw."""
    order = torch.arange(votes.shape[1], device=votes.device)
    return (order.unsqueeze(1) < order).to(votes)


def _leads(votes: Tensor, winner: Tensor) -> Tensor:
    """The lead of the winner over each class, above 0 where it is ahead: (samples, classes)."""
    before = winner.unsqueeze(1) < torch.arange(votes.shape[1], device=votes.device)
    return votes.gather(1, winner.unsqueeze(1)) - votes + before.to(votes)


def _duel(scores: Tensor, winner: Tensor) -> Tensor:
    """The lead of the winner over each class in a second round between both."""
    own = scores.gather(2, winner.view(1, -1, 1).expand(len(scores), -1, 1))
    before = winner.unsqueeze(1) < torch.arange(scores.shape[2], device=scores.device)
    preferred = ((own > scores) | ((own == scores) & before)).sum(0)
    return 2 * preferred - len(scores) + before.to(preferred)


def _needed(leads: Tensor) -> Tensor:
    """The number of voters that must change before a lead is lost, where each takes 2 of it."""
    return (leads.clamp(min=0) + 1) // 2


def _others(counts: Tensor, winner: Tensor) -> Tensor:
    """The counts with that of the winner itself set to `NEVER`."""
    return counts.scatter(1, winner.unsqueeze(1), NEVER)
