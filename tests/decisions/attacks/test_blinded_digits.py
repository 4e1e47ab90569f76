"""A network for the digits, and the three ways in which it blinds attacks: sure, rounded and noisy."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import robust_plugins as rp

BALL = rp.Linf(eps=0.05, clip=(0, 1))
WIDE = rp.Linf(eps=0.1, clip=(0, 1))


class Around(nn.Module):
    def __init__(self, body: nn.Module, how) -> None:
        super().__init__()
        self.body, self.how = body, how

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self.body, x)


@pytest.fixture(scope="module")
def digits() -> tuple[nn.Module, Tensor, Tensor]:
    data = rp.dataset("digits")
    torch.manual_seed(0)
    model = rp.model("mlp", input_shape=data.input_shape, classes=10, widths=(64, 64))
    rp.train(model, data.x_train, data.y_train, epochs=20, seed=0)
    return model.eval(), data.x_test[:200], data.y_test[:200]


def _left(attack: str, model: nn.Module, x: Tensor, y: Tensor, ball: rp.Ball) -> float:
    return 1 - rp.attack(attack)(model, x, y, ball, seed=0).success.double().mean().item()


def test_logits_times_a_thousand(digits) -> None:
    """Cross-entropy leaves .92, as if nothing could be done; a margin .805 or less."""
    model, x, y = digits
    sure = Around(model, lambda body, z: 1000 * body(z))
    table = rp.compare(sure, x, y, BALL, ["rp:pgd", "rp:auto"], seed=0)
    assert table["rp:pgd"].accuracy > 0.9
    assert any("saturates" in reason for reason in table["rp:pgd"].health)
    assert table["rp:auto"].accuracy <= 0.805


def test_inputs_rounded_to_eight_bits(digits) -> None:
    """Transfer from the network without the rounding shows what can be found; gradients passed through find as much."""
    model, x, y = digits
    rounded = Around(model, lambda body, z: body((255 * z).round() / 255))
    moved = rp.attack("rp:margin-pgd")(model, x, y, WIDE, seed=0).x_adv
    with torch.no_grad():
        transfer = (rounded(moved).argmax(1) == y).double().mean().item()
    assert transfer < 0.5
    assert _left("rp:margin-pgd", rounded, x, y, WIDE) > 0.85
    assert _left("rp:auto", rounded, x, y, WIDE) <= transfer
    through = rp.straight_through(rounded)
    assert _left("rp:margin-pgd", through, x, y, WIDE) <= transfer + 0.01


def test_noise_in_forward(digits) -> None:
    """Of what is claimed nearly all survives when it is evaluated again; of one evaluation two thirds do."""
    model, x, y = digits
    noisy = Around(model, lambda body, z: body(z + 0.2 * torch.randn_like(z)))

    def survive(x_adv: Tensor, claimed: Tensor) -> float:
        torch.manual_seed(7)
        with torch.no_grad():
            again = torch.stack([noisy(x_adv).argmax(1) != y for _ in range(20)])
        return again[:, claimed].double().mean().item()

    for attack in ("rp:margin-pgd", "rp:auto"):
        result = rp.attack(attack)(noisy, x, y, WIDE, seed=0)
        assert result.success.any()
        assert survive(result.x_adv, result.success) >= 0.95
        assert any("draws at random" in note for note in result.notes)
    torch.manual_seed(1)
    with torch.no_grad():
        once = noisy(result.x_adv).argmax(1) != y
    assert survive(result.x_adv, once) < 0.9
