"""The pair of answers: its order, its missing halves, and how it is shown."""

from __future__ import annotations

import copy
import json
import pickle

import torch

import robust_plugins as rp


def test_the_empirical_half_comes_first() -> None:
    bracket = rp.Bracket(empirical=0.88, certified=0.87)
    low, high = bracket
    assert (low, high) == (bracket.empirical, bracket.certified) == (0.88, 0.87)
    assert bracket.complete
    assert json.loads(json.dumps(bracket.to_dict())) == {"empirical": 0.88, "certified": 0.87}
    assert pickle.loads(pickle.dumps(bracket)) == copy.deepcopy(bracket) == bracket


def test_a_missing_half_is_none_and_no_number() -> None:
    for bracket in (rp.Bracket(None, 0.5), rp.Bracket(0.5, None), rp.Bracket(None, None)):
        assert not bracket.complete
        assert None in bracket
        assert "None" in repr(bracket)
        assert json.loads(json.dumps(bracket.to_dict())) == dict(zip(("empirical", "certified"), bracket, strict=True))


def test_many_values_are_shown_by_their_range() -> None:
    text = repr(rp.Bracket(torch.linspace(0, 1, 500), torch.full((500,), torch.inf)))
    assert text == "Bracket(empirical=<500 values from 0 to 1>, certified=<500 values from inf to inf>)"
    assert repr(rp.Bracket(torch.tensor(0.25), torch.zeros(0))) == (
        "Bracket(empirical=0.25, certified=<no values, shape (0,)>)"
    )
