"""Bounds of domains: memory that is used again, the duals that an ascent leaves, and the units to split at."""

from __future__ import annotations

import torch

from robust_plugins.decisions.verifier.branching import BestChild, Seen
from robust_plugins.decisions.verifier.domains import Domains, DualAscent, lower_bound
from robust_plugins.intervals.methods.compact import Compact, Scratch


def network(units: int = 12, inputs: int = 5) -> Compact:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1

    compact = Compact(inputs, torch.empty(0, dtype=torch.float64))
    for _ in range(2):
        matrix, offset = random(units, compact.size), random(units)
        most = matrix[:, :inputs].abs().sum(1) + matrix[:, inputs:].abs().sum(1) * 2 * inputs + offset.abs()
        none, one = torch.zeros_like(offset), torch.ones_like(offset)
        compact.add(0, matrix, offset, least=none, most=one, chord=0.5 * one, intercept=0.5 * most)
    return compact


def domains(compact: Compact, count: int) -> Domains:
    generator = torch.Generator().manual_seed(count)
    shape = (len(compact.offset), count)
    signs = torch.randint(-1, 2, shape, generator=generator).double()
    slopes = torch.where(signs == 0, torch.rand(shape, generator=generator).double(), signs.clamp(min=0))
    multipliers = torch.rand(shape, generator=generator).double() * signs.abs()
    return Domains(signs, slopes, multipliers, torch.ones(1, count, dtype=torch.float64))


def drawn(compact: Compact, count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randn(compact.size, count, generator=generator, dtype=torch.float64)


def test_memory_used_again_changes_no_bound() -> None:
    compact, scratch = network(), Scratch()
    for count in (7, 3, 9):
        some, rows = domains(compact, count), drawn(compact, count)
        fresh, again = (lower_bound(compact, rows, rows[0], some, memory) for memory in (None, scratch))
        for one, other in zip(fresh, again, strict=True):
            assert torch.equal(one, other)
        for one, other in zip(compact.minimiser(fresh), compact.minimiser(again, scratch), strict=True):
            assert torch.equal(one, other)


def test_an_ascent_leaves_duals_of_each_domain_in_its_own_column() -> None:
    compact, ascent = network(), DualAscent(steps=5)
    some, rows = domains(compact, 30), drawn(compact, 30)
    const = torch.linspace(-5, 60, 30, dtype=torch.float64)  # some are closed on the way, and leave the others
    best, found = ascent.improve(compact, rows, const, some)
    left = lower_bound(compact, rows, const, found).value
    assert 5 < int((best > 0).sum()) < 25
    for i in range(30):
        at = torch.tensor([i])
        alone, duals = ascent.improve(compact, rows[:, at], const[at], some.select(at))
        assert bool(alone > 0) == bool(best[i] > 0)
        if best[i] > 0:  # is left with the duals that close it
            assert left[i] > 0
            continue
        torch.testing.assert_close(alone, best[at])
        torch.testing.assert_close(duals.slopes, found.slopes[:, at])
        torch.testing.assert_close(duals.multipliers, found.multipliers[:, at])


def test_candidates_are_different_units_that_are_still_open() -> None:
    compact, count = network(), 20
    some = domains(compact, count)
    rows = drawn(compact, count)
    bound = lower_bound(compact, rows, rows[0] - 20, some)
    _, z = compact.minimiser(bound)
    seen = Seen(compact, some, rows, rows[0] - 20, bound, z)
    units = BestChild(shortlist=8, at_once=5).candidates(seen, 4)
    for i in range(count):
        chosen = units[i][units[i] >= 0].tolist()
        assert len(set(chosen)) == len(chosen) == min(4, int(seen.open[:, i].sum()))
        assert bool((seen.open[chosen, i] == 1).all())
