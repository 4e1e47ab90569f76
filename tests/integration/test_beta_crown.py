"""The script that searches on auto_LiRPA's bounds: what it needs, and that its answers hold."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from support.scripts import script
from torch import nn

import robust_plugins as rp


def test_older_versions_are_refused_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    beta_crown = script("comparisons/beta_crown.py")
    monkeypatch.setattr(beta_crown, "newest", lambda: False)
    monkeypatch.setattr(sys, "argv", ["beta_crown.py", "--models", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"auto_LiRPA 0.7 or newer is needed: install it from https://[^\n]*$"):
        beta_crown.main()


def test_domains_inherit_splits_and_do_not_share_them() -> None:
    split = script("comparisons/beta_crown.py").split
    first = split({}, ("a", 3), 1.0)
    second = split(split(first, ("a", 5), -1.0), ("b", 0), 1.0)
    assert first == {"a": {3: 1.0}}
    assert second == {"a": {3: 1.0, 5: -1.0}, "b": {0: 1.0}}


def test_answers_agree_with_branch_and_bound() -> None:
    beta_crown = script("comparisons/beta_crown.py")
    if not beta_crown.newest():
        pytest.skip("needs auto_LiRPA 0.7")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 10)).eval()
    x = torch.rand(1, 5)
    y = model(x).argmax(1)
    model.requires_grad_(False)
    answers = []
    for eps in (0.02, 0.3, 3.0):
        ball = rp.Linf(eps=eps, clip=(-9.0, 9.0))
        ours = rp.certifier("interval:branch-and-bound", timeout=20.0)(model, x, y, ball).verdicts[0]
        answer, _ = beta_crown.theirs(model, x, int(y), ball, 5.0)
        answers.append(answer)
        assert (answer == "certified") <= (ours is rp.Verdict.CERTIFIED)
    assert answers[0] == "certified"
    assert answers[-1] == "open"
