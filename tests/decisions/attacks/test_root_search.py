"""The search for the radius at which an attack begins to succeed: never far behind bisection, mostly far ahead."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from robust_plugins.decisions.attacks.root_search import RootSearch

HIGH, WIDTH = 2.0, 2e-3  # ten halvings
ROOTS = torch.linspace(0.001, 1.999, 301, dtype=torch.float64)


def searched(margin: Callable[[Tensor], Tensor], *, pulled: float = 0.0) -> tuple[RootSearch, Tensor]:
    """A whole search, and how often each sample was asked."""
    search = RootSearch(torch.full_like(ROOTS, HIGH), margin(torch.zeros_like(ROOTS)))
    width, asked = torch.full_like(ROOTS, WIDTH), torch.zeros(len(ROOTS), dtype=torch.long)
    for call in range(40):
        at, radii = search.next(width)
        if not len(at):
            return search, asked
        asked[at] += 1
        at_all = torch.zeros_like(ROOTS).scatter(0, at, radii)
        won = radii >= ROOTS[at]
        search.answer(at, radii, won, margin(at_all)[at], known=torch.where(won, radii, search.high[at]))
        if call == 0 and pulled:
            search.nearer((ROOTS * (1 + pulled)).clamp(max=HIGH))
    raise AssertionError("it does not end")


def between(search: RootSearch) -> bool:
    return bool(((search.low < ROOTS) & (search.high >= ROOTS) & (search.high - search.low <= WIDTH)).all())


def test_margins_that_mislead_cost_one_question_at_most() -> None:
    """Of the right sign at each radius, and otherwise as unhelpful as may be."""
    for power in (1, 9, 0.1):
        for up, down in ((1.0, 1e-9), (1e-9, 1.0), (torch.inf, 1.0), (1.0, torch.nan)):

            def margin(r: Tensor, power=power, up=up, down=down) -> Tensor:
                gap = (r - ROOTS).abs() ** power
                return torch.where(r >= ROOTS, up * gap, -down * gap)

            search, asked = searched(margin)
            assert between(search)
            assert int(asked.max()) <= 1 + 10 + 1, "the first question, ten halvings, and one more"


def test_a_random_attack_is_no_worse() -> None:
    torch.manual_seed(0)
    search, asked = searched(lambda r: torch.where(r >= ROOTS, 1, -1) * torch.rand_like(r) ** 8)
    assert between(search)
    assert int(asked.max()) <= 12


def test_smooth_margins_need_half_the_questions() -> None:
    for margin in (lambda r: r - ROOTS, lambda r: torch.expm1(r - ROOTS), lambda r: 5 * torch.tanh(2 * (r - ROOTS))):
        search, asked = searched(margin, pulled=0.2)
        assert between(search)
        assert float(asked.double().mean()) < 6
        assert int(asked.max()) <= 8


def test_a_sample_that_holds_at_first_is_done() -> None:
    search = RootSearch(torch.ones(2), torch.tensor([-1.0, -1.0]))
    at, radii = search.next(torch.full((2,), 1e-3))
    search.answer(at, radii, torch.tensor([False, True]), torch.tensor([-0.5, 0.5]), known=torch.tensor([1.0, 1.0]))
    assert search.next(torch.full((2,), 1e-3))[0].tolist() == [1]
