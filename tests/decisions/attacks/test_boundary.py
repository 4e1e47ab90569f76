"""`rp:hopskipjump`: models that give decisions alone, and what their examples cost."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

import robust_plugins as rp

pytestmark = pytest.mark.usefixtures("unchecked")

CLIP = (0.0, 1.0)


class Decisions(nn.Module):
    """One-hot decisions of a model, through which no gradient flows; notes the rows that it is asked in a list."""

    def __init__(self, model: nn.Module, rows: list[int]) -> None:
        super().__init__()
        self.model, self.note = model, rows.append

    def forward(self, x: Tensor) -> Tensor:
        self.note(len(x))
        with torch.no_grad():
            z = self.model(x)
        return nn.functional.one_hot(z.argmax(1), z.shape[1]).to(x)


def linear(classes: int) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, classes))
    x = 0.2 + 0.6 * torch.rand(4, 3, 4)
    return model, x, model(x).argmax(1)


@pytest.mark.parametrize("norm", [rp.Linf, rp.L2])
def test_it_comes_close_to_the_closest_without_gradients(norm) -> None:
    model, x, y = linear(2)
    ball = norm(eps=2.0, clip=CLIP)
    closest = rp.attack("rp:fmn")(model, x, y, ball, seed=0).distance
    found = rp.attack("rp:hopskipjump", steps=12)(Decisions(model, []), x, y, ball, seed=0)
    assert found.success.all()
    assert (found.distance <= 1.15 * closest).all()
    assert (found.distance >= closest * (1 - 1e-3)).all()


def test_more_steps_come_closer() -> None:
    model, x, y = linear(3)
    few, many = (
        rp.attack("rp:hopskipjump", steps=steps, tries=20)(model, x, y, rp.L2(eps=2.0, clip=CLIP), seed=0)
        for steps in (1, 8)
    )
    assert many.distance.mean() < 0.9 * few.distance.mean()


def test_the_queries_are_those_that_the_model_counts() -> None:
    model, x, y = linear(2)
    rows: list[int] = []
    result = rp.attack("rp:hopskipjump", steps=3, first_queries=7)(
        Decisions(model, rows), x[:1], y[:1], rp.L2(eps=2.0, clip=CLIP)
    )
    (note,) = [note for note in result.notes if "at most" in note]
    asked = int(re.findall(r"\d+", note)[0])
    # Around the search, the call looks at the input and at the candidate, and whether the answers stay the same.
    assert asked <= sum(rows) <= asked + 8


def test_examples_outside_the_ball_are_none() -> None:
    model, x, y = linear(2)
    closest = rp.attack("rp:fmn")(model, x, y, rp.L2(eps=2.0, clip=CLIP), seed=0).distance
    ball = rp.L2(eps=(0.9 * closest).tolist(), clip=CLIP)
    result = rp.attack("rp:hopskipjump", steps=3)(model, x, y, ball, seed=0)
    assert not result.success.any()
    assert torch.equal(result.x_adv, x)


def test_targets_are_reached_where_a_start_is_drawn() -> None:
    model, x, y = linear(3)
    result = rp.attack("rp:hopskipjump", steps=4)(model, x, y, rp.Linf(eps=1.0, clip=CLIP), target=(y + 1) % 3, seed=0)
    assert result.success.any()
    assert torch.equal(model(result.x_adv).argmax(1) == (y + 1) % 3, result.success)


def test_other_norms_are_refused() -> None:
    model, x, y = linear(2)
    with pytest.raises(rp.ArgumentError, match="rp:hopskipjump minimises"):
        rp.attack("rp:hopskipjump")(model, x, y, rp.L1(eps=1.0, clip=CLIP))
    with pytest.raises(rp.ArgumentError, match="first_queries"):
        rp.attack("rp:hopskipjump", first_queries=0)
