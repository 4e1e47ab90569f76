"""Every recipe learns, and what it certifies holds."""

from __future__ import annotations

import pytest
import torch
from support.digits import EPS, batched, network

import robust_plugins as rp

FLOORS = {
    # clean, attacked, certified accuracy at eps 0.05 after 12 epochs
    "standard": (0.93, 0.70, 0.0),
    "goodfellow": (0.91, 0.79, 0.0),
    "madry": (0.91, 0.81, 0.0),
    "fast": (0.91, 0.80, 0.0),
    "trades": (0.91, 0.82, 0.0),
    "mart": (0.91, 0.82, 0.0),
    "ibp": (0.90, 0.78, 0.64),
    "crown-ibp": (0.90, 0.78, 0.62),
    "sabr": (0.91, 0.80, 0.48),
    "mtl-ibp": (0.90, 0.79, 0.60),
    "cc-ibp": (0.91, 0.80, 0.52),
    "exp-ibp": (0.91, 0.80, 0.44),
}


# Of each family one: natural, adversarial, certified, and one that mixes them.
QUICK = {"standard", "madry", "ibp", "mtl-ibp"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in FLOORS])
@pytest.mark.slow
def test_every_recipe_learns(name: str, digits: rp.Dataset) -> None:
    """And what it certifies is certified by another engine too, and contradicted by no attack."""
    ball = rp.Linf(eps=EPS, clip=digits.clip)
    parameters: dict[str, object] = {} if name == "standard" else {"ball": ball}
    if FLOORS[name][2]:
        parameters |= {"epochs": 12, "schedule": rp.Ramp(start=1, end=8)}
    model = network(digits)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    rp.fit(model, batched(digits), rp.recipe(name, **parameters), epochs=12, optimizer=optimizer, progress=False)
    x, y = digits.x_test, digits.y_test
    scores = rp.Scores(x=x, y=y, ball=ball)(model)
    for score, floor in zip(scores.values(), FLOORS[name], strict=True):
        assert score >= floor, scores
    if not FLOORS[name][2]:
        return
    proofs = [rp.certifier(c)(model, x, y, ball) for c in ("interval:ibp", "lirpa:ibp")]
    assert proofs[0].verdicts == proofs[1].verdicts
    torch.testing.assert_close(proofs[0].margin, proofs[1].margin, rtol=1e-4, atol=1e-4)
    strong = rp.attack("art:pgd", steps=20)(model, x, y, ball, seed=1)
    assert not (strong.success & proofs[0].certified).any()
