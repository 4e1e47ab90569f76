"""`Box`: what it samples, projects and encloses, against every point of small sets; wrong arguments are named."""

from __future__ import annotations

import itertools
import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.boxes import MIXED, members, mixed

import robust_plugins as rp
from robust_plugins.balls import Support

seeds = st.integers(0, 2**32 - 1)


@given(seeds, st.sampled_from([0.0, 1e-4, 0.5, 1.0, 2.5]), st.sampled_from(["uniform", "corner", "gaussian"]))
def test_samples_and_projections_are_points_of_the_set(seed, eps, draw) -> None:
    generator = torch.Generator().manual_seed(seed)
    ball, x = replace(MIXED, eps=eps), mixed(3, seed)
    far = x + 4 * torch.randn(x.shape, generator=generator, dtype=x.dtype)
    for z in (*ball.sample(x, 5, generator, draw=draw), ball.project(far, x), x):
        assert ball.contains(z, x, tolerance=0).all()
        assert ball.box(x).contains(z).all()
        assert ball.relaxed.contains(z, x, tolerance=0).all()
        assert torch.equal(ball.project(z, x), z)
        assert (ball.distance(z, x) <= eps * (1 + 1e-12)).all()
        assert torch.equal(z[:, 5], x[:, 5])  # immutable
        assert torch.equal(z[:, 1:4].sum(1), torch.ones(3, dtype=x.dtype))
        assert torch.equal(z[:, 4], z[:, 4].round())
        if eps == 0:
            assert torch.equal(z, x)


@given(seeds, st.sampled_from([1e-4, 0.5, 1.0, 2.5]))
def test_what_leaves_the_set_is_outside(seed, eps) -> None:
    ball, x = replace(MIXED, eps=eps), mixed(1, seed)
    steps = [(0, 0.1 * eps + 0.01), (4, 0.5), (4, 6.0), (5, 0.001), (1, 0.5)]
    for feature, step in steps:
        for sign in (-1, 1):
            z = x.clone()
            z[0, feature] += sign * step
            assert not ball.contains(z, x).any(), (feature, sign)
    two = x.clone()
    two[0, 1:4] = torch.tensor([1.0, 1.0, 0.0])
    assert not ball.contains(two, x).any()
    assert not ball.contains(torch.full_like(x, math.nan), x).any()


@given(seeds, st.sampled_from([0.5, 1.0, 2.5]))
def test_projection_steepest_and_support_are_those_of_the_enumerated_set(seed, eps) -> None:
    ball, x = replace(MIXED, eps=eps), mixed(1, seed)
    generator = torch.Generator().manual_seed(seed)
    every = members(ball, x)
    assert ball.contains(every, x.expand_as(every), tolerance=1e-12).all()
    gradient = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    reached = ball.project(x + ball.steepest(gradient), x)
    torch.testing.assert_close((reached * gradient).sum(), (every @ gradient[0]).max())
    support = ball.support(x)
    assert support is not None
    least = support(gradient.unsqueeze(1))
    torch.testing.assert_close(least[0, 0], (every @ gradient[0]).min())
    z = x + 2 * torch.randn(x.shape, generator=generator, dtype=x.dtype)
    nearest = (every - ball.project(z, x)).abs().sum(1).min()
    assert nearest <= 0.2 * eps + 1e-9  # of the first feature alone there are but the ends among `every`
    box = ball.box(x)
    torch.testing.assert_close(box.lower[0], every.amin(0))
    torch.testing.assert_close(box.upper[0], every.amax(0))


