"""On linear models our attacks find the worst case, whose closed form is known, at the ends of the range too."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.linear_worst import worst_margins
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.decisions.attacks.objectives import margin

pytestmark = pytest.mark.usefixtures("unchecked")

ATTACKS = {"rp:margin-pgd": {"targets": 1}, "rp:apgd": {"targets": 1}}
TWO_CLASSES = ATTACKS | {"rp:fgsm": {}, "rp:pgd": {"start": "none", "relative_step": 1.0}}
"""Those that leave a label by the nearest class alone may miss the worst of several."""

RADII = {rp.Linf: 0.1, rp.L2: 0.6, rp.L1: 3.0}


def linear(classes: int, features: int = 30, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(features, classes)).double()


def inputs(samples: int, features: int, saturated: float) -> Tensor:
    """Uniform inputs of which so large a share is 0 or 1."""
    x = torch.rand(samples, features, dtype=torch.float64)
    return torch.where(torch.rand_like(x) < saturated, x.round(), x)


def found(attack: rp.Attack, model: nn.Module, x: Tensor, y: Tensor, ball: rp.Ball) -> Tensor:
    with torch.no_grad():
        return margin(model(attack(model, x, y, ball, seed=0).x_adv), y)


def optimum(model: nn.Module, x: Tensor, y: Tensor, ball: rp.Ball) -> Tensor:
    layer = model[1]  # type: ignore[index]
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    eps = np.broadcast_to(ball.radii, len(x))
    return torch.tensor(worst_margins(weight, bias, x.numpy(), y.numpy(), ball.norm, eps, ball.clip))


@pytest.mark.parametrize(("name", "classes"), [*((name, 2) for name in TWO_CLASSES), *((name, 10) for name in ATTACKS)])
@pytest.mark.parametrize("norm", RADII)
@pytest.mark.parametrize("clip", [(0.0, 1.0), None])
def test_the_worst_case_is_found(
    name: str, norm: type[rp.Ball], clip: tuple[float, float] | None, classes: int
) -> None:
    model = linear(classes)
    x = inputs(16, 30, saturated=0.7 if clip else 0.0)
    with torch.no_grad():
        logits = model(x)
    y, eps = logits.argmax(1), [RADII[norm] * (1 + i) / 8 for i in range(16)]
    ball = norm(eps=eps, clip=clip)
    best, start = optimum(model, x, y, ball), margin(logits, y)
    rise = (found(rp.attack(name, **TWO_CLASSES[name]), model, x, y, ball) - start) / (best - start)
    assert (rise > 1 - 1e-3).all(), rise
    assert (rise < 1 + 1e-9).all(), "beyond the optimum, so the optimum or the ball is wrong"


@pytest.mark.parametrize("name", ATTACKS)
def test_no_worst_case_of_an_untrained_linear_model_is_missed(name: str) -> None:
    """PGD on cross-entropy misses 4 of these 32, with restarts too."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    x = torch.rand(32, 1, 8, 8)
    with torch.no_grad():
        y = model(x).argmax(1)
    ball = rp.Linf(eps=0.1, clip=(0.0, 1.0))
    best = optimum(model, x.flatten(1), y, ball)
    torch.testing.assert_close(found(rp.attack(name, **ATTACKS[name]), model, x, y, ball), best.float())
