"""Makes the table of what each certifier bounds: `python integration/comparisons/coverage.py` writes coverage.md.

Every operator stands in a small model, which each certifier is given; what it refuses is quoted below the table.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import robust_plugins as rp

PAGE = Path(__file__).parent / "coverage.md"
OWN = ("interval:ibp", "interval:crown-ibp", "interval:crown", "interval:alpha-crown")
BACKEND = ("lirpa:ibp", "lirpa:crown-ibp", "lirpa:crown", "lirpa:alpha-crown")
GRADIENTS = ("interval:ibp", "interval:relaxed")


class Call(nn.Module):
    """A function between two linear layers."""

    def __init__(self, function: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> None:
        super().__init__()
        self.function, self.shape = function, shape
        self.first = nn.Linear(8, int(torch.tensor(shape).prod()))
        with torch.no_grad():
            size = function(torch.zeros(2, *shape)).flatten(1).shape[1]
        self.last = nn.Linear(size, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.function(self.first(x).view(-1, *self.shape))
        return self.last(h.flatten(1))


class Layer(nn.Module):
    """A layer between two linear ones."""

    def __init__(self, layer: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.layer, self.shape = layer.eval(), shape
        self.first = nn.Linear(8, int(torch.tensor(shape).prod()))
        with torch.no_grad():
            self.last = nn.Linear(layer(torch.rand(2, *shape)).flatten(1).shape[1], 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(self.first(x).view(-1, *self.shape)).flatten(1))


class Attention(nn.Module):
    """`nn.MultiheadAttention` of a sequence with itself."""

    def __init__(self, *, batch_first: bool = True, padded: bool = False) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=batch_first)
        self.padded = padded
        self.register_buffer("padding", torch.tensor([[False, True]]))

    def forward(self, x: Tensor) -> Tensor:
        if not self.attention.batch_first:
            h = x.permute(1, 0, 2)
            return self.attention(h, h, h, need_weights=False)[0].permute(1, 0, 2)
        mask = self.padding.expand(x.shape[0], 2) if self.padded else None
        return self.attention(x, x, x, key_padding_mask=mask, need_weights=False)[0]


VECTOR, SEQUENCE, IMAGE, VOLUME = (4,), (2, 4), (2, 4, 4), (1, 2, 2, 2)
LAYERS: list[tuple[str, Callable[[], nn.Module], tuple[int, ...]]] = [
    ("Linear", lambda: nn.Linear(4, 3), VECTOR),
    ("Conv1d", lambda: nn.Conv1d(2, 2, 3), SEQUENCE),
    ("Conv2d", lambda: nn.Conv2d(2, 2, 3, padding=1), IMAGE),
    ("Conv2d, groups", lambda: nn.Conv2d(2, 4, 3, groups=2), IMAGE),
    ("Conv2d, padding_mode reflect", lambda: nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"), IMAGE),
    ("Conv2d, padding_mode circular", lambda: nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), IMAGE),
    ("Conv3d", lambda: nn.Conv3d(1, 2, 2), VOLUME),
    ("ConvTranspose1d", lambda: nn.ConvTranspose1d(2, 2, 2, 2), SEQUENCE),
    ("ConvTranspose2d", lambda: nn.ConvTranspose2d(2, 2, 2, 2), IMAGE),
    ("BatchNorm2d", lambda: nn.BatchNorm2d(2), IMAGE),
    ("BatchNorm2d without statistics", lambda: nn.BatchNorm2d(2, track_running_stats=False), IMAGE),
    ("LayerNorm", lambda: nn.LayerNorm(4), VECTOR),
    ("GroupNorm", lambda: nn.GroupNorm(2, 2), IMAGE),
    ("InstanceNorm2d", lambda: nn.InstanceNorm2d(2, affine=True), IMAGE),
    ("RMSNorm", lambda: nn.RMSNorm(4), VECTOR),
    *((kind.__name__, kind, VECTOR) for kind in (
        nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.Softplus, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid,
        nn.Tanh, nn.Hardtanh, nn.ReLU6, nn.Hardswish, nn.Hardsigmoid, nn.LogSigmoid, nn.Softsign,
    )),
    ("Softmax", lambda: nn.Softmax(1), VECTOR),
    ("LogSoftmax", lambda: nn.LogSoftmax(1), VECTOR),
    ("MaxPool2d", lambda: nn.MaxPool2d(2), IMAGE),
    ("MaxPool2d, overlapping", lambda: nn.MaxPool2d(3, 1), IMAGE),
    ("AvgPool2d", lambda: nn.AvgPool2d(2), IMAGE),
    ("AdaptiveAvgPool2d", lambda: nn.AdaptiveAvgPool2d(1), IMAGE),
    ("ReflectionPad2d", lambda: nn.ReflectionPad2d(1), IMAGE),
    ("ReplicationPad2d", lambda: nn.ReplicationPad2d(1), IMAGE),
    ("CircularPad2d", lambda: nn.CircularPad2d(1), IMAGE),
    ("Upsample nearest", lambda: nn.Upsample(scale_factor=2), IMAGE),
    ("Upsample bilinear", lambda: nn.Upsample(scale_factor=2, mode="bilinear"), IMAGE),
    ("Upsample bicubic", lambda: nn.Upsample(scale_factor=2, mode="bicubic"), IMAGE),
    ("AdaptiveMaxPool2d", lambda: nn.AdaptiveMaxPool2d(1), IMAGE),
    ("GLU", nn.GLU, VECTOR),
    ("PixelShuffle", lambda: nn.PixelShuffle(2), (4, 2, 2)),
    ("LocalResponseNorm", lambda: nn.LocalResponseNorm(2), IMAGE),
    ("LPPool2d", lambda: nn.Sequential(nn.Softplus(), nn.LPPool2d(2, 2)), IMAGE),
    ("Unfold, Fold", lambda: nn.Sequential(nn.Unfold(2), nn.Fold((4, 4), 2)), IMAGE),
    ("MultiheadAttention", Attention, SEQUENCE),
    ("MultiheadAttention, batch_first=False", lambda: Attention(batch_first=False), SEQUENCE),
    ("MultiheadAttention, key_padding_mask", lambda: Attention(padded=True), SEQUENCE),
    ("TransformerEncoderLayer", lambda: nn.TransformerEncoderLayer(4, 2, 4, batch_first=True), SEQUENCE),
]  # fmt: skip
CALLS: list[tuple[str, Callable[[Tensor], Tensor], tuple[int, ...]]] = [
    ("h + h.relu()", lambda h: h + h.relu(), VECTOR),
    ("h * h.sigmoid()", lambda h: h * h.sigmoid(), VECTOR),
    ("h / (1 + h ** 2)", lambda h: h / (1 + h**2), VECTOR),
    ("h ** 2", lambda h: h**2, VECTOR),
    ("h.abs()", lambda h: h.abs(), VECTOR),
    ("h.exp()", lambda h: h.exp(), VECTOR),
    ("h.sin()", lambda h: h.sin(), VECTOR),
    ("(1 + h ** 2).log()", lambda h: (1 + h**2).log(), VECTOR),
    ("(1 + h ** 2).sqrt()", lambda h: (1 + h**2).sqrt(), VECTOR),
    ("torch.maximum(h, -h)", lambda h: torch.maximum(h, -h), VECTOR),
    ("h.clamp(-1, 1)", lambda h: h.clamp(-1, 1), VECTOR),
    ("h.clamp(low, high), tensors", lambda h: h.clamp(-torch.ones(4), 1 + torch.zeros(4)), VECTOR),
    ("(1 + h ** 2) ** h", lambda h: (1 + h**2) ** h, VECTOR),
    ("h @ W", lambda h: h @ torch.ones(4, 2), SEQUENCE),
    ("einsum with a constant", lambda h: torch.einsum("bij,jk->bki", h, torch.ones(4, 3)), SEQUENCE),
    ("h @ h.mT", lambda h: h @ h.transpose(1, 2), SEQUENCE),
    ("softmax(h @ h.mT) @ h", lambda h: torch.softmax(h @ h.transpose(1, 2), -1) @ h, SEQUENCE),
    ("scaled_dot_product_attention", lambda h: F.scaled_dot_product_attention(h, h, h), SEQUENCE),
    ("h.mean(1), h.sum((1, 2))", lambda h: h.mean(1) + h.sum((1, 2)).unsqueeze(1), SEQUENCE),
    ("torch.cat, torch.stack", lambda h: torch.stack((h, torch.cat((h[:, 2:], h[:, :2]), 1)), 1), VECTOR),
    ("chunk, split, unbind", lambda h: torch.cat((*h.chunk(2, 1)[::-1], *h.split((1, 3), 1)), 1), VECTOR),
    ("roll, flip", lambda h: h.roll(1, 1) + h.flip(1), VECTOR),
    ("repeat, expand", lambda h: h.repeat(1, 2) + h.unsqueeze(1).expand(-1, 2, -1).flatten(1), VECTOR),
    ("F.pad, constant", lambda h: F.pad(h, (1, 1), value=0.5), IMAGE),
    ("F.pad, reflect", lambda h: F.pad(h, (1, 1, 1, 1), mode="reflect"), IMAGE),
    ("F.interpolate", lambda h: F.interpolate(h, scale_factor=2), IMAGE),
    ("where with a constant condition", lambda h: torch.where(torch.arange(4) > 1, h, h.relu()), VECTOR),
    ("masked_fill", lambda h: h.masked_fill(torch.arange(4) > 1, 0.5), VECTOR),
    ("h[:, [0, 2]]", lambda h: h[:, [0, 2]], VECTOR),
    ("(h > 0).float() * h", lambda h: (h > 0).float() * h, VECTOR),
    ("h.norm(dim=1)", lambda h: h / (1 + h.norm(dim=1, keepdim=True)), VECTOR),
    ("vector_norm, 1 and inf", lambda h: torch.linalg.vector_norm(h, 1, 1) + h.norm(float("inf"), 1), SEQUENCE),
    ("F.normalize", lambda h: F.normalize(h, dim=1), VECTOR),
    ("F.cosine_similarity", lambda h: F.cosine_similarity(h[:, :1], h[:, 1:], dim=2), SEQUENCE),
    ("h.amax(1), h.max(1).values", lambda h: h.amax(1) + h.max(1).values, SEQUENCE),
    ("h.cumsum(1), h.diff(dim=1)", lambda h: h.cumsum(1)[:, 1:] - h.diff(dim=1), SEQUENCE),
    ("h.logsumexp(1)", lambda h: h.logsumexp(1), SEQUENCE),
    ("h.std(1), h.var(1)", lambda h: h.std(1) + h.var(1), SEQUENCE),
    ("h.prod(1)", lambda h: h.prod(1), SEQUENCE),
    ("F.bilinear", lambda h: F.bilinear(h[:, 0], h[:, 1], torch.ones(3, 4, 4)), SEQUENCE),
    ("h.sort(1), h.topk(2, 1)", lambda h: h.sort(1).values[:, :2] - h.topk(2, 1).values, VECTOR),
    ("h.median(1), h.kthvalue(2, 1)", lambda h: h.median(1).values + h.kthvalue(2, 1).values, SEQUENCE),
    ("torch.cdist", lambda h: torch.cdist(h, torch.eye(3, 4)), SEQUENCE),
    ("h.unfold(2, 2, 1)", lambda h: h.unfold(2, 2, 1), SEQUENCE),
    ("F.local_response_norm", lambda h: F.local_response_norm(h, 3), IMAGE),
    ("torch.fft.rfft(h).abs()", lambda h: torch.fft.rfft(h).abs(), SEQUENCE),
    ("h.max(1).indices", lambda h: h.max(1).indices.float(), SEQUENCE),
    ("argmax", lambda h: F.one_hot(h.argmax(1), 4).float(), VECTOR),
]


def models() -> list[tuple[str, nn.Module]]:
    """Every operator's name and a model with it, weights by a seed."""
    found: list[tuple[str, nn.Module]] = []
    for name, make, shape in LAYERS:
        torch.manual_seed(0)
        found.append((name, Layer(make(), shape).eval()))
    for name, function, shape in CALLS:
        torch.manual_seed(0)
        found.append((f"`{name}`", Call(function, shape).eval()))
    return found


