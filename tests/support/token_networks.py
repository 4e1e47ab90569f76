"""Small networks on tokens: each part mixes activations with one another, so that gradients have them as factors."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TOKENS, WIDTH = 3, 4
"""The shape of a sample."""


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.inner(x, x, x, need_weights=False)[0]
        return mixed


class _ByHand(nn.Module):
    """Causal attention of one head, with scores that a constant is added to."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.scaled_dot_product_attention(self.q(x), self.k(x), x, is_causal=True)


class _Formula(nn.Module):
    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function, self.linear = function, nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.linear(x))


class _Channels(nn.Module):
    """A normalisation of channels: the tokens in their place."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.norm(x.transpose(1, 2)).transpose(1, 2)
        return result


PARTS: dict[str, Callable[[], nn.Module]] = {
    "attention": _Attention,
    "causal attention": _ByHand,
    "softmax": lambda: _Formula(lambda x, h: x + 2 * h.softmax(-1)),
    "softmax of tokens": lambda: _Formula(lambda x, h: x * h.softmax(1)),
    "log softmax": lambda: _Formula(lambda x, h: x + h.log_softmax(-1)),
    "product": lambda: _Formula(lambda x, h: x * h),
    "gate": lambda: _Formula(lambda x, h: h * x.mean(1, keepdim=True).sigmoid()),
    "matrix product": lambda: _Formula(lambda x, h: torch.einsum("bik,bjk->bij", x, h) @ h),
    "powers": lambda: _Formula(lambda x, h: x * (h**2 + 1).rsqrt() + h**3),
    "functions": lambda: _Formula(
        lambda x, h: x * torch.log(1.5 + torch.sin(h)) + h / (2 + torch.cos(x)) + (-h).exp() * x
    ),
    "layer norm": lambda: nn.LayerNorm(WIDTH, eps=0.05),
    "layer norm of both": lambda: nn.LayerNorm((TOKENS, WIDTH), eps=0.05),
    "group norm": lambda: _Channels(nn.GroupNorm(2, WIDTH, eps=0.05)),
    "instance norm": lambda: _Channels(nn.InstanceNorm1d(WIDTH, eps=0.1, affine=True)),
    "rms norm": lambda: nn.RMSNorm(WIDTH, eps=0.05),
    "activations": lambda: _Formula(lambda x, h: x + F.gelu(h) * F.silu(x)),
    "relu": lambda: _Formula(lambda x, h: torch.relu(h) * x + torch.maximum(x, h)),
    "tanh": lambda: _Formula(lambda x, h: torch.tanh(h) * x),
}  # fmt: skip
"""Maps of samples of one shape to samples of the same."""


class TokenNetwork(nn.Module):
    """The named parts, one after the other, and a linear layer to three logits; in float64."""

    features = (TOKENS, WIDTH)

    def __init__(self, parts: list[str], *, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.parts = nn.Sequential(*(PARTS[name]() for name in parts))
            self.last = nn.Linear(TOKENS * WIDTH, 3)
            for parameter in self.parameters():
                nn.init.normal_(parameter, std=0.6)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.parts(x).flatten(1))


class Transformer(nn.Module):
    """A pre-norm block on the rows of an image of 8 by 8 pixels, each of them a token."""

    def __init__(self, activation: type[nn.Module], width: int = 16, heads: int = 2, classes: int = 10) -> None:
        super().__init__()
        self.embedding, self.positions = nn.Linear(8, width), nn.Parameter(0.1 * torch.randn(8, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.hidden = nn.Sequential(nn.Linear(width, 2 * width), activation(), nn.Linear(2 * width, width))
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embedding(x.reshape(-1, 8, 8)) + self.positions
        y = self.norms[0](tokens)
        tokens = tokens + self.attention(y, y, y, need_weights=False)[0]
        tokens = tokens + self.hidden(self.norms[1](tokens))
        logits: Tensor = self.head(self.norms[2](tokens).mean(1))
        return logits
