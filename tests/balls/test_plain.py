"""Balls as plain data: through JSON and back they are the same, and what is no ball is refused in words."""

from __future__ import annotations

import json
import math

import pytest
import torch
from support.boxes import MIXED

import robust_plugins as rp
from robust_plugins.balls import Ball

BALLS = [
    rp.Linf(eps=0.1, clip=(0.0, 1.0)),
    rp.L2(eps=(0.0, 0.5), clip=None),
    rp.L1(eps=3, clip=(-math.inf, 1.0)),
    MIXED,
    rp.Box(eps=torch.tensor([[1.0], [2.0]]), radius=(math.inf, 0.1), clip=((0.0, -math.inf), (9.0, math.inf))),
    rp.Box(eps=1, radius=[[0.1, math.inf], [0.0, 1.0]], clip=(0.0, [[1.0, 2.0], [3.0, 4.0]]), immutable=[1]),
    rp.Box(eps=0.5, clip=None, one_hot=[[0, 2], [3, 4]], integers=[1]),
    rp.Box(eps=0.5, clip=([1.0, 1.0], [1.0, 1.0])),
]


@pytest.mark.parametrize("ball", BALLS, ids=str)
def test_through_json_and_back(ball) -> None:
    said = json.loads(json.dumps(ball.to_dict(), allow_nan=False))
    assert Ball.from_dict(said) == ball
    assert type(ball).from_dict(said) == ball


def test_a_box_says_what_it_is_of_each_feature() -> None:
    box = rp.Box(eps=1, radius=[5, math.inf, 1, 1], clip=([0, 0, 0, 0], [9, 1, 1, 1]), one_hot=[[2, 3]], integers=[0])
    assert box.to_dict() == {
        "type": "Box", "norm": "inf", "eps": 1.0, "clip": [0.0, 9.0], "radius": [5.0, None, 1.0, 1.0],
        "lower": [0.0, 0.0, 0.0, 0.0], "upper": [9.0, 1.0, 1.0, 1.0], "one_hot": [[2, 3]], "integers": [0],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({}, "type"),
        ({"type": "Cube", "eps": 1.0, "clip": None}, "Box, L1, L2, Linf"),
        ({"type": "Linf", "eps": 1.0}, "clip"),
        ({"type": "Linf", "eps": 1.0, "clip": None, "radius": 2.0}, "eps, clip"),
    ],
)
def test_what_is_no_ball_is_refused(said, words) -> None:
    with pytest.raises(rp.ArgumentError, match=words):
        Ball.from_dict(said)


def test_a_ball_of_another_norm_is_refused() -> None:
    with pytest.raises(rp.ArgumentError, match="accepted: L2"):
        rp.L2.from_dict(rp.Linf(eps=0.1, clip=None).to_dict())