def test_support_is_wrong_for_nothing_that_lies_between() -> None:
    """Of many rows and samples at once, and below the products with sampled points."""
    x, generator = mixed(6, 0), torch.Generator().manual_seed(0)
    ball = replace(MIXED, eps=((0.0, 1e-4, 0.3, 1.0, 2.0, 9.0)))
    support = ball.support(x)
    assert support is not None
    for rows in (torch.randn((6, 7, 6), generator=generator), torch.randn((1, 7, 6), generator=generator)):
        a = rows.to(x)
        products = torch.einsum("brf,nbf->nbr", a.expand(6, -1, -1), ball.sample(x, 200, generator))
        assert (products >= support(a) - 1e-9).all()
        own: Support = ball[3:4].support(x[3:4])  # type: ignore[assignment]
        torch.testing.assert_close(own(a[-3:-2] if len(a) > 1 else a)[0], support(a)[3])


def test_wider_sets_hold_narrower_ones() -> None:
    x, generator = mixed(4, 1), torch.Generator().manual_seed(1)
    radii = [0.0, 1e-4, 0.3, 0.99, 1.0, 3.0]
    for small, large in itertools.pairwise(radii):
        inner, outer = replace(MIXED, eps=small), replace(MIXED, eps=large)
        for z in inner.sample(x, 20, generator, draw="corner"):
            assert outer.contains(z, x, tolerance=0).all()
    assert MIXED.scaled(0.5) == replace(MIXED, eps=0.5)


def test_without_gaps_and_weights_it_is_the_ball_of_l_infinity() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand((4, 2, 3), generator=generator)
    box, linf = rp.Box(eps=0.3, clip=(0, 1)), rp.Linf(eps=0.3, clip=(0, 1))
    z = x + torch.randn(x.shape, generator=generator)
    assert torch.equal(box.project(z, x), linf.project(z, x))
    assert torch.equal(box.box(x).lower, linf.box(x).lower)
    assert torch.equal(box.steepest(z), linf.steepest(z))
    torch.testing.assert_close(box.distance(z, x), linf.distance(z, x))
    assert torch.equal(box.contains(z, x), linf.contains(z, x))
    draws = [ball.sample(x, 3, torch.Generator().manual_seed(1)) for ball in (box, linf)]
    torch.testing.assert_close(*draws)
    assert box.relaxed is box


def test_radius_and_clip_of_each_feature() -> None:
    x = torch.tensor([[0.5, 5.0, 0.0]], dtype=torch.float64)
    ball = rp.Box(eps=2, radius=[0.1, 1, math.inf], clip=([0, 4.5, -3], [1, math.inf, 7]))
    assert ball.box(x).lower.tolist() == [[0.3, 4.5, -3.0]]
    assert ball.box(x).upper.tolist() == [[0.7, 7.0, 7.0]]
    assert rp.Box(eps=1, radius=math.inf, clip=([0, 1, 0], [1, 9, 2])).box(x).upper.tolist() == [[1.0, 9.0, 2.0]]
    z = torch.tensor([[0.6, 5.5, 6.0]], dtype=torch.float64)
    torch.testing.assert_close(ball.distance(z, x), torch.tensor([1.0], dtype=torch.float64))
    frozen = rp.Box(eps=1, clip=None, immutable=[0])
    assert frozen.distance(z, x).isinf().all()
    per_sample = replace(ball, eps=torch.tensor([[0.0], [1.0]]))
    assert per_sample.box(x.repeat(2, 1)).width[0].tolist() == [0.0, 0.0, 0.0]
    image = rp.Box(eps=1, radius=np.array([0.1, 0.2]).reshape(2, 1, 1), clip=(0, 1))
    assert image.box(torch.full((1, 2, 3, 3), 0.5)).width[0, 1].unique().numel() == 1


def test_a_radius_for_each_feature_is_never_read_as_one_for_each_sample(unchecked) -> None:
    """Four samples of four features: neither form is accepted in the place of the other."""
    row = [0.0, 0.1, 0.1, 0.1]
    for eps in (row, torch.tensor(row), np.array(row)):
        with pytest.raises(rp.ArgumentError, match=r"radius="):
            rp.Box(eps=eps, clip=None)
    x = torch.zeros(4, 4)
    assert (rp.Box(eps=1, radius=row, clip=None).box(x).width[:, 0] == 0).all()
    assert (rp.Box(eps=torch.tensor(row).reshape(-1, 1), clip=None).box(x).width[0] == 0).all()
    with pytest.raises(rp.ArgumentError, match="one per feature"):
        rp.Box(eps=1, radius=torch.ones(4, 1), clip=None).box(x)


