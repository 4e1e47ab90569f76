"""L2 and L1 balls: bounds over the ball itself, against samples of it, its corners and planted faults."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.decisions.verifier.norms import NormBall
from robust_plugins.intervals import Interval

NAME = "interval:branch-and-bound"
BALLS = [rp.L2, rp.L1]


def reach(kind: type[rp.Ball], eps: float, clip: tuple[float, float] | None, x: Tensor) -> tuple[NormBall, Interval]:
    ball = kind(eps=eps, clip=clip)  # type: ignore[call-arg]
    box = ball.box(x).lower.double(), ball.box(x).upper.double()
    found = NormBall.of(ball, x, Interval(*box))
    assert found is not None
    return found, Interval(*box)


@pytest.mark.parametrize("kind", BALLS)
@pytest.mark.parametrize("clip", [None, (0.0, 1.0)])
@pytest.mark.parametrize("eps", [1e-4, 0.2])
def test_least_is_below_what_the_ball_holds(kind: type[rp.Ball], clip: tuple[float, float] | None, eps: float) -> None:
    """And it is attained where nothing is clipped."""
    torch.manual_seed(0)
    x = torch.rand(1, 6)
    x[0, 0] = 0.0
    found, box = reach(kind, eps, clip, x)
    a = torch.randn(6, 8, dtype=torch.float64)
    points = kind(eps=eps, clip=clip).sample(x, 500, torch.Generator().manual_seed(0)).flatten(0, 1).double()  # type: ignore[call-arg]
    state = (points - box.center) / box.radius
    least = found.least(a)
    assert bool((least <= (state @ a).amin(0) + 1e-12).all())
    assert bool((least >= -a.abs().sum(0) - 1e-9).all())
    lowest = found.lowest(a)
    if clip is None:
        assert torch.allclose((lowest * a).sum(0), least, atol=1e-6)
        assert bool((least > -a.abs().sum(0)).all())


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)).eval()


@pytest.mark.parametrize(("kind", "eps"), [(rp.L2, 1.3), (rp.L1, 2.0)])
def test_more_is_certified_than_over_the_box(kind: type[rp.Ball], eps: float) -> None:
    """What is certified stands against descent within the ball; over the box around it nothing would be."""
    model, x = network(), torch.rand(4, 8, generator=torch.Generator().manual_seed(0))
    y, ball = model(x).argmax(1), kind(eps=eps, clip=None)  # type: ignore[call-arg]
    found = rp.certifier(NAME, timeout=5.0)(model, x, y, ball)
    box, crown = rp.Linf(eps=eps, clip=None), rp.certifier("interval:crown")
    for certifier, other in ((rp.certifier(NAME, timeout=5.0), box), (crown, ball)):
        assert int(found.certified.sum()) > int(certifier(model, x, y, other).certified.sum())
    points = ball.sample(x, 1000, torch.Generator().manual_seed(0))
    for _ in range(3):
        z = points.flatten(0, 1).detach().requires_grad_()
        every, around = y.repeat(1000), x.repeat(1000, 1)
        margin = 2 * model(z).gather(1, every.unsqueeze(1)).sum() - model(z).sum()
        (gradient,) = torch.autograd.grad(margin, z)
        points = ball.project(z.detach() - 0.3 * ball.steepest(gradient), around).view_as(points)
        kept = (model(points.flatten(0, 1)).argmax(1).view(1000, -1) == y).all(0)
        assert bool((kept | ~found.certified).all())


@pytest.mark.parametrize("kind", BALLS)
def test_witnesses_lie_in_the_ball(kind: type[rp.Ball]) -> None:
    model, x = network(), torch.rand(4, 8, generator=torch.Generator().manual_seed(0))
    y, ball = model(x).argmax(1), kind(eps=6.0 if kind is rp.L2 else 12.0, clip=None)  # type: ignore[call-arg]
    found = rp.certifier(NAME, timeout=1.0)(model, x, y, ball)
    assert rp.Verdict.FALSIFIED in found.verdicts
    broken = torch.tensor([v is rp.Verdict.FALSIFIED for v in found.verdicts])
    assert bool(ball.contains(found.witness[broken], x[broken]).all())
    assert bool((model(found.witness[broken]).argmax(1) != y[broken]).all())


@pytest.mark.parametrize("kind", BALLS)
def test_a_planted_fault_is_noticed(kind: type[rp.Ball], monkeypatch: pytest.MonkeyPatch) -> None:
    """A ball that is taken to be smaller certifies what its own attack breaks."""
    plain = NormBall._in_ball
    monkeypatch.setattr(NormBall, "_in_ball", lambda self, a: (0.2 * plain(self, a)[0], plain(self, a)[1]))
    with pytest.raises(AssertionError):
        test_least_is_below_what_the_ball_holds(kind, None, 0.2)
