"""Softmax of scores that share a large number, or of which all are hidden."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.intervals import Interval
from robust_plugins.intervals.rules import selection
from robust_plugins.intervals.rules.selection import softmax_range

NAMES = ["interval:ibp", "interval:crown", "interval:alpha-crown"]


class Hidden(nn.Module):
    """A softmax of which every score was replaced."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, z: Tensor) -> Tensor:
        return torch.softmax(z.masked_fill(torch.ones(3, dtype=torch.bool), self.value), -1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [-1e4, -1e9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_large_number_that_all_scores_share_changes_nothing(name: str, value: float, dtype: torch.dtype) -> None:
    x = torch.zeros(1, 3, dtype=dtype)
    found = rp.certifier(name).bounds(Hidden(value), x, rp.Linf(eps=0.1, clip=None))
    third = torch.full_like(x, 1 / 3)
    torch.testing.assert_close(found.lower, third)
    torch.testing.assert_close(found.upper, third)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shared", [0.0, -1e4, 1e9])
def test_outward_bounds_hold_for_scores_of_any_size(shared: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    z = (shared + torch.randn(20, 5)).to(dtype)
    radius = 0.1 + z.abs() * torch.finfo(dtype).eps
    found = rp.certifier("interval:ibp", outward=True).bounds(
        nn.Softmax(-1), z, rp.Linf(eps=radius.amax().item(), clip=None)
    )
    exact = z.double().softmax(-1)
    assert bool((found.lower.double() <= exact).all())
    assert bool((found.upper.double() >= exact).all())
    assert found.contains(z.softmax(-1)).all()


@pytest.mark.parametrize("shared", [0.0, 1e6])
def test_the_logarithm_holds_its_values(shared: float) -> None:
    torch.manual_seed(0)
    z = (shared + torch.randn(20, 5)).float()
    found = rp.certifier("interval:ibp").bounds(nn.LogSoftmax(-1), z, rp.Linf(eps=1e-3, clip=None))
    exact = z.double().log_softmax(-1)
    assert bool((found.lower.double() <= exact + 1e-6).all())
    assert bool((found.upper.double() >= exact - 1e-6).all())


def test_subtracting_last_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def rounded(own: Tensor, others: Tensor) -> Tensor:
        itself = torch.eye(own.shape[-1], dtype=torch.bool)
        return own - others.unsqueeze(-2).masked_fill(itself, -torch.inf).logsumexp(-1)

    z = torch.full((1, 4), 1e9)
    box = Interval(z, z.nextafter(z + 1))
    assert bool((softmax_range(box, -1).lower < 0.26).all())
    monkeypatch.setattr(selection, "lead", rounded)
    assert bool((softmax_range(box, -1).lower > 0.26).all())


@pytest.mark.parametrize("name", NAMES)
def test_softmax_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(rp.UnsupportedModelError, match=r"returns NaN near.*softmax of minus infinity"):
        rp.certifier(name).bounds(Hidden(-torch.inf), torch.zeros(1, 3), rp.Linf(eps=0.1, clip=None))


class Attention(nn.Module):
    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, attn_mask=self.mask, need_weights=False)[0].flatten(1)


def test_a_query_that_may_look_nowhere_is_refused_and_one_that_may_look_at_itself_is_not() -> None:
    x, ball = torch.randn(2, 3, 4), rp.Linf(eps=0.01, clip=None)
    mask = torch.zeros(3, 3, dtype=torch.bool)
    mask[1] = True
    with pytest.raises(rp.UnsupportedModelError, match="look at itself"):
        rp.certifier("interval:ibp").bounds(Attention(mask).eval(), x, ball)
    mask[1, 1] = False
    model = Attention(mask).eval()
    assert rp.certifier("interval:ibp").bounds(model, x, ball).contains(model(x)).all()


def test_a_transposed_convolution_with_room_at_its_end_has_a_gradient() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Unflatten(1, (2, 3)), nn.ConvTranspose1d(2, 2, 1, dilation=3, output_padding=2), nn.Flatten(), nn.Tanh(),
        nn.Linear(10, 3),
    )  # fmt: skip
    x, y = torch.randn(4, 6), torch.tensor([0, 1, 2, 0])
    ball = rp.Linf(eps=0.05, clip=None)
    bounds = rp.certifier("interval:crown-ibp").bounds(model, x, ball)
    gradients = rp.explanation_certifier("interval:relaxed")(model, x, y, ball, delta=1.0).gradient
    for z in ball.sample(x, 20):
        assert bounds.contains(model(z)).all()
        z = z.requires_grad_()
        (grad,) = torch.autograd.grad(model(z).gather(1, y[:, None]).sum(), z)
        assert gradients.contains(grad).all()
