"""Adversarial examples as 8-bit files hold them: inside the ball, and judged again."""

from __future__ import annotations

import pytest
import torch
from support.attacked import decisions, mlp
from torch import nn

import robust_plugins as rp


def _files(n: int, dtype: torch.dtype, levels: int = 256) -> torch.Tensor:
    drawn = torch.randint(levels, (n, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    return (drawn.double() / (levels - 1)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ball", [
    rp.Linf(eps=8 / 255, clip=(0, 1)), rp.Linf(eps=0.05, clip=(0, 1)), rp.L2(eps=0.5, clip=(0, 1)),
    rp.L1(eps=3.0, clip=(0, 1)),
], ids=["whole levels", "between levels", "L2", "L1"])  # fmt: skip
def test_files_stay_inside_and_are_judged_again(ball: rp.Ball, dtype: torch.dtype) -> None:
    model, x = mlp(dtype).train(), _files(8, dtype)
    y = decisions(model, x)
    result = rp.attack("art:pgd", steps=10)(model, x, y, ball, seed=0)
    file = result.quantised(model, x, y, ball)
    written = (255 * file.x_adv).round().byte()
    torch.testing.assert_close(written.to(dtype) / 255, file.x_adv, rtol=0, atol=1e-6)
    assert ball.contains(file.x_adv, x).all()
    assert (file.distance <= result.distance + 1e-5).all()
    assert (255 * (file.x_adv - result.x_adv).abs() < 1.01).all()
    assert torch.equal(file.success, model.eval()(file.x_adv).argmax(1) != y)
    torch.testing.assert_close(file.logits, model(file.x_adv))


def test_levels_that_are_reached_are_kept() -> None:
    """A step of exactly eight levels is eight levels, whatever the rounding of 8 / 255."""
    model, x = mlp(), _files(8, torch.float32)
    y, ball = decisions(model, x), rp.Linf(eps=8 / 255, clip=(0, 1))
    result = rp.attack("art:fgsm")(model, x, y, ball, seed=0)
    torch.testing.assert_close(result.quantised(model, x, y, ball).x_adv, result.x_adv, rtol=0, atol=1e-6)


def test_a_success_that_lives_between_levels_does_not_survive() -> None:
    model = nn.Linear(1, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[-1.0], [0.0]]))
        model.bias.copy_(torch.tensor([0.5, 0.0]))
    x = torch.tensor([[0.4], [0.8]])
    y, ball = torch.tensor([0, 1]), rp.Linf(eps=0.15, clip=(0, 1))
    result = rp.attack("art:fgsm")(model, x, y, ball, seed=0)
    assert result.success.tolist() == [True, False]
    few = result.quantised(model, x, y, ball, levels=6)
    assert few.success.tolist() == [False, False]
    assert torch.equal(few.x_adv, x)
    assert result.quantised(model, x, y, ball, levels=101).success.tolist() == [True, False]


def test_targets_and_other_ranges() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    x = 510 * _files(6, torch.float32) - 255
    y, ball = decisions(model, x), rp.Linf(eps=60, clip=(-255, 255))
    result = rp.attack("art:pgd", steps=5)(model, x, y, ball, target="random", seed=0)
    file = result.quantised(model, x, y, ball)
    assert ball.contains(file.x_adv, x).all()
    assert torch.equal(file.success, model(file.x_adv).argmax(1) == result.target)
    assert file.success.any()


def test_what_is_refused() -> None:
    model, x = mlp(), _files(2, torch.float32)
    y, ball = decisions(model, x), rp.Linf(eps=0.1, clip=(0, 1))
    result = rp.attack("art:fgsm")(model, x, y, ball, seed=0)
    with pytest.raises(rp.ArgumentError, match=r"`x` is not made of 256 levels of \[0, 1\].*Round x itself"):
        result.quantised(model, (x + 0.001).clamp(0, 1), y, ball)
    with pytest.raises(rp.ArgumentError, match="`levels` is 1"):
        result.quantised(model, x, y, ball, levels=1)
    with pytest.raises(rp.ArgumentError, match="without a clip range"):
        result.quantised(model, x, y, rp.Linf(eps=0.1, clip=None))
