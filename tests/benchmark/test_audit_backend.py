"""The faults of auto_LiRPA that its adapter refuses or repairs are found by the audit where the adapter does not."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from support.study_answers import answers
from torch import nn

import robust_plugins as rp
from robust_plugins.adapters.lirpa import CROWN, IBP, certifiers, compat
from robust_plugins.benchmark.auditing import audit
from robust_plugins.benchmark.columns import Columns
from robust_plugins.decisions.attack import Attack

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not compat.load().legacy, reason="about the releases before 0.4"),
]


@dataclass(frozen=True, kw_only=True)
class Probe(Attack):
    """The worst of many corners and inner points."""

    def perturb(self, model, x, y, ball, *, targeted):
        best, worst = x, None
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for draw in ("corner", "uniform"):
                for z in ball.sample(x, 300, generator, draw=draw):
                    logits = model(z)
                    others = logits.scatter(1, y.unsqueeze(1), -torch.inf).amax(1)
                    margin = logits.gather(1, y.unsqueeze(1)).squeeze(1) - others
                    worst = torch.full_like(margin, torch.inf) if worst is None else worst
                    best = torch.where((margin < worst).unsqueeze(1), z, best)
                    worst = torch.minimum(worst, margin)
        return best


class Middle(nn.Module):
    """A function between linear layers."""

    def __init__(self, function, width, seed, deep):
        super().__init__()
        self.deep = deep  # faults of linear bounds show where something follows, those of intervals where nothing does
        torch.manual_seed(seed)
        self.first, self.inner, self.last = nn.Linear(5, 6), nn.Linear(width, 6), nn.Linear(6, 3)
        self.weight, self.bias, self.function = nn.Parameter(torch.randn(6, 6)), nn.Parameter(torch.randn(6)), function
        with torch.no_grad():
            self.first.weight *= 3

    def forward(self, x):
        h = self.function(self, self.first(x))
        return self.last(self.inner(h).relu() if self.deep else h)


FAULTS = {
    "a slope above 1": (CROWN(), 6, lambda _, h: F.leaky_relu(h, 2.0)),
    "a negative slope": (IBP(), 6, lambda _, h: F.leaky_relu(h, -0.5)),
    "a repeated index": (CROWN(), 3, lambda _, h: h.relu()[:, [0, 3, 3]]),
    "a matrix product with factors": (IBP(), 6, lambda m, h: torch.addmm(m.bias, h.relu(), m.weight, beta=2, alpha=-3)),
    "a negative exponent": (IBP(), 6, lambda _, h: (h.relu() + 1) ** -1),
    "a value that is read twice": (CROWN(), 6, lambda _, h: h.relu() + (-h).relu()),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_the_backend_is_found(name, monkeypatch):
    certifier, width, function = FAULTS[name]
    for repair in ("refuse_unsound", "refuse_violated", "refuse_contradicted"):
        monkeypatch.setattr(certifiers, repair, lambda *_, **__: None)
    monkeypatch.setattr(certifiers, "rejoined", lambda *given: given[-1])
    monkeypatch.setattr(CROWN, "options", ())  # as the backend would by itself
    found = 0
    x = torch.rand(20, 5, generator=torch.Generator().manual_seed(0))
    for seed in range(6):
        model = Middle(function, width, seed, deep=certifier.linear).eval()
        y = model(x).argmax(1)
        rows = []
        for eps in (0.02, 0.1, 0.3):
            ball = rp.Linf(eps=eps, clip=(0.0, 1.0))
            rows += answers(Probe(), model, x, y, ball)
            rows += answers(certifier, model, x, y, ball)
        columns = Columns.of({n: getattr(r, n) for n in r.__dataclass_fields__} for r in rows)
        # Bounds that cross, or miss the clean logits, are an error from the start, and never a proof.
        found += bool(audit(columns).violations) or "error" in set(columns["verdict"])
    assert found, f"{name}: no contradiction in 6 networks"


@pytest.mark.parametrize("name", FAULTS)
def test_with_the_repairs_there_is_nothing_to_find(name):
    certifier, width, function = FAULTS[name]
    x = torch.rand(20, 5, generator=torch.Generator().manual_seed(0))
    model = Middle(function, width, 0, deep=certifier.linear).eval()
    y = model(x).argmax(1)
    ball = rp.Linf(eps=0.1, clip=(0.0, 1.0))
    rows = [*answers(Probe(), model, x, y, ball), *answers(certifier, model, x, y, ball)]
    assert audit(Columns.of({n: getattr(r, n) for n in r.__dataclass_fields__} for r in rows)).violations == []
