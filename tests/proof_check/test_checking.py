"""Proofs: whole ones hold, and not one of those with a fault is believed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.length import length
from support.proofs import EARLY, MUTATIONS, NEURONS, copied, dense, proved, read, rejected

from robust_plugins.proof_check.reading import Record


@pytest.fixture(scope="module")
def proofs(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Record, Record]]:
    """Networks and proofs, with splits in the search and in the bounds of layers."""
    path, found = tmp_path_factory.mktemp("proofs"), []
    for seed, eps, engine in ((0, 0.3, NEURONS), (1, 0.9, EARLY), (3, 1.2, EARLY), (7, 0.3, NEURONS)):
        x = torch.rand(4, generator=torch.Generator().manual_seed(seed))
        assert proved(dense(seed), x, eps, path / f"{seed}", engine)
        net, (sample,) = read(path / f"{seed}")
        found.append((net, sample))
    return found


def test_whole_proofs_hold(proofs: list[tuple[Record, Record]]) -> None:
    for net, sample in proofs:
        assert rejected(sample, net) == ""
    arrays = [array for _, sample in proofs for name, array in sample.arrays.items() if name.endswith(".tree")]
    assert any((tree >= 0).any() for tree in arrays)
    assert any(len(sample.about["stages"]) > 1 for _, sample in proofs)


def mutated(proofs: list[tuple[Record, Record]], count: int, seed: int) -> None:
    rng, tried = np.random.default_rng(seed), dict.fromkeys((m.__name__ for m in MUTATIONS), 0)
    k = 0
    while sum(tried.values()) < count:
        change, (net, sample) = MUTATIONS[k % len(MUTATIONS)], proofs[rng.integers(len(proofs))]
        net, sample, k = copied(net), copied(sample), k + 1
        if change(sample, net, rng):
            tried[change.__name__] += 1
            assert rejected(sample, net) != "", change.__name__
        assert k < 20 * count
    assert min(tried.values()) > 0, tried


def test_no_mutated_proof_is_believed(proofs: list[tuple[Record, Record]]) -> None:
    mutated(proofs, 60, 0)


@pytest.mark.slow
def test_no_mutated_proof_of_a_thousand_is_believed(proofs: list[tuple[Record, Record]]) -> None:
    mutated(proofs, length(500, 1000), 1)
