"""Balls: what they sample and project lies inside, projections are the nearest points, wrong values are named."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import robust_plugins as rp

KINDS = [rp.Linf, rp.L2, rp.L1]
kinds = st.sampled_from(KINDS)
clips = st.sampled_from([None, (0.0, 1.0), (-0.5, 0.9)])
radii = st.floats(0, 3)
seeds = st.integers(0, 2**32 - 1)


def _point(seed: int, clip: tuple[float, float] | None, shape: tuple[int, ...] = (4, 2, 3)) -> torch.Tensor:
    x = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    low, high = clip or (-2.0, 2.0)
    return low + (high - low) * x


@given(kinds, clips, radii, seeds, st.sampled_from(["uniform", "corner", "gaussian"]))
def test_samples_lie_in_the_ball_and_its_bounds(kind, clip, eps, seed, draw) -> None:
    ball, x = kind(eps=eps, clip=clip), _point(seed, clip)
    points = ball.sample(x, 7, torch.Generator().manual_seed(seed), draw=draw)
    assert points.shape == (7, *x.shape)
    for z in points:
        assert ball.contains(z, x, tolerance=1e-9).all()
        assert ball.box(x).contains(z, tolerance=1e-12).all()


@given(kinds, clips, radii, seeds, st.floats(0.01, 10))
def test_projection_lands_inside_and_keeps_what_is_inside(kind, clip, eps, seed, reach) -> None:
    ball, x = kind(eps=eps, clip=clip), _point(seed, clip)
    far = x + reach * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)
    z = ball.project(far, x)
    assert ball.contains(z, x, tolerance=1e-9).all()
    torch.testing.assert_close(ball.project(z, x), z)
    inside = ball.sample(x, 1, torch.Generator().manual_seed(seed))[0]
    torch.testing.assert_close(ball.project(inside, x), inside)


@given(kinds, radii, seeds)
def test_the_steepest_step_maximises_a_linear_function(kind, eps, seed) -> None:
    """Hoelder: the largest value of g . d over the ball of radius eps is eps times the dual norm of g."""
    ball, generator = kind(eps=eps, clip=None), torch.Generator().manual_seed(seed)
    gradient = torch.randn((4, 2, 3), generator=generator, dtype=torch.float64)
    step = ball.steepest(gradient)
    dual = {math.inf: 1, 2.0: 2, 1.0: math.inf}[ball.norm]
    reached = (step * gradient).flatten(1).sum(1)
    torch.testing.assert_close(reached, eps * torch.linalg.vector_norm(gradient.flatten(1), ord=dual, dim=1))
    assert (ball.distance(step, torch.zeros_like(step)) <= eps * (1 + 1e-12)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_steepest_step_of_odd_gradients(kind) -> None:
    ball = kind(eps=[0.5, 1.0, 2.0], clip=(0.0, 1.0))
    gradient = torch.zeros(3, 4)
    assert torch.equal(ball.steepest(gradient), gradient)
    tiny = torch.full((3, 4), 1e-38)  # its square is zero in float32
    lengths = ball.distance(ball.steepest(tiny), torch.zeros(3, 4))
    torch.testing.assert_close(lengths, torch.tensor([0.5, 1.0, 2.0]))
    assert ball.steepest(torch.zeros(3, 0)).shape == (3, 0)
    assert ball[:0].steepest(torch.zeros(0, 4)).shape == (0, 4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_scaled_ball_has_scaled_radii(kind) -> None:
    assert kind(eps=0.5, clip=(0, 1)).scaled(0.5) == kind(eps=0.25, clip=(0, 1))
    assert kind(eps=[1, 2], clip=None).scaled(2) == kind(eps=[2, 4], clip=None)
    with pytest.raises(rp.ArgumentError, match="eps"):
        kind(eps=1, clip=None).scaled(-1)


def test_the_former_name_of_the_box_warns() -> None:
    ball, x = rp.Linf(eps=0.1, clip=None), torch.rand(2, 3)
    with pytest.warns(DeprecationWarning, match="box"):
        assert torch.equal(ball.bounds(x).lower, ball.box(x).lower)


def test_a_radius_for_each_feature_is_never_read_as_one_for_each_sample(unchecked) -> None:
    """Four samples of four features: a row of four radii must not freeze a sample instead of a column."""
    for eps in (torch.tensor([[0.0, 0.1, 0.1, 0.1]]), np.full((4, 4), 0.1)):
        with pytest.raises(rp.ArgumentError, match=r"amax\(1\)"):
            rp.Linf(eps=eps, clip=None)
    radii = torch.tensor([[0.0], [0.1], [0.2], [0.3]])
    assert rp.Linf(eps=radii, clip=None).radii == tuple(radii.flatten().tolist())
    widest = torch.tensor([[0.0, 0.5]]).flatten(1).amax(1)  # the hint
    assert rp.Linf(eps=widest, clip=None).radii == (0.5,)


@given(kinds, radii, seeds)
def test_projection_without_clip_is_the_nearest_point(kind, eps, seed) -> None:
    """The Euclidean projection p of z satisfies (z - p) . (q - p) <= 0 for every q of a convex set."""
    ball, x = kind(eps=eps, clip=None), _point(seed, None)
    generator = torch.Generator().manual_seed(seed)
    z = x + 3 * torch.randn(x.shape, generator=generator, dtype=x.dtype)
    p = ball.project(z, x)
    for draw in ("uniform", "corner"):
        for q in ball.sample(x, 20, generator, draw=draw):
            assert (((z - p) * (q - p)).flatten(1).sum(1) <= 1e-9).all()


@pytest.mark.parametrize("kind", KINDS)
def test_uniform_samples_fill_the_ball(kind) -> None:
    """The share of points in the concentric ball of half the radius is 2^-d."""
    x = torch.zeros(1, 3, dtype=torch.float64)
    z = kind(eps=1.0, clip=None).sample(x, 40_000, torch.Generator().manual_seed(0))
    share = kind(eps=0.5, clip=None).contains(z[:, 0], x.expand(40_000, 3), tolerance=0).double().mean()
    assert abs(share - 1 / 8) < 0.01
    assert z.mean().abs() < 0.01


def test_corners_are_vertices() -> None:
    x = torch.full((2, 5), 0.95)
    box = rp.Linf(eps=0.1, clip=(0.0, 1.0))
    z = box.sample(x, 50, draw="corner")
    assert ((z == box.box(x).lower) | (z == box.box(x).upper)).all()
    cross = rp.L1(eps=0.5, clip=None).sample(x, 50, draw="corner") - x
    assert ((cross.abs() > 1e-6).sum(-1) == 1).all()


def test_gaussian_start_has_standard_deviation_eps() -> None:
    """Before the projection: a Gaussian draw leaves a one-dimensional box with probability 2 * Phi(-1)."""
    x = torch.zeros(20_000, 1)
    z = rp.Linf(eps=0.1, clip=None).sample(x, 1, torch.Generator().manual_seed(0), draw="gaussian")[0]
    at_the_border = (z.abs() >= 0.1 - 1e-7).double().mean().item()
    assert abs(at_the_border - (1 - math.erf(1 / math.sqrt(2)))) < 0.01


def test_the_same_generator_gives_the_same_points() -> None:
    x = torch.zeros(2, 3)
    for kind in KINDS:
        first, second = (kind(eps=1, clip=None).sample(x, 5, torch.Generator().manual_seed(4)) for _ in range(2))
        assert torch.equal(first, second)


def test_eps_per_sample() -> None:
    x = torch.zeros(3, 2, 2)
    for eps in ([0.0, 0.5, 1.0], torch.tensor([0.0, 0.5, 1.0]), np.array([0.0, 0.5, 1.0])):
        for kind in KINDS:
            ball = kind(eps=eps, clip=None)
            assert ball.radii == (0.0, 0.5, 1.0)
            z = ball.project(torch.full_like(x, 9.0), x)
            torch.testing.assert_close(ball.distance(z, x), torch.tensor([0.0, 0.5, 1.0]))
            assert ball[1:].radii == (0.5, 1.0)
            assert ball.sample(x, 4).shape == (4, 3, 2, 2)
    with pytest.raises(rp.ArgumentError, match="3 values for a batch of 2"):
        rp.Linf(eps=[1, 2, 3], clip=None).box(x[:2])


def test_a_row_of_radii_counts_samples() -> None:
    """One that fits the features alone is refused; where both fit, what is printed says which was meant."""
    x, row = torch.zeros(3, 2), torch.tensor([0.5, 0.25])
    for kind, shape in ((rp.Linf, (3, 2)), (rp.L2, (3, 2, 4, 4)), (rp.L1, (3, 1, 2))):
        with pytest.raises(rp.ArgumentError, match=r"2 values for a batch of 3;.*rp\.Box\(eps=1, radius=\.\.\."):
            kind(eps=row, clip=None).box(torch.zeros(shape))
    meant = rp.Box(eps=1, radius=row, clip=None).box(x)
    assert torch.equal(meant.upper, row.expand(3, 2))
    with pytest.raises(rp.ArgumentError, match="as many values as `x` has samples"):
        rp.Linf(eps=row, clip=None).box(torch.zeros(3, 5))
    both = rp.Linf(eps=row, clip=None)
    assert torch.equal(both.box(x[:2]).upper, row.view(2, 1).expand(2, 2))
    assert repr(both) == "Linf(eps=(0.5, 0.25) per sample, clip=None)"
    assert repr(rp.L2(eps=[1.0] * 6, clip=None)).startswith("L2(eps=(1.0, 1.0, 1.0, 1.0, ... 6 in all) per sample")
    assert "eps=(0.5, 0.25) per sample" in repr(rp.Box(eps=row.view(2, 1), clip=None))
    model = torch.nn.Linear(2, 2)
    assert "Linf 0.25 to 0.5 (one per sample)" in str(rp.compare(model, x[:2], torch.zeros(2).long(), both, ["rp:pgd"]))


@pytest.mark.parametrize("kind", KINDS)
def test_projections_of_pixels_count_as_inside(kind) -> None:
    """In float32 and the range [0, 255], rounding moves a projected point out by more than 1e-6."""
    x = 255 * torch.rand(200, 100, generator=torch.Generator().manual_seed(0))
    ball = kind(eps=8, clip=(0, 255))
    z = ball.project(x + 20 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1)), x)
    assert ball.contains(z, x).all()
    assert not ball.contains(x + 8.01, x).any()


def test_balls_are_plain_data() -> None:
    assert rp.Linf(eps=0.1, clip=(0, 1)) == rp.Linf(eps=torch.tensor(0.1, dtype=torch.float64), clip=(0.0, 1.0))
    assert rp.Linf(eps=0.1, clip=None) != rp.L2(eps=0.1, clip=None)
    assert len({rp.L1(eps=[1, 2], clip=None), rp.L1(eps=(1.0, 2.0), clip=None)}) == 1
    assert repr(rp.L2(eps=0.5, clip=(0, 1))) == "L2(eps=0.5, clip=(0.0, 1.0))"


def test_contains_knows_norm_clip_and_nan() -> None:
    x = torch.tensor([[0.5, 0.5]])
    ball = rp.L2(eps=1.0, clip=(0.0, 1.0))
    assert ball.contains(torch.tensor([[1.0, 1.0]]), x).item()
    assert not ball.contains(torch.tensor([[1.2, 0.5]]), x).item()  # outside clip
    assert not rp.L1(eps=0.9, clip=None).contains(torch.tensor([[1.0, 1.0]]), x).item()
    assert not ball.contains(torch.tensor([[math.nan, 0.5]]), x).item()


@pytest.mark.parametrize("eps", [-0.1, math.nan, math.inf, "much", None, [0.1, -1], True])
def test_a_wrong_eps_is_named(eps, unchecked) -> None:
    with pytest.raises(rp.ArgumentError, match=r"`eps` is .*accepted: a finite number >= 0"):
        rp.Linf(eps=eps, clip=None)


@pytest.mark.parametrize("clip", [(1.0, 0.0), (0.0,), 3, (math.nan, 1.0), "ab"])
def test_a_wrong_clip_is_named(clip, unchecked) -> None:
    with pytest.raises(rp.ArgumentError, match=r"`clip` is .*low < high"):
        rp.Linf(eps=0.1, clip=clip)


def test_a_wrong_draw_is_named(unchecked) -> None:
    with pytest.raises(rp.ArgumentError, match="'uniform', 'corner', 'gaussian'"):
        rp.Linf(eps=0.1, clip=None).sample(torch.zeros(1, 1), 1, draw="sobol")
    with pytest.raises(rp.ArgumentError, match="at least 1"):
        rp.Linf(eps=0.1, clip=None).sample(torch.zeros(1, 1), 0)


def test_samples_without_features_are_named(unchecked) -> None:
    ball = rp.Linf(eps=0.1, clip=None)
    with pytest.raises(rp.ArgumentError, match=r"`x` is of shape \(3, 0\).*none is left"):
        ball.check(torch.rand(3, 0))
    ball.check(torch.rand(0, 4))
