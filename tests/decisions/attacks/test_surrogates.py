"""Models that stand for others where these have no gradient, or another answer every time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import robust_plugins as rp


def _in_place(x: Tensor) -> Tensor:
    x = 255 * x
    x.round_()
    return x / 255


STEPS = {
    "round": lambda x: (255 * x).round() / 255,
    "digits": lambda x: torch.round(x, decimals=2),
    "floor": lambda x: torch.floor(255 * x) / 255,
    "in place": _in_place,
    "uint8": lambda x: (255 * x).to(torch.uint8).float() / 255,
    "byte": lambda x: (255 * x).byte() / 255,
    "int64": lambda x: (255 * x).type(torch.int64).to(x.dtype) / 255,
    "sign": lambda x: torch.sign(x - 0.5),
    "division": lambda x: (255 * x) // 1 / 255,
    "rounded division": lambda x: torch.div(255 * x, 2, rounding_mode="floor") * 2 / 255,
}


class Stepped(nn.Module):
    def __init__(self, step: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.step, self.body = STEPS[step], nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.step(x))


@pytest.mark.parametrize("step", STEPS)
def test_steps_are_passed_and_outputs_are_equal(step) -> None:
    model, x = Stepped(step), torch.rand(40, 5, requires_grad=True)
    out = rp.straight_through(model)(x)
    assert torch.equal(out, model(x))
    (gradient,) = torch.autograd.grad(out[:, 0].sum(), x)
    torch.testing.assert_close(gradient, model.body.weight[0].expand(40, -1))
    try:
        (own,) = torch.autograd.grad(model(x)[:, 0].sum(), x, allow_unused=True)
    except RuntimeError:  # floor division has no derivative in torch
        own = None
    assert own is None or not own.any()


def test_other_operations_keep_their_gradients() -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    x = torch.rand(4, 5, requires_grad=True)
    (expected,) = torch.autograd.grad((model(x) / 3).sum(), x)
    (found,) = torch.autograd.grad((rp.straight_through(model)(x) / 3).sum(), x)
    assert torch.equal(expected, found)


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn(1)


def test_averages_draw_anew_or_repeat_themselves() -> None:
    x = torch.zeros(3, 2)
    torch.manual_seed(0)
    spread = torch.stack([rp.averaged(Noisy(), draws=64)(x) for _ in range(50)]).std(0)
    assert (spread < 0.2).all()
    assert (spread > 0.05).all()
    fixed = rp.averaged(Noisy(), draws=4, seed=3)
    state = torch.get_rng_state()
    assert torch.equal(fixed(x), fixed(x))
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(rp.ArgumentError, match="draws"):
        rp.averaged(Noisy(), draws=0)


def test_claims_on_a_fixed_average_can_be_repeated() -> None:
    body = nn.Linear(2, 2)
    model = rp.averaged(nn.Sequential(Noisy(), body), draws=8, seed=0)
    x = torch.rand(20, 2)
    result = rp.attack("rp:margin-pgd")(model, x, model(x).argmax(1), rp.Linf(eps=0.2, clip=None), seed=0)
    assert result.notes == ()
    assert torch.equal(model(result.x_adv), result.logits)
