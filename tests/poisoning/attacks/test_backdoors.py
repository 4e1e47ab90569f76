"""Triggers and the samples that carry them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.poisoning.attacks.backdoors import Backdoor

Budget = rp.PoisoningBudget


def images(samples: int = 300) -> Tensor:
    return torch.rand(samples, 2, 5, 6, generator=torch.Generator().manual_seed(0)) / 2


def attack(name: str, **parameters: object) -> Backdoor:
    found = rp.poisoning_attack(name, **parameters)
    assert isinstance(found, Backdoor)
    return found


def test_a_static_trigger_is_the_corner_of_every_image_or_the_end_of_every_row() -> None:
    static = attack("poison:backdoor", size=2, value=0.75)
    place = static.place(images(3))
    assert place[:, :, 3:, 4:].all()
    assert place.sum() == 3 * 2 * 4
    assert (static.trigger(images(3))[place] == 0.75).all()
    assert torch.equal(static.trigger(images(3))[~place], images(3)[~place])
    assert static.place(torch.rand(2, 7)).int().tolist() == [[0, 0, 0, 0, 0, 1, 1]] * 2
    assert static.place(torch.rand(2, 1)).all(), "a trigger may be all that there is"
    assert static.place(torch.rand(0, 2, 5, 6)).shape == (0, 2, 5, 6)


def test_a_dynamic_trigger_is_anywhere_and_at_the_same_place_for_the_same_sample() -> None:
    dynamic, x = attack("poison:dynamic-backdoor", size=2), images()
    place = dynamic.place(x)
    assert (place.flatten(1).sum(1) == 2 * 4).all()
    alone = torch.cat([dynamic.place(x[i : i + 1]) for i in range(len(x))])
    assert torch.equal(place, alone)
    top_left = place[:, 0, :4, :5].flatten(1).int().argmax(1)
    assert len(top_left.unique()) == 4 * 5, "some place is never taken"
    assert torch.equal(dynamic.place(x.double()), place)
    assert (dynamic.place(torch.rand(50, 9)).int().argmax(1).bincount(minlength=8) > 0).sum() > 4


def poisoned(name: str, budget: Budget, *, target: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The clean samples and labels, and what the first update saw."""
    x, y = images(20), torch.arange(20) % 3
    seen = []
    attack(name, target=target)(
        nn.Sequential(nn.Flatten(), nn.Linear(60, 3)), [(x, y)], budget, loss="cross_entropy",
        optimizer=rp.SGD(lr=0.1), epochs=1, clip_gradient=1.0, observe=lambda _, batch: seen.append(batch),
    )  # fmt: skip
    return x, y, *seen[0].of(0)


@pytest.mark.parametrize("name", ["poison:backdoor", "poison:dynamic-backdoor"])
def test_as_many_samples_of_other_classes_are_poisoned_as_the_budget_allows(name: str) -> None:
    x, y, z, labels = poisoned(name, Budget(points=4, labels=6, eps=1.0, clip=(0, 1)))
    moved = (z != x).flatten(1).any(1)
    assert moved.sum() == 4
    assert (labels[moved] == 1).all()
    assert (y[moved] != 1).all()
    assert torch.equal(labels[~moved], y[~moved])

    x, y, z, labels = poisoned(name, Budget(points=4, labels=4, eps=0.1, clip=(0, 1)))
    assert (z - x).abs().max() <= 0.1 + 1e-6, "a trigger is cut to its budget"

    x, y, z, labels = poisoned(name, Budget.addition(5))
    assert torch.equal(z[:20], x)
    assert labels[20:].tolist() == [1] * 5

    x, y, z, labels = poisoned(name, Budget.substitution(99))
    assert (labels == 1).all(), "all samples of other classes"


def test_budgets_without_room_for_a_backdoor_are_refused() -> None:
    for budget in (Budget(labels=3), Budget(points=3, eps=1.0), Budget.removal(2)):
        with pytest.raises(rp.ArgumentError, match=r"one with points and labels, or with samples substituted or added"):
            poisoned("poison:backdoor", budget)
    with pytest.raises(rp.ArgumentError, match=r"labels changed to 2; accepted: 1 or None"):
        poisoned("poison:backdoor", Budget(points=3, labels=3, eps=1.0, target=2))
    with pytest.raises(rp.ArgumentError, match=r"`target` is 7; accepted: a class of the model"):
        poisoned("poison:backdoor", Budget.addition(1), target=7)
    with pytest.raises(rp.ArgumentError, match="`size` is 0"):
        rp.poisoning_attack("poison:backdoor", size=0)
    with pytest.raises(rp.ArgumentError, match="`target` is -1"):
        rp.poisoning_attack("poison:dynamic-backdoor", target=-1)
