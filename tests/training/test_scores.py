"""`Scores`: what is counted, and what could not be computed."""

from __future__ import annotations

import pytest
import torch
from support.digits import EPS, network
from torch import nn

import robust_plugins as rp


def test_scores_count_what_is_right(digits: rp.Dataset) -> None:
    ball = rp.Linf(eps=EPS, clip=digits.clip)
    x, y = digits.x_test[:40], digits.y_test[:40]
    broken = network(digits, (8,))
    with torch.no_grad():
        broken[-1].bias[:] = torch.nan
    assert rp.Scores(x=x, y=y, ball=ball)(broken) == {"clean": 0, "art:pgd": 0, "interval:ibp": 0}
    torch.manual_seed(0)
    single = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
    with torch.no_grad():
        expected = ((single(x) > 0).squeeze(1) == (y > 4)).float().mean().item()
    scores = rp.Scores(x=x, y=(y > 4).long(), ball=rp.Linf(eps=1e-6, clip=digits.clip))(single)
    assert scores == {name: pytest.approx(expected) for name in ("clean", "art:pgd", "interval:ibp")}
    found = [rp.Scores(x=x, y=y, ball=ball, attack="art:pgd(steps=1)", certifier=None, seed=seed) for seed in (0, 1)]
    weak = network(digits, (8,))
    assert found[0](weak) == found[0](weak)
    for wrong in ({"attack": "art:pdg"}, {"certifier": "interval:ipb"}):
        with pytest.raises(rp.UnknownNameError):
            rp.Scores(x=x, y=y, ball=ball, **wrong)
    with pytest.raises(rp.ArgumentError, match="at least 1"):
        rp.Scores(x=x[:0], y=y[:0], ball=ball)
