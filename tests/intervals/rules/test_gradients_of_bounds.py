"""Training differentiates bounds: their gradients are finite, for saturated, masked and degenerate inputs too."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from support.interval_checker import make_case
from support.interval_examples import EXAMPLES
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.intervals import Interval, crown, trace
from robust_plugins.intervals.methods.relaxation import Relaxation
from robust_plugins.intervals.rules.registry import current

SHAPE = (3, 4)
CAUSAL = torch.ones(3, 3, dtype=torch.bool).tril()
MASK = torch.tensor([[0.0, -torch.inf, 0.3]] * 3)
HARD: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "causal attention": lambda x, h: F.scaled_dot_product_attention(h, h, x, is_causal=True),
    "attention, mask that is added": lambda x, h: F.scaled_dot_product_attention(h, h, x, attn_mask=MASK.to(x)),
    "attention by hand": lambda x, h: (h @ x.mT).masked_fill(~CAUSAL, -torch.inf).softmax(-1) @ x,
    "attention, large number": lambda x, h: (h @ x.mT).masked_fill(~CAUSAL, -1e9).softmax(-1) @ x,
    "large scores": lambda x, h: (1e12 * h @ x.mT).softmax(-1) @ x,
    "one score": lambda x, h: h[:, :, :1].softmax(-1) * x,
    "masked log softmax": lambda x, h: (h @ x.mT).masked_fill(~CAUSAL, -1e9).log_softmax(-1),
    "length that may be zero": lambda x, h: h.relu().norm(dim=-1) + x.sum(-1),
    "length zero": lambda x, h: (0 * h).norm(dim=-1) + x.sum(-1),
    "normalize": lambda x, h: F.normalize(h.relu(), dim=-1) + x,
    "cosine": lambda x, h: F.cosine_similarity(h.relu(), x.relu(), dim=-1),
    "normalisation of constants": lambda x, h: F.layer_norm(h.sum(-1, keepdim=True).expand(-1, -1, 4), (4,)) + x,
    "RMS of nothing": lambda x, h: F.rms_norm(0 * h, (4,)) + x,
    "standard deviation": lambda x, h: h.std(-1) + x.sum(-1),
    "saturated": lambda x, h: torch.tanh(1e6 * h) + torch.sigmoid(1e6 * x) + F.gelu(1e6 * h) + F.mish(1e3 * x),
    "exponential of little": lambda x, h: (-1e4 * (1 + h**2)).exp() + F.softplus(1e6 * x),
}  # fmt: skip


class Formula(nn.Module):
    """A function of the input and of a linear layer's output."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function, self.linear = function, nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.linear(x))


def broken(model: nn.Module, shape: tuple[int, ...], *, eps: tuple[float, float] = (0.3, 0.0)) -> list[str]:
    """Which bounds have gradients that are not finite: around a drawn sample and around zero, with these radii."""
    found = []
    case = make_case(model, shape, eps=0.1, gamma=0, seed=1)
    parameters = [p.requires_grad_() for p in case.model.float().parameters()]
    axes = (-1, *(1 for _ in shape))
    x = (case.x.center.float() * torch.tensor([1.0, 0.0]).view(axes)).requires_grad_()
    radius = torch.tensor(eps).view(axes)
    network = trace(case.model, x.detach())
    with torch.enable_grad():
        values = crown(network, Interval(x - radius, x + radius))
        back = network.backward(values, case.grad.to(torch.float32)).input
        for name, bound in (("lines", Relaxation(network, values).bounds(len(values) - 1)), ("slopes", back)):
            total = bound.upper.sum() - 0.7 * bound.lower.sum()
            if not total.requires_grad:
                continue
            gradients = torch.autograd.grad(total, [x, *parameters], allow_unused=True, retain_graph=True)
            if not all(g is None or bool(g.isfinite().all()) for g in gradients):
                found.append(name)
    return found


def of_gallery(*, bent: bool, eps: tuple[float, float] = (0.3, 0.0)) -> dict[str, list[str]]:
    """The layers of the gallery whose bounds have gradients that are not finite; `bent`: one of each that has lines."""
    found, seen = {}, set()
    for index, (kind, layer, shape) in enumerate(EXAMPLES):
        rules = current().get(kind)
        if bent and (kind in seen or rules is None or rules.relaxation is None):
            continue
        seen.add(kind)
        if wrong := broken(layer, shape, eps=eps):
            found[f"{index} {layer}"] = wrong
    return found


def test_every_operator_that_has_lines() -> None:
    assert not of_gallery(bent=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("eps", [(0.3, 0.0), (0.0, 0.1)])
def test_the_whole_gallery(eps: tuple[float, float]) -> None:
    assert not of_gallery(bent=False, eps=eps)


@pytest.mark.parametrize("name", HARD)
def test_masked_saturated_and_degenerate_inputs(name: str) -> None:
    assert not broken(Formula(HARD[name]), SHAPE)


class MaskedClassifier(nn.Module):
    """Attention of tokens, two of which are padding."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.last = nn.Linear(4, 2)
        self.register_buffer("padding", torch.tensor([[False, False, True, True]]))

    def forward(self, x: Tensor) -> Tensor:
        padding = self.padding.expand((x.shape[0], 4))
        h = self.attention(x, x, x, key_padding_mask=padding, need_weights=False)[0]
        return self.last((x + h)[:, 0])


def test_masked_attention_is_trained_by_its_bounds() -> None:
    """The loss of a few steps falls, and every weight stays finite."""
    torch.manual_seed(0)
    model, x = MaskedClassifier(), torch.randn(12, 4, 4)
    y, ball = (x[:, 0].sum(1) > 0).long(), rp.Linf(eps=0.05, clip=None)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(3):
        margins = rp.certifier("interval:crown-ibp").bounds(model, x, ball, rp.margin_spec(y, 2)).lower
        loss = F.softplus(-margins).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(bool(p.isfinite().all()) for p in model.parameters())
