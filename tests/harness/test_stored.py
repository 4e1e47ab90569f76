"""Files of results that are damaged, or made to do harm, get one clear error; tensors keep their own values."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import robust_plugins as rp
from robust_plugins.harness.stored import ENTRY, _Encoder

HEAD = '{"format":1,"version":"x","result":'

DAMAGED = {
    "brackets": HEAD + "[" * 200_000 + "]" * 200_000 + "}",
    "nested lists": HEAD + '{"record":"AttackResult","fields":{"x_adv":' + '{"list":[' * 5_000 + "]}" * 5_000 + "}}}",
    "no fields": HEAD + '{"record":"AttackResult"}}',
    "fields that are a list": HEAD + '{"record":"AttackResult","fields":[]}}',
    "a tensor that is missing": HEAD + '{"record":"AttackResult","fields":{"x_adv":{"tensor":3}}}}',
    "an empty tree": HEAD + '{"record":"AttackResult","fields":{"x_adv":{}}}}',
    "no version": '{"format":9,"result":{"record":"AttackResult"}}',
}


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model, x = nn.Linear(4, 3), torch.rand(5, 4)
    path = tmp_path / "whole.npz"
    rp.attack("rp:fgsm")(model, x, model(x).argmax(1), rp.Linf(eps=0.1, clip=None), seed=0).save(path)
    return path


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED)
def test_contents_that_are_none_are_refused(text: str, tmp_path: Path) -> None:
    file = io.BytesIO()
    np.savez(file, **{ENTRY: np.frombuffer(text.encode(), dtype=np.uint8)})
    (tmp_path / "odd.npz").write_bytes(file.getvalue())
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(10**6)  # as some libraries do: then Python itself no longer stops what is too deep
    try:
        refused(tmp_path / "odd.npz")
    finally:
        sys.setrecursionlimit(before)


def refused(path: Path) -> None:
    with pytest.raises(rp.ArgumentError, match="`path` is"):
        rp.AttackResult.load(path)


def test_no_byte_can_be_changed_without_notice_or_a_clear_error(whole: Path, tmp_path: Path) -> None:
    right, bytes_ = rp.AttackResult.load(whole), whole.read_bytes()
    refused = 0
    for at in range(0, len(bytes_), 37):
        damaged = bytearray(bytes_)
        damaged[at] ^= 0xFF
        (tmp_path / "damaged.npz").write_bytes(bytes(damaged))
        try:
            found = rp.AttackResult.load(tmp_path / "damaged.npz")
        except rp.ArgumentError:
            refused += 1
        else:
            assert torch.equal(found.x_adv, right.x_adv)
    (tmp_path / "cut.npz").write_bytes(bytes_[: len(bytes_) // 2])
    with pytest.raises(rp.ArgumentError):
        rp.AttackResult.load(tmp_path / "cut.npz")
    assert refused


def test_tensors_that_lived_for_a_moment_are_not_taken_for_each_other() -> None:
    encoder = _Encoder({})
    names = [encoder.of(torch.full((2,), float(i)))["tensor"] for i in range(20)]
    assert [encoder.arrays[name][0] for name in names] == list(range(20))


def test_brackets_in_names_are_no_nesting(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(4, 3), torch.rand(5, 4)
    named = {"[{" * 200 + '"\\': rp.attack("rp:fgsm")}
    found = rp.compare(model, x, model(x).argmax(1), rp.Linf(eps=0.1, clip=None), named, seed=0)
    found.save(tmp_path / "odd.npz")
    assert str(rp.Comparison.load(tmp_path / "odd.npz")) == str(found)
