"""Convolutions and their gradients, by whichever kernel, are what torch's own are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from robust_plugins.intervals import convolutions
from robust_plugins.intervals.convolutions import convolution, gradient_by_input

PLAIN: dict[str, Any] = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "options",
    [
        {}, {"padding": (1, 1)}, {"padding": (4, 3)}, {"stride": (2, 1), "padding": (1, 0)}, {"dilation": (2, 1)},
        {"groups": 2}, {"stride": (3, 3)},
    ],
)  # fmt: skip
@pytest.mark.parametrize(("inputs", "outputs"), [(2, 2), (2, 14), (6, 4)])
def test_values_and_gradients(options: dict[str, Any], inputs: int, outputs: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    options, tolerance = PLAIN | options, {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {}
    x = torch.randn(3, inputs, 9, 8, dtype=dtype, requires_grad=True)
    weight = torch.randn(outputs, inputs // options["groups"], 3, 2, dtype=dtype, requires_grad=True)
    wanted = F.conv2d(x, weight, None, **options)
    torch.testing.assert_close(convolution(x, weight, **options), wanted, **tolerance)
    direction = torch.randn_like(wanted)
    (slope,) = torch.autograd.grad(wanted, x, direction, create_graph=True)
    found = gradient_by_input(direction, weight, x.shape[2:], **options)
    torch.testing.assert_close(found, slope, **tolerance)
    second = [torch.autograd.grad(g.square().sum(), weight)[0] for g in (found, slope)]
    torch.testing.assert_close(*second, rtol=1e-3, atol=1e-3)


def test_a_batch_in_double_precision_is_convolved_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = torch.randn(40, 2, 9, 8, dtype=torch.float64), torch.randn(3, 2, 3, 3, dtype=torch.float64)
    lengths: list[int] = []

    def counted(part: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        lengths.append(len(part))
        return F.conv2d(part, *rest, **options)

    monkeypatch.setitem(convolutions._CONVOLUTIONS, 2, counted)
    monkeypatch.setattr(convolutions, "PIECE", 3 * 18 * 72)
    torch.testing.assert_close(convolution(x, weight, **PLAIN), F.conv2d(x, weight))
    assert lengths == [3] * 13 + [1]
    lengths.clear()
    convolution(x, weight.requires_grad_(), **PLAIN)
    assert lengths == [40]  # what is differentiated is kept whole
