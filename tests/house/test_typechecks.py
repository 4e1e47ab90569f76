"""The suite itself notices tensors of other shapes than are annotated, in each test again."""

from __future__ import annotations

import pytest
import torch
from jaxtyping import TypeCheckError
from support.typechecker import checks

import robust_plugins as rp


@pytest.mark.parametrize("earlier", [False, True])
def test_a_wrong_shape_is_caught(earlier: bool) -> None:
    with pytest.raises(TypeCheckError):
        rp.margin_spec(torch.zeros(2, 2, dtype=torch.long), classes=3)
    for _ in range(30):
        rp.margin_spec(torch.zeros(2, dtype=torch.long), classes=3)
    assert checks.done[rp.margin_spec.__wrapped__.__code__] == min(31, checks.calls)
