"""Models as strangers write them: certified by every certifier of the engine, and explained; or refused by name."""

from __future__ import annotations

import re

import pytest
import torch
from support.bounds_checker import sound
from support.strangers import strangers
from torch import nn

import robust_plugins as rp
from robust_plugins.intervals.rules.elementwise import activation_of

MODELS = strangers()
CERTIFIERS = [info.name for info in rp.certifiers() if info.name.startswith("interval:")]
SLOW = ("interval:alpha-crown", "interval:branch-and-bound")  # whose bounds are the same
REFUSED: dict[str, str] = {}
if activation_of(nn.Hardswish()) is None:
    REFUSED["mobilenet"] = r"layer 'features.2' \(Hardswish\)"
models = pytest.mark.parametrize("name", MODELS)


@models
@pytest.mark.parametrize("certifier", [pytest.param(c, marks=[pytest.mark.slow] * (c in SLOW)) for c in CERTIFIERS])
def test_every_certifier_of_the_engine_bounds_them(name: str, certifier: str) -> None:
    model, shape = MODELS[name]
    x, ball = torch.rand(2, *shape), rp.Linf(eps=0.002, clip=(0, 1))
    if name in REFUSED:
        with pytest.raises(rp.UnsupportedModelError, match=REFUSED[name]):
            rp.certifier(certifier).bounds(model, x, ball)
        return
    bounds = rp.certifier(certifier).bounds(model, x, ball)
    assert sound(model, x, ball, bounds.detach(), samples=40)
    # Small balls are certified by linear relaxation.
    if certifier == "interval:crown":
        verdicts = rp.certifier(certifier)(model, x, model(x).argmax(1), rp.Linf(eps=1e-5, clip=(0, 1))).verdicts
        assert all(v is rp.Verdict.CERTIFIED for v in verdicts)


@models
@pytest.mark.parametrize(
    "certifier", [pytest.param("interval:ibp", marks=pytest.mark.slow), "interval:crown", "interval:relaxed"]
)
def test_their_gradients_are_bounded(name: str, certifier: str) -> None:
    model, shape = MODELS[name]
    x, ball = torch.rand(2, *shape), rp.Linf(eps=1e-3, clip=(0, 1))
    y = model(x).argmax(1)
    if name in REFUSED:
        pytest.skip("refused by name, as the test above has it")
    certificate = rp.explanation_certifier(certifier)(model, x, y, ball, delta=1.0)
    bounds = certificate.gradient
    for z in ball.sample(x, 20, torch.Generator().manual_seed(0), draw="corner"):
        z = z.detach().requires_grad_()
        (slopes,) = torch.autograd.grad(model(z).gather(1, y.unsqueeze(1)).sum(), z)
        assert bool(bounds.contains(slopes, tolerance=1e-5 * (1 + float(slopes.abs().max()))).all())


def test_what_is_not_known_is_refused_with_its_name() -> None:
    class Router(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList(nn.Linear(4, 3) for _ in range(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([e(x) for e in self.experts], 1).gather(1, x[:, :1, None].long().expand(-1, -1, 3))[:, 0]

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(2, 3, batch_first=True), nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.lstm(x.view(-1, 2, 2))[0][:, -1])

    x, ball = torch.rand(2, 4), rp.Linf(eps=0.1, clip=None)
    for model, message in ((Router(), "long"), (Recurrent(), r"lstm.*LSTM")):
        found = rp.certifier("interval:crown")(model.eval(), x, model(x).argmax(1), ball)
        assert all(verdict is rp.Verdict.UNSUPPORTED for verdict in found.verdicts), found.messages
        assert re.search(message, found.messages[0] or ""), found.messages
