"""What certified training adds to its loss, and where it starts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.by_hand import mixed_ibp, network, samples
from torch import nn

import robust_plugins as rp
from robust_plugins.losses import L1Penalty, WarmUp
from robust_plugins.losses.batch import Batch


def test_warm_up_by_hand() -> None:
    model, (x, y) = network(), samples()
    loss = mixed_ibp(gamma=1.0, schedule=lambda epoch: 0.5, regularisers=[WarmUp(weight=0.5, tolerance=0.9)])
    low, up = (x - 0.05).clamp(0, 1), (x + 0.05).clamp(0, 1)
    z, r = model[0]((low + up) / 2), F.linear((up - low) / 2, model[0].weight.abs())
    tight = max(0.9 - ((up - low) / 2).mean().item() / r.mean().item(), 0) / 0.9
    active, inactive, square = z - r > 0, z + r < 0, (z - z.mean()) ** 2
    assert active.any()
    assert inactive.any()
    balance = 0.0
    for values in ((z[active].sum(), -z[inactive].sum()), (square[active].sum(), square[inactive].sum())):
        a, b = sorted(v.item() for v in values)
        balance += max(0.9 - a / b, 0) / 0.9
    value = loss(model, x, y)
    assert value.terms.parts["WarmUp"].item() == pytest.approx(0.25 * (tight + balance))
    assert value.item() == pytest.approx(F.cross_entropy(model(x), y).item() + 0.25 * (tight + balance))
    value.backward()
    over = mixed_ibp(gamma=1.0, regularisers=[WarmUp()])
    assert over(model, x, y).terms.parts["WarmUp"].item() == 0


def test_warm_up_is_the_mean_over_layers() -> None:
    """Of two layers of which the second repeats the first's intervals, it is the term of one."""
    (x, y), half = samples(), {"gamma": 1.0, "schedule": lambda epoch: 0.5}
    torch.manual_seed(0)
    first, second, head = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def term(*layers: nn.Module) -> float:
        loss = mixed_ibp(**half, regularisers=[WarmUp(tolerance=0.9)])
        return loss(nn.Sequential(*layers, head).double(), x, y).terms.parts["WarmUp"].item()

    one, two = term(first, nn.ReLU()), term(first, nn.ReLU(), second, nn.ReLU())
    assert one > 0
    with torch.no_grad():
        first.weight.zero_()
        first.weight[:5] = torch.eye(5)
        first.bias.zero_()
    # What comes out of the first layer is the input itself, which is positive: the second sees a network of its own.
    alone = nn.Linear(5, 8)
    with torch.no_grad():
        alone.weight.copy_(second.weight[:, :5])
        alone.bias.copy_(second.bias)
    together = term(first, nn.ReLU(), second, nn.ReLU())
    assert together == pytest.approx((term(first, nn.ReLU()) + term(alone, nn.ReLU())) / 2)
    assert together != pytest.approx(two)


def test_terms_of_one_name_are_added() -> None:
    model, (x, y) = network(), samples()
    twice = mixed_ibp(gamma=1.0, regularisers=[L1Penalty(weight=0.01), L1Penalty(weight=0.02)])(model, x, y)
    once = mixed_ibp(gamma=1.0, regularisers=[L1Penalty(weight=0.03)])(model, x, y)
    assert twice.terms.parts["L1Penalty"].item() == pytest.approx(once.terms.parts["L1Penalty"].item())
    assert twice.item() == pytest.approx(once.item())
    assert L1Penalty(weight=1.0).penalty(Batch(nn.Sequential(nn.Flatten()), x, y, None)).item() == 0


def test_l1_and_the_initialisation() -> None:
    model, (x, y) = network(), samples()
    value = mixed_ibp(gamma=1.0, regularisers=[L1Penalty(weight=0.01)])(model, x, y)
    expected = 0.01 * (model[0].weight.abs().sum() + model[2].weight.abs().sum())
    assert value.terms.parts["L1Penalty"].item() == pytest.approx(expected.item())
    wide = nn.Sequential(nn.Conv2d(3, 64, 3), nn.Flatten(), nn.Linear(200, 300), nn.Linear(300, 2))
    last, bias = wide[3].weight.clone(), wide[0].bias.clone()
    rp.ibp_initialisation(wide)
    assert torch.equal(wide[3].weight, last)
    assert torch.equal(wide[0].bias, bias)
    for layer, fan_in in ((wide[0], 27), (wide[2], 200)):
        assert layer.weight.std().item() == pytest.approx((2 * torch.pi) ** 0.5 / fan_in, rel=0.1)
    up = nn.Sequential(nn.ConvTranspose2d(30, 64, 3, groups=2), nn.Flatten(), nn.Linear(64, 2))
    rp.ibp_initialisation(up)
    assert up[0].weight.std().item() == pytest.approx((2 * torch.pi) ** 0.5 / (15 * 9), rel=0.1)
    with pytest.raises(rp.ArgumentError, match="linear or convolutional"):
        rp.ibp_initialisation(nn.Sequential(nn.Flatten()))
