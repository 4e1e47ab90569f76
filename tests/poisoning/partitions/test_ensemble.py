"""Ensembles of partitions, with every poison of few samples tried."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.tree import DecisionTreeClassifier
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.poisoning.partitions.division import divided, reached
from robust_plugins.poisoning.partitions.votes import majority, run_off


class Centroids:
    """Decides on the nearest mean of a class; of classes without samples the mean is far away."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.means = torch.stack([x[y == c].mean(0) if (y == c).any() else torch.full_like(x[0], 1e3) for c in (0, 1)])

    def __call__(self, x: Tensor) -> Tensor:
        return -torch.cdist(x, self.means)


def data(samples: int = 14) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    y = torch.arange(samples) % 2
    return torch.randn(samples, 2, generator=generator, dtype=torch.float64) + 2.0 * y.unsqueeze(1), y


def ensemble(x: Tensor, y: Tensor, by: str = "features", partitions: int = 5) -> rp.PartitionEnsemble:
    return rp.partition_aggregation(
        Centroids, x, y, partitions=partitions, by=by, classes=2, check=False, progress=False
    )


def test_no_removed_or_relabelled_pair_changes_a_certified_decision() -> None:
    x, y = data(18)
    z = torch.randn(40, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64) * 2 + 1
    clean = [election(ensemble(x, y).scores(z)) for election in (majority, run_off)]
    altered = torch.zeros(2, 3, 40, dtype=torch.bool)
    for k in (1, 2):
        for chosen in combinations(range(len(x)), k):
            keep = torch.ones(len(x), dtype=torch.bool)
            keep[list(chosen)] = False
            for other in (ensemble(x[keep], y[keep]), ensemble(x, torch.where(keep, y, 1 - y))):
                scores = other.scores(z)
                for i, election in enumerate((majority, run_off)):
                    altered[i, k] |= election(scores)[0] != clean[i][0]
    for (_, changed), found in zip(clean, altered, strict=True):
        assert not (found[1] & (changed > 1)).any()
        assert not (found[2] & (changed > 2)).any()
        assert (found[1] & (changed == 1)).any(), "a count that is larger by one would pass"
        assert (found[2] & (changed == 2)).any(), "a count that is larger by one would pass"
        assert (changed > 2).any(), "pairs of samples were tried in vain"


@pytest.mark.parametrize("by", ["features", "sample", "place"])
def test_moved_samples_count_once_by_place_and_twice_otherwise(by: str) -> None:
    x, y = data()
    z = torch.randn(40, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64) * 2 + 1
    clean = ensemble(x, y, by).certify(z, torch.zeros(40).long())
    certified = clean.tolerated >= reached(rp.PoisoningBudget(points=1, eps=10.0), by)
    for i in range(len(x)):
        for step in (-9.0, 9.0):
            moved = x.clone()
            moved[i] += step
            now = ensemble(moved, y, by).certify(z, torch.zeros(40).long()).decision
            assert not ((now != clean.decision) & certified).any()


def test_partitions_do_not_depend_on_the_order_of_the_data() -> None:
    x, y = data(200)
    shuffled = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    for by in ("features", "sample"):
        for a, b in zip(divided(x, y, 7, by), divided(x[shuffled], y[shuffled], 7, by), strict=True):
            assert torch.equal(x[a], x[shuffled][b])
    sizes = [len(part) for part in divided(x, y, 7, "features")]
    assert sum(sizes) == 200
    assert min(sizes) > 10


def test_what_a_budget_reaches() -> None:
    both = rp.PoisoningBudget(points=3, eps=0.1, labels=5)
    nested = rp.PoisoningBudget(points=3, eps=0.1, labels=5, paired=True)
    assert [reached(both, by) for by in ("features", "sample", "place")] == [11, 16, 8]
    assert [reached(nested, by) for by in ("features", "sample", "place")] == [8, 10, 5]
    assert reached(rp.PoisoningBudget.addition(4), "features") == reached(rp.PoisoningBudget.removal(4), "sample") == 4
    assert reached(rp.PoisoningBudget.substitution(4), "features") == 8
    assert reached(rp.PoisoningBudget.substitution(4), "place") == 4
    with pytest.raises(rp.ArgumentError, match=r"a removal; accepted: .* Divide the data by='features'"):
        reached(rp.PoisoningBudget.removal(1), "place")


@pytest.mark.parametrize("learner", [LogisticRegression(max_iter=300), DecisionTreeClassifier(max_depth=3)])
def test_classifiers_of_scikit_learn_learn_too(learner: object) -> None:
    digits = rp.dataset("digits")
    found = rp.partition_aggregation(learner, digits.x_train, digits.y_train, partitions=15, progress=False)
    certificate = found.certify(digits.x_test, digits.y_test)
    accuracy = [certificate.certified_accuracy(k) for k in (0, 1, 3)]
    assert accuracy[0] >= accuracy[1] >= accuracy[2] > 0.2
    assert certificate.certified_accuracy(rp.PoisoningBudget(points=1, eps=0.1)) == certificate.certified_accuracy(2)
    assert not hasattr(learner, "classes_"), "the learner itself was fitted"


def test_networks_are_trained_with_seeds_and_leave_the_callers_alone() -> None:
    x, y = data(60)

    def train(x: Tensor, y: Tensor) -> nn.Module:
        model = nn.Linear(2, 2).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        for _ in range(20):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        return model

    before = torch.get_rng_state()
    first = rp.partition_aggregation(train, x, y, partitions=4, progress=False)
    again = rp.partition_aggregation(train, x, y, partitions=4, progress=False)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first.scores(x), again.scores(x))
    assert torch.equal(first.scores(x), first.scores(x, batch_size=7))
    assert first.certify(x, y).certified_accuracy() > 0.8


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_certified_is_refused() -> None:
    x, y = data()
    drift = iter(range(100))

    def forgetful(x: Tensor, y: Tensor) -> object:
        number = next(drift)
        return lambda z: torch.stack([z[:, 0], z[:, 0] * number], 1)

    with pytest.raises(rp.ComponentError, match="twice gives two models: seed everything"):
        rp.partition_aggregation(forgetful, x, y, partitions=2, progress=False)
    with pytest.raises(rp.ArgumentError, match=r"`train` is Linear; accepted: a function"):
        rp.partition_aggregation(nn.Linear(2, 2), x, y, partitions=2)
    with pytest.raises(rp.ArgumentError, match="`by` is 'hash'; accepted: 'features', 'sample', 'place'"):
        rp.partition_aggregation(Centroids, x, y, partitions=2, by="hash")
    with pytest.raises(rp.ArgumentError, match="`partitions` is 0"):
        rp.partition_aggregation(Centroids, x, y, partitions=0)
    with pytest.raises(rp.ArgumentError, match=r"`y` is from 0 to 1; accepted: classes from 0 to 0"):
        rp.partition_aggregation(Centroids, x, y, partitions=2, classes=1)
    with pytest.raises(rp.ComponentError, match=r"answers with shape \(14,\); expected scores of shape"):
        rp.partition_aggregation(lambda x, y: lambda z: z[:, 0], x, y, partitions=1, progress=False).certify(x, y)
    with pytest.raises(rp.ComponentError, match="answers with NaN"):
        rp.partition_aggregation(
            lambda x, y: lambda z: z * torch.nan, x, y, partitions=1, check=False, progress=False
        ).certify(x, y)
