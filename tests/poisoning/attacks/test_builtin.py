"""Data poisoning attacks: inside the budget, trained as torch trains, and better than random where guided."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from support.inclusion import Setting, poisoned
from torch import Tensor

import robust_plugins as rp
from robust_plugins.poisoning.attacks.interface import PoisoningAttack, poisoned_trainings
from robust_plugins.poisoning.concrete.batches import PoisonedBatch, inside
from robust_plugins.poisoning.concrete.clipping import as_clip
from robust_plugins.poisoning.concrete.losses import objective
from robust_plugins.poisoning.concrete.trainings import Trainings

Budget = rp.PoisoningBudget
SETTINGS = {
    "linf": Setting(budget=Budget(points=2, eps=0.2, clip=(-1.0, 1.0), labels=1)),
    "l2": Setting(budget=Budget(points=2, eps=(0.1, 0.4, 0.0, 0.2), norm="l2", labels=3, paired=True)),
    "l1": Setting(budget=Budget(points=3, eps=0.5, norm="l1", labels=1, paired=True), clip=0.1),
    "columns": Setting(budget=Budget(points=2, eps=0.5, columns=(1, 3)), optimizer=rp.Adam(lr=0.1)),
    "target": Setting(budget=Budget(labels=2, target=1)),
    "numbers": Setting(budget=Budget(points=1, eps=0.1, labels=2, label_radius=0.3), loss="mse"),
    "binary": Setting(budget=Budget(labels=2), loss="hinge"),
    "substitution": Setting(budget=Budget.substitution(2), clip=0.1),
    "substitution, norm": Setting(budget=Budget.substitution(2), clip=rp.NormClip(0.3)),
    "addition": Setting(budget=Budget.addition(2), clip=0.1),
    "removal": Setting(budget=Budget.removal(2)),
    "removal of all": Setting(budget=Budget.removal(9), optimizer=rp.SGD(lr=0.1, momentum=0.5)),
    "conv": Setting(budget=Budget(points=2, eps=0.2, labels=1), net="conv"),
}
ATTACKS = [rp.RandomPoisoning(count=3), rp.LossAscent(), rp.CoordinatePoisoning(coordinates=3), rp.GradientAlignment()]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
@pytest.mark.parametrize("name", SETTINGS)
def test_inside_and_as_torch_trains(name: str, attack: PoisoningAttack) -> None:
    setting = SETTINGS[name]
    model, batches, seen = setting.model(), setting.batches(), list[PoisonedBatch]()
    found = poisoned_trainings(attack, model, batches, setting.budget, **setting.arguments(),
                               observe=lambda _, batch: seen.append(batch))  # fmt: skip
    kind = objective(setting.loss)
    clean = [(x, kind.checked(y, 3 if setting.loss == "cross_entropy" else 1)) for x, y in batches]
    for i in range(len(next(iter(found.parameters.values())))):
        own = Trainings(model, list(found.parameters), kind, setting.optimizer, clip=as_clip(setting.clip))
        for t, batch in enumerate(seen):
            assert inside(setting.budget, clean[t % len(clean)], batch.of(i))
            own.step(PoisonedBatch.whole(*batch.of(i)))
        for p, value in own.values().items():
            torch.testing.assert_close(found.parameters[p][i], value[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in SETTINGS if name != "conv"])
def test_pushes_go_where_they_are_said_to_and_beyond_random(name: str) -> None:
    setting = replace(SETTINGS[name], epochs=1, sizes=(8,), optimizer=rp.SGD(lr=0.3))  # one update: greedy is best
    few = (3, 7, 11)
    pushed = _flat(poisoned(setting, (rp.CoordinatePoisoning(coordinates=few),)))
    random = _flat(poisoned(setting, (rp.RandomPoisoning(count=8),)))
    for i, c in enumerate(few):
        assert pushed[2 * i, c] >= random[:, c].median() - 1e-12
        assert pushed[2 * i + 1, c] <= random[:, c].median() + 1e-12
    reached = sum(pushed[2 * i, c] - pushed[2 * i + 1, c] for i, c in enumerate(few))
    assert reached > (random.amax(0) - random.amin(0))[list(few)].sum()


@pytest.mark.parametrize("name", ["linf", "l2", "target", "numbers", "substitution", "addition", "removal"])
def test_alignment_raises_the_test_loss_beyond_random(name: str) -> None:
    setting = replace(SETTINGS[name], epochs=3)
    (aligned,) = _losses(setting, rp.GradientAlignment())
    random = _losses(setting, rp.RandomPoisoning(count=20))
    assert aligned > sorted(random)[10]


def test_flips_by_loss_take_the_label_with_the_largest_loss() -> None:
    setting = Setting(budget=Budget(labels=2), sizes=(8,), epochs=1)
    seen: list[PoisonedBatch] = []
    model = setting.model()
    poisoned_trainings(rp.LossAscent(), model, setting.batches(), setting.budget, **setting.arguments(),
                       observe=lambda _, batch: seen.append(batch))  # fmt: skip
    ((x, y),) = setting.batches()
    z = model(x).log_softmax(1).neg().detach()
    gain = z.amax(1) - z.gather(1, y[:, None]).squeeze(1)
    expected = y.clone()
    most = gain.topk(2).indices
    expected[most] = z.argmax(1)[most]
    assert torch.equal(seen[0].of(0)[1], expected)


def test_no_budget_leaves_the_data() -> None:
    setting = Setting(budget=Budget())
    for attack in ATTACKS:
        found = _flat(poisoned(setting, (attack,)))
        assert torch.equal(found, found[:1].expand_as(found))


CLEAN = (torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]], dtype=torch.float64), torch.tensor([0, 1, 2]))


def _changed(*cells: tuple[int, int, float], labels: dict[int, int] | None = None) -> tuple[Tensor, Tensor]:
    x, y = CLEAN[0].clone(), CLEAN[1].clone()
    for i, j, delta in cells:
        x[i, j] += delta
    for i, label in (labels or {}).items():
        y[i] = label
    return x, y


ONE = Budget(points=1, eps=0.5, labels=1)


@pytest.mark.parametrize(("budget", "poisoned", "allowed"), [
    (ONE, _changed((0, 0, 0.5), labels={1: 0}), True),
    (ONE, _changed((0, 0, 0.51)), False),
    (ONE, _changed((0, 0, 0.1), (1, 0, 0.1)), False),
    (ONE, _changed(labels={0: 1, 1: 0}), False),
    (replace(ONE, paired=True), _changed((0, 0, 0.5), labels={1: 0}), False),
    (replace(ONE, paired=True), _changed((0, 0, 0.5), labels={0: 1}), True),
    (replace(ONE, norm="l2"), _changed((0, 0, 0.3), (0, 1, 0.4)), True),
    (replace(ONE, norm="l2"), _changed((0, 0, 0.4), (0, 1, 0.4)), False),
    (replace(ONE, norm="l1"), _changed((0, 0, 0.3), (0, 1, 0.3)), False),
    (replace(ONE, columns=(0,)), _changed((0, 1, 0.1)), False),
    (replace(ONE, clip=(0.0, 2.0)), _changed((0, 0, -0.1)), False),
    (replace(ONE, target=2), _changed(labels={0: 2}), True),
    (replace(ONE, target=2), _changed(labels={0: 1}), False),
    (Budget.substitution(1), _changed((0, 0, 99.0), (0, 1, 3.0), labels={0: 2}), True),
    (Budget.substitution(1), _changed((0, 0, 99.0), labels={1: 2}), False),
    (Budget.removal(2), (CLEAN[0][1:2], CLEAN[1][1:2]), True),
    (Budget.removal(1), (CLEAN[0][1:2], CLEAN[1][1:2]), False),
    (Budget.removal(2), (CLEAN[0][1:2], CLEAN[1][2:]), False),
    (Budget.addition(1), (torch.cat([CLEAN[0], CLEAN[0][:1]]), torch.tensor([0, 1, 2, 1])), True),
    (Budget.addition(1), (CLEAN[0].repeat(2, 1), CLEAN[1].repeat(2)), False),
])  # fmt: skip
def test_inside(budget: Budget, poisoned: Any, allowed: bool) -> None:
    assert inside(budget, CLEAN, poisoned) is allowed


@pytest.mark.parametrize(("kind", "values", "said"), [
    (rp.RandomPoisoning, {"count": 0}, "count"),
    (rp.LossAscent, {"steps": 0}, "steps"),
    (rp.GradientAlignment, {"steps": 0}, "steps"),
    (rp.CoordinatePoisoning, {"coordinates": 0}, "coordinates"),
    (rp.CoordinatePoisoning, {"coordinates": (-1,)}, "coordinates"),
])  # fmt: skip
def test_wrong_arguments(kind: Any, values: dict[str, Any], said: str) -> None:
    with pytest.raises(rp.ArgumentError, match=said):
        kind(**values)


def test_a_coordinate_that_is_not_there() -> None:
    with pytest.raises(rp.ArgumentError, match="coordinates"):
        poisoned(Setting(budget=Budget(labels=1)), (rp.CoordinatePoisoning(coordinates=(10**6,)),))


def _flat(parameters: dict[str, Tensor]) -> Tensor:
    return torch.cat([p.flatten(1) for p in parameters.values()], 1)


def _losses(setting: Setting, attack: PoisoningAttack) -> list[float]:
    model = setting.model()
    x, y = (torch.cat(parts) for parts in zip(*setting.batches(), strict=True))
    found = poisoned_trainings(attack, model, setting.batches(), setting.budget, **setting.arguments(),
                               validation=(x, y))  # fmt: skip
    kind = objective(setting.loss)
    return [kind.losses(z, kind.checked(y, z.shape[1])).mean().item() for z in found.outputs(x)]


class _Scaled(torch.nn.Module):
    """Has a single number among its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.scale = torch.nn.Linear(4, 3), torch.nn.Parameter(torch.tensor(1.3))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(x) * self.scale
        return found


@pytest.mark.parametrize("clip", [None, 1.0, rp.NormClip(0.3)], ids=repr)
def test_parameters_that_are_single_numbers(clip: Any) -> None:
    setting = Setting(budget=Budget(points=1, eps=0.1), clip=clip)
    found = rp.poisoning_bracket(_Scaled().double(), setting.batches(), setting.budget, **setting.arguments(),
                                 progress=False)  # fmt: skip
    assert found.trainings[0].parameters["scale"].shape == (8,)
    assert not found.crossings
    with_push = rp.CoordinatePoisoning(coordinates=(0,))  # the scale comes first
    pushed = with_push(_Scaled().double(), setting.batches(), setting.budget, **setting.arguments())
    assert pushed.parameters["scale"][0] > pushed.parameters["scale"][1]