def test_a_category_that_clip_closes_is_never_entered() -> None:
    x = torch.tensor([[1.0, 0.0, 0.0]])
    ball = rp.Box(eps=1, clip=(0, [1, 0, 1]), one_hot=[[0, 1, 2]])
    assert ball.project(torch.tensor([[0.0, 9.0, 1.0]]), x).tolist() == [[0.0, 0.0, 1.0]]
    assert set(map(tuple, ball.sample(x, 50)[:, 0].tolist())) == {(1.0, 0.0, 0.0), (0.0, 0.0, 1.0)}
    support = ball.support(x)
    assert support is not None
    assert support(torch.tensor([[[1.0, -5.0, 2.0]]])).item() == 1.0
    assert not ball.contains(torch.tensor([[0.0, 1.0, 0.0]]), x).any()


def test_whole_numbers_reach_what_they_are_meant_to() -> None:
    x = torch.tensor([[29.0, 1e6]])
    ball = rp.Box(eps=100, radius=[0.29, 0.02], clip=(0, 2e6), integers=[0, 1])
    assert ball.box(x).upper.tolist() == [[58.0, 1000002.0]]
    assert rp.Box(eps=0.9, clip=None, integers=[0, 1]).box(x).width.tolist() == [[0.0, 0.0]]


def test_boxes_are_plain_data() -> None:
    assert len({MIXED, replace(MIXED), pickle.loads(pickle.dumps(MIXED))}) == 1
    assert replace(MIXED, eps=2) != MIXED
    assert MIXED.scaled(2).radii == 2.0
    assert repr(rp.Box(eps=1, radius=[0.5, 1], clip=(0, 1), one_hot=[[0, 1]])) == (
        "Box(eps=1.0, clip=(0.0, 1.0), radius=(0.5, 1.0), one_hot=((0, 1),))"
    )
    assert len(repr(rp.Box(eps=1, radius=torch.ones(3, 32, 32), clip=None))) < 150


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"radius": -1}, "`radius` is -1"),
        ({"radius": math.inf}, "finite range"),
        ({"radius": "much"}, "`radius` is 'much'"),
        ({"immutable": [0, 0]}, "`immutable`"),
        ({"immutable": [-1]}, "`immutable`"),
        ({"immutable": 3}, "`immutable`"),
        ({"immutable": [6]}, "from 0 to 5"),
        ({"one_hot": [[1, 2], [2, 3]]}, "each feature once"),
        ({"one_hot": [1, 2]}, "`one_hot`"),
        ({"one_hot": [[1]]}, "two features"),
        ({"one_hot": [[1, 2]], "integers": [2]}, "one-hot group"),
        ({"one_hot": [[1, 2]], "immutable": [2]}, "all features of a group or none"),
        ({"clip": ([0, 0], [1, -1])}, "low <= high"),
        ({"clip": (0, 1, 2)}, "low <= high"),
        ({"clip": ([0, 0], [1, 1])}, "one per feature"),
    ],
)
def test_wrong_arguments_are_named(wrong, named, unchecked) -> None:
    with pytest.raises(rp.ArgumentError, match=named):
        rp.Box(**({"eps": 1, "clip": None} | wrong)).box(torch.zeros(2, 6))


@pytest.mark.parametrize(
    ("feature", "value", "named"),
    [(0, 3.0, "range there"), (1, 0.5, "one-hot"), (4, 2.5, "whole number"), (5, math.nan, "finite")],
)
def test_inputs_outside_the_set_are_named(feature, value, named) -> None:
    x = mixed(2, 0).float()
    x[1, feature] = value
    with pytest.raises(rp.ArgumentError, match=named):
        MIXED.check(x)
