"""Calls that move, repeat, join, cut, normalise or contract: traced to layers that compute the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from support.interval_checker import bounds_of, make_case, observed, violations
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.intervals import trace


class Form(nn.Module):
    """A model whose forward is one expression."""

    def __init__(self, expression: Callable[[Form, Tensor], Tensor]) -> None:
        super().__init__()
        self.expression = expression
        self.weight, self.bias = nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.ones(3))
        self.kernel, self.heads = nn.Parameter(torch.ones(2, 1, 2, 2)), nn.Parameter(torch.ones(2, 2, 3))
        self.token, self.position = nn.Parameter(torch.ones(1, 1, 2)), nn.Embedding(5, 2)
        self.register_buffer("mean", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.expression(self, x)


MASK = torch.tensor([True, False, True, True])

VECTORS: list[Callable[[Form, Tensor], Tensor]] = [
    lambda m, x: x @ m.weight.t() + m.bias,
    lambda m, x: torch.addmm(m.bias, x, m.weight.t()),
    lambda m, x: torch.einsum("bi,ji->bj", x, m.weight.tanh()),
    lambda m, x: torch.matmul(m.weight, x.unsqueeze(2)).squeeze(2),
    lambda m, x: (x.view(-1, 1, 2, 2) @ m.heads).flatten(1),
    lambda m, x: torch.einsum("bi,j->bij", x, m.bias).flatten(1),
    lambda m, x: torch.stack([x, x.relu(), torch.ones_like(x)], 2).flatten(1),
    lambda m, x: torch.cat([part * i for i, part in enumerate(x.chunk(2, 1))][::-1], 1),
    lambda m, x: x.split((1, 3), 1)[1].flip(1) + x.tensor_split(2, dim=-1)[0].sum(1, keepdim=True),
    lambda m, x: torch.hstack([t.unsqueeze(1) for t in x.unbind(1)][::-1]).roll(1, 1),
    lambda m, x: x.repeat(1, 2) * torch.arange(8) + x.unsqueeze(1).expand(-1, 2, -1).flatten(1).tile(1),
    lambda m, x: torch.cat((m.token.expand(x.shape[0], -1, -1), x.view(-1, 2, 2)), 1) + m.position(torch.arange(3)),
    lambda m, x: torch.where(m.mean > 0, x, torch.zeros_like(x)) + torch.where(MASK, x.relu(), -3.0),
    lambda m, x: torch.where(MASK, x, m.mean).masked_fill(~MASK, 7.0) + torch.full_like(x, 2.0) * x.new_ones(x.shape),
    lambda m, x: x.view(-1, 2, 2).masked_fill(~torch.ones(2, 2).tril().bool(), float("-inf")).softmax(-1),
    lambda m, x: x[:, [0, 0, -1]] + x[:, torch.tensor([1, 1, 2])] + x[..., 1:] - x.narrow(1, 0, 3),
    lambda m, x: (
        x.view(-1, 2, 2).mT.movedim(1, 2).swapaxes(1, 2).tril().select(1, 1) + x.index_select(1, MASK[1:3].int())
    ),
    lambda m, x: F.layer_norm(x, (4,), m.mean) + F.rms_norm(x, (4,)) + x.repeat_interleave(2, 1)[:, 2:6],
    lambda m, x: F.group_norm(x.view(-1, 2, 2), 2).flatten(1) + F.instance_norm(x.view(-1, 2, 2)).flatten(1),
    lambda m, x: F.pad(x, (1, 2), value=3.0) + F.pad(x.unsqueeze(1), (2, 1), mode="reflect").squeeze(1),
]
IMAGES: list[Callable[[Form, Tensor], Tensor]] = [
    lambda m, x: F.pad(x, (1, 1, 1, 0), mode="replicate") + F.pad(x, (1, 1, 0, 1), mode="circular"),
    lambda m, x: F.interpolate(x, scale_factor=2) + F.interpolate(x, (8, 8), mode="bilinear", align_corners=False),
    lambda m, x: F.conv_transpose2d(x.repeat(1, 2, 1, 1), m.kernel, stride=2),
    lambda m, x: (
        F.interpolate(x, scale_factor=2, mode="bicubic") + F.interpolate(x, (8, 8), mode="bicubic", align_corners=True)
    ),
    lambda m, x: F.interpolate(x, (2, 3), mode="bilinear", antialias=True) - nn.Upsample((2, 3), mode="bicubic")(x),
    lambda m, x: F.adaptive_max_pool2d(x, 2) + nn.AdaptiveMaxPool2d((1, None))(x)[..., 1:3] + F.max_pool2d(x, 2),
    lambda m, x: F.pixel_shuffle(F.pixel_unshuffle(x, 2), 2) + F.unfold(x, 2).mean((1, 2), keepdim=True).unsqueeze(3),
]


@pytest.mark.parametrize("index", range(len(VECTORS) + len(IMAGES)))
def test_expressions_are_understood(index: int) -> None:
    model = Form([*VECTORS, *IMAGES][index])
    shape = (4,) if index < len(VECTORS) else (1, 4, 4)
    case = make_case(model, shape, eps=0.5, gamma=0, seed=index)
    hull = observed(case, seed=index, samples=10, ascents=6)
    assert violations(bounds_of(case), hull) == []
    assert violations(bounds_of(case, relax=True, gradients=False), hull) == []


UNSUPPORTED: list[tuple[Callable[[Form, Tensor], Tensor], str]] = [
    (lambda m, x: x.roll(1), "roll.*give it its dims"),
    (lambda m, x: x.flip(0), "flip.*batch is axis 0"),
    (lambda m, x: torch.einsum("bi,cj->ij", x, m.weight), "does not keep the batch"),
    (lambda m, x: x @ x.t(), "batch"),
    (lambda m, x: torch.where(x > 0, x, x.relu()), "where.*must not depend on the input"),
    (lambda m, x: nn.functional.instance_norm(x.view(-1, 2, 2), m.mean[:2], m.mean[2:]), "torch.nn.InstanceNorm"),
    (lambda m, x: x[:, x.argmax(1)], r"argmax.*places.*h.amax\(dim\)"),
]  # fmt: skip


@pytest.mark.parametrize(("expression", "message"), UNSUPPORTED)
def test_what_is_not_understood_is_named(expression: Callable[[Form, Tensor], Tensor], message: str) -> None:
    with pytest.raises(rp.UnsupportedModelError, match=message):
        trace(Form(expression).eval(), torch.rand(2, 4))


def test_batch_norm_without_statistics_is_refused_with_what_to_do() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False))
    with pytest.raises(rp.UnsupportedModelError, match=r"BatchNorm1d.*track_running_stats=True.*GroupNorm"):
        trace(model, torch.rand(2, 4))
