"""Attention and transformer layers: traced to layers with rules, bounded soundly; what cannot be bounded is named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.interval_checker import bounds_of, make_case, observed, violations
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import robust_plugins as rp
from robust_plugins.intervals import Interval, crown, trace


class Block(nn.Module):
    """A pre-norm transformer block, as people write it."""

    def __init__(self, width: int = 4, heads: int = 2) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 6), nn.GELU(), nn.Linear(6, width))
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = (
            self.qkv(self.before(x)).reshape(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        )
        weights = self.drop((q @ k.transpose(-2, -1) * self.scale).softmax(-1))
        x = x + self.out((weights @ v).transpose(1, 2).reshape(b, n, d))
        return x + self.mlp(self.between(x))


class Attention(nn.Module):
    """`nn.MultiheadAttention` of a sequence with itself."""

    def __init__(self, mask: Tensor | None = None, *, weights: bool = False, **options: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, **{"batch_first": True, **options})
        self.mask, self.weights = mask, weights

    def forward(self, x: Tensor) -> Tensor:
        out, weights = self.attention(x, x, x, attn_mask=self.mask, need_weights=self.weights)
        return torch.cat((out, weights), 2) if self.weights else out


class Causal(nn.Module):
    """`scaled_dot_product_attention` behind linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(3, 3) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x), is_causal=True)


class Padded(nn.Module):
    """Attention that looks at no padding, with two masks and with one of numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.register_buffer("padding", torch.tensor([False, False, True]))
        self.register_buffer("added", torch.tensor([[0.3, -torch.inf, 0.1]], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        causal = torch.ones(3, 3).triu(1).bool()
        one, _ = self.attention(x, x, x, key_padding_mask=self.padding.expand(x.shape[0], 3), attn_mask=causal)
        mask = torch.zeros(3, 3, dtype=torch.float64)
        return one + self.attention(x, x, x, self.added.repeat(x.shape[0], 1), need_weights=False, attn_mask=mask)[0]


class SequencesFirst(nn.Module):
    """A residual block whose batch is axis 1, as people write it for attention without batch_first."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.norm, self.linear = nn.MultiheadAttention(4, 2), nn.LayerNorm(4), nn.Linear(4, 4)
        self.position, self.row = nn.Parameter(torch.ones(3, 1, 4)), nn.Parameter(torch.ones(1, 4))

    def forward(self, x: Tensor) -> Tensor:
        h = x.permute(1, 0, 2) + self.position
        z = self.norm(h)
        h = h + self.attention(z, z, z, need_weights=False)[0]
        h = h + self.linear(F.gelu(self.linear(h)) * torch.sigmoid(1.7 * h)) + self.row
        weights = self.attention(h, h, h)[1]
        return weights @ h.permute(1, 0, 2) + (h.softmax(0) * h).sum(dim=0).unsqueeze(1)


class Turned(nn.Module):
    """A layer of torch with its default layout, and the mean over the sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(4, 2, 5, dropout=0.0)
        self.register_buffer("padding", torch.tensor([[False, True]]))

    def forward(self, x: Tensor) -> Tensor:
        h = self.encoder(x.transpose(0, 1), src_key_padding_mask=self.padding.expand(x.shape[0], 2))
        return (h.mean(0) + h[-1] + h.amax(dim=0)).unsqueeze(1)


LAYER = {"dim_feedforward": 5, "batch_first": True, "dropout": 0.0}
MODELS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "by hand": (Block(), (3, 4)),
    "module": (Attention(weights=True), (3, 4)),
    "added mask": (Attention(torch.full((3, 3), -torch.inf, dtype=torch.float64).triu(1) + 0.3), (3, 4)),
    "mask": (Attention(torch.ones(3, 3).triu(1).bool(), bias=False), (3, 4)),
    "causal": (Causal(), (3, 3)),
    "padding mask": (Padded(), (3, 4)),
    "sequences first": (SequencesFirst(), (3, 4)),
    "encoder of sequences first": (Turned(), (2, 4)),
    "encoder layer": (nn.TransformerEncoderLayer(4, 2, **LAYER), (2, 4)),
    "pre-norm encoder": (
        nn.TransformerEncoder(
            nn.TransformerEncoderLayer(4, 1, norm_first=True, activation="gelu", **LAYER), 1, enable_nested_tensor=False
        ),
        (2, 4),
    ),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("eps", [0.3, 1e-4])
def test_bounds_hold(name: str, eps: float) -> None:
    model, shape = MODELS[name]
    case = make_case(model, shape, eps=eps, gamma=0, seed=1)
    with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative, which the search takes
        hull = observed(case, samples=12, ascents=12)
    assert violations(bounds_of(case), hull) == []
    assert violations(bounds_of(case, relax=True), hull) == []


@pytest.mark.parametrize("name", MODELS)
def test_linear_relaxation_of_attention_is_nearly_exact_on_small_boxes(name: str) -> None:
    model, shape = MODELS[name]
    case = make_case(model, shape, eps=1e-4, gamma=0, seed=2)
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        network = trace(model, case.x.lower)
        found = crown(network, case.x)[-1]
        slopes = torch.autograd.functional.jacobian(lambda x: model(x).sum(0), case.x.center)
    radius = (slopes.movedim(-3, 0).abs() * case.x.radius.unsqueeze(1).unsqueeze(1)).flatten(3).sum(3)
    assert bool((found.radius <= 1.02 * radius.reshape(found.shape) + 1e-9).all())


class PaddedByInput(Padded):
    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, key_padding_mask=x[:, :, 0] > 0)[0]


REFUSED = {
    "batch_first=True": Attention(batch_first=False),
    "key_padding_mask must be a constant": PaddedByInput(),
    "add_bias_kv": Attention(add_bias_kv=True),
}


@pytest.mark.parametrize("advice", REFUSED)
def test_what_is_not_supported_is_refused_by_name(advice: str) -> None:
    with pytest.raises(rp.UnsupportedModelError, match=rf"layer 'attention' \(MultiheadAttention\).*{advice}"):
        trace(REFUSED[advice].eval(), torch.rand(2, 3, 4))


def test_weights_of_attention_are_known_to_sum_to_one() -> None:
    """The mean of values lies between them, however wide the scores are."""

    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (1e3 * x).softmax(-1) @ x.relu().mT

    model, x = Mean(), torch.rand(2, 3, 3, dtype=torch.float64)
    network = trace(model, x)
    box = Interval(x - 1, x + 1)
    for values in (network.forward(box), crown(network, box)):
        assert float(values[-1].lower.min()) >= -1e-12, values
        assert bool((values[-1].upper <= (x + 1).mT.amax(-2, True) + 1e-12).all())
