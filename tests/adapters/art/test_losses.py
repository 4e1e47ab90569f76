"""`art:pgd` raises the margin where asked, and is ART's own where not."""

from __future__ import annotations

import pytest
import torch
from support.attacked import decisions, mlp
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.adapters.art import steps
from robust_plugins.decisions.attacks.objectives import margin


class Saturated(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return 1e4 * self.model(x)


@pytest.mark.parametrize("norm", [rp.Linf, rp.L2])
def test_the_margin_sees_through_saturated_logits(x: Tensor, norm: type[rp.Ball]) -> None:
    model = mlp().eval()
    y, ball = decisions(model, x), norm(eps=0.15 if norm is rp.Linf else 0.4, clip=(0, 1))
    parameters = {"steps": 10, "start": "none"}
    blind = rp.attack("art:pgd", **parameters)(Saturated(model), x, y, ball, seed=0)
    seeing = rp.attack("art:pgd", loss="margin", **parameters)(Saturated(model), x, y, ball, seed=0)
    plain = rp.attack("art:pgd", loss="margin", **parameters)(model, x, y, ball, seed=0)
    assert seeing.success.sum() == plain.success.sum() > blind.success.sum()


@pytest.mark.parametrize("loss", ["margin", "dlr"])
def test_targets_are_approached_by_every_loss(x: Tensor, loss: str) -> None:
    model = mlp().eval()
    y = decisions(model, x)
    result = rp.attack("art:pgd", steps=10, loss=loss)(model, x, y, rp.Linf(eps=0.2, clip=(0, 1)), target=(y + 1) % 4)
    with torch.no_grad():
        nearer = margin(model(result.x_adv), result.target) < margin(model(x), result.target)
    assert nearer.float().mean() > 0.9


def test_unknown_losses_and_releases_are_refused(x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(rp.ArgumentError, match="loss"):
        rp.attack("art:pgd", loss="hinge")
    monkeypatch.setattr(steps, "TESTED", ((0, 0), (0, 1)))
    model = mlp().eval()
    with pytest.raises(rp.ArgumentError, match="rp:pgd"):
        rp.attack("art:pgd", loss="margin")(model, x, decisions(model, x), rp.Linf(eps=0.1, clip=(0, 1)))
