"""How many samples the model sees at a time, and which integers labels may be."""

from __future__ import annotations

import art.attacks.evasion as evasion
import pytest
import torch
from support.attacked import ATTACKS, mlp
from torch import Tensor, nn

import robust_plugins as rp

BALL = rp.Linf(eps=0.1, clip=(0, 1))
LABELS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]


SEEN: list[int] = []


class Watched(nn.Module):
    """Notes the sizes of all the batches that it sees; not in itself, for calls leave a model as they find it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp().eval()

    def forward(self, x: Tensor) -> Tensor:
        SEEN.append(x.shape[0])
        out: Tensor = self.body(x)
        return out


def largest() -> int:
    """The largest batch since it was asked for last."""
    found = max(SEEN)
    SEEN.clear()
    return found


def batch(n: int = 40) -> tuple[Watched, Tensor, Tensor]:
    SEEN.clear()
    model, x = Watched(), torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = model.body(x).argmax(1)
    return model, x, y


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("target", [None, "random", "least_likely"])
def test_no_pass_is_larger_than_the_batch_size_of_an_attack(name: str, target: str | None) -> None:
    model, x, y = batch()
    chunked = rp.attack(name, batch_size=16)(model, x, y, BALL, target=target, seed=0)
    assert largest() == 16
    assert chunked.x_adv.shape == x.shape
    rp.attack(name)(model, x, y, BALL, target=target, seed=0)
    assert largest() == 40  # it is the batch size that did it
    torch.testing.assert_close(chunked.logits, model.body(chunked.x_adv))


def test_nor_in_search_in_certifiers_and_in_comparisons() -> None:
    model, x, y = batch()
    rp.attack("art:pgd", steps=2, batch_size=16).search(model, x, y, BALL, seed=0)
    assert largest() == 16
    attack = rp.from_art(evasion.AutoProjectedGradientDescent, max_iter=2, nb_random_init=1, batch_size=7)
    attack(model, x, y, BALL, seed=0)
    assert largest() == 7
    rp.certifier("lirpa:ibp", batch_size=16)(model, x, y, BALL)
    assert largest() == 16
    names = ["art:pgd(steps=2, batch_size=16)", "lirpa:ibp(batch_size=8)"]
    table = rp.compare(model, x, y, BALL, names, seed=0)
    assert largest() == 16
    assert not any(row.error for row in table.rows)


@pytest.mark.parametrize("dtype", LABELS)
def test_labels_are_integers_of_any_type(dtype: torch.dtype) -> None:
    _, x, y = batch(6)
    model = mlp()
    attacks = ATTACKS
    certifiers = ["interval:ibp", "lirpa:crown"]
    expected = rp.compare(model, x, y, BALL, [*attacks, *certifiers], seed=0)
    found = rp.compare(model, x, y.to(dtype), BALL, [*attacks, *certifiers], seed=0)
    assert not any(row.causes for row in found.rows)
    assert [row.accuracy for row in found.rows] == [row.accuracy for row in expected.rows]
    assert found.bracket == expected.bracket
    target = ((y + 1) % 4).to(dtype)
    for name in attacks:
        a, b = (rp.attack(name)(model, x, labels, BALL, target=target, seed=0) for labels in (y, y.to(dtype)))
        assert torch.equal(a.x_adv, b.x_adv)
        assert torch.equal(rp.attack(name).search(model, x, y.to(dtype), BALL, seed=0),
                           rp.attack(name).search(model, x, y, BALL, seed=0))  # fmt: skip
    ours = rp.from_art(evasion.DeepFool, max_iter=2)
    assert torch.equal(*(ours(model, x, labels, BALL, seed=0).x_adv for labels in (y, y.to(dtype))))
