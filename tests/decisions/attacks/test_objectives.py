"""The values that attacks raise, by hand, and where their gradients vanish."""

from __future__ import annotations

import pytest
import torch

import robust_plugins as rp
from robust_plugins.decisions.attacks.objectives import LOSSES, margin, objective, towards

LOGITS = torch.tensor([[3.0, 1.0, 0.0, -4.0], [0.5, 2.0, 1.0, 0.0]], dtype=torch.float64)
Y = torch.tensor([0, 2])


def test_values_by_hand() -> None:
    assert margin(LOGITS, Y).tolist() == [-2.0, 1.0]
    assert LOSSES["dlr"](LOGITS, Y).tolist() == pytest.approx([-2 / 3, 1 / 1.5])  # equation 6
    target = torch.tensor([1, 0])
    assert towards("margin", Y, target)(LOGITS).tolist() == [-2.0, -0.5]
    assert towards("dlr", Y, target)(LOGITS).tolist() == pytest.approx([-2 / 5, -0.5 / 1.75])  # equation 7
    assert objective("margin", target, targeted=True)(LOGITS).tolist() == [-2.0, -1.5]


@pytest.mark.parametrize("loss", ["margin", "dlr"])
def test_scale_decides_nothing(loss: str) -> None:
    for factor in (1e-3, 1e6):
        value = objective(loss, Y, targeted=False)(factor * LOGITS)
        plain = objective(loss, Y, targeted=False)(LOGITS)
        torch.testing.assert_close(value, plain if loss == "dlr" else factor * plain)


@pytest.mark.parametrize("loss", ["margin", "dlr", "cross_entropy"])
@pytest.mark.parametrize("classes", [3, 4, 10])
def test_every_rank_of_a_target_has_a_gradient(loss: str, classes: int) -> None:
    logits = torch.arange(classes, 0.0, -1.0).expand(classes - 1, classes).clone().requires_grad_()
    target, y = torch.arange(1, classes), torch.zeros(classes - 1, dtype=torch.long)
    for value in (objective(loss, target, targeted=True)(logits), towards(loss, y, target)(logits)):
        (gradient,) = torch.autograd.grad(value.sum(), logits)
        assert (gradient.abs().amax(1) > 1e-6).all()
        assert (gradient.gather(1, target.unsqueeze(1)) > 0).all()


def test_the_ratio_needs_three_classes() -> None:
    for make in (objective("dlr", Y % 2, targeted=False), objective("dlr", Y % 2, targeted=True),
                 towards("dlr", Y % 2, 1 - Y % 2)):  # fmt: skip
        with pytest.raises(rp.ArgumentError, match="2 classes"):
            make(LOGITS[:, :2])