def table(certifiers: tuple[str, ...], gradients: tuple[str, ...] = ()) -> str:
    """The table in Markdown, and the refusals below it."""
    x, ball = torch.linspace(-1, 1, 16).view(2, 8), rp.Linf(eps=0.01, clip=None)
    heads = ["operator", *certifiers, *(f"gradients: {name}" for name in gradients)]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    reasons: dict[str, int] = {}

    def answer(ask: Callable[[], object]) -> str:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ask()
        except rp.RobustPluginsError as error:
            reason = re.sub(r"\s+", " ", str(error)).partition(" Please help")[0]
            reason = re.sub(r", at '.*\(coverage.py, line \d+\)", "", reason)
            return f"no ({reasons.setdefault(reason, len(reasons) + 1)})"
        return "yes"

    for name, model in models():
        y = model(x).argmax(1)
        cells = [answer(partial(rp.certifier(certifier).bounds, model, x, ball)) for certifier in certifiers]
        explained = [rp.explanation_certifier(certifier) for certifier in gradients]
        cells += [answer(partial(explainer.bounds, model, x, y, ball, of="logit")) for explainer in explained]
        lines.append(f"| {name.replace('|', ' ')} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *(f"{number}. {reason}" for reason, number in reasons.items()), ""])


def page() -> str:
    """The whole page."""
    return "\n".join(
        [
            "# What each certifier bounds", "",
            "Each operator stands between two linear layers. A refused one is followed by the number of the reason "
            "below. Made by `python integration/comparisons/coverage.py`.", "",
            "## The package's own engine", "", table(OWN, GRADIENTS),
            "## Through auto_LiRPA 0.3", "", table(BACKEND),
        ]
    )  # fmt: skip


if __name__ == "__main__":
    PAGE.write_text(page())
