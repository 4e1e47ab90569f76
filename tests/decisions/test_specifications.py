"""Margin rows, and bounds of linear combinations from bounds on the logits."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

import robust_plugins as rp


@given(st.integers(2, 7), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_rows_are_the_margins(classes, batch, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(batch, classes, generator=generator)
    y = torch.randint(classes, (batch,), generator=generator)
    margins = (rp.margin_spec(y, classes) @ z.unsqueeze(2)).squeeze(2)
    for i in range(batch):
        expected = torch.stack([z[i, y[i]] - z[i, j] for j in range(classes) if j != y[i]])
        torch.testing.assert_close(margins[i], expected)


@given(st.integers(0, 2**32 - 1))
def test_applied_rows_contain_every_combination_and_are_reached(seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    center, radius = torch.randn(3, 4, generator=generator), torch.rand(3, 4, generator=generator)
    logits = rp.Interval(center - radius, center + radius)
    spec = torch.randn(3, 5, 4, generator=generator)
    bounds = rp.apply_spec(logits, spec)
    z = center + radius * (2 * torch.rand(200, 3, 4, generator=generator) - 1)
    values = (spec @ z.unsqueeze(-1)).squeeze(-1)
    assert bounds.contains(values, tolerance=1e-5).all()
    # The extreme of one row is a corner of the box, so the bound is attained.
    corner = center.unsqueeze(1) + radius.unsqueeze(1) * spec.sign()
    torch.testing.assert_close((spec * corner).sum(-1), bounds.upper)
    assert rp.apply_spec(logits, None) is logits
