"""Models of sequences, of tables and of pairs as people write them; and models that no certifier bounds."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm


class Chomp1d(nn.Module):
    def __init__(self, chomp_size: int) -> None:
        super().__init__()
        self.chomp_size = chomp_size

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, : -self.chomp_size].contiguous()


class TemporalBlock(nn.Module):
    def __init__(self, inp: int, out: int, dilation: int) -> None:
        super().__init__()
        padding = dilation
        self.conv1 = weight_norm(nn.Conv1d(inp, out, 2, padding=padding, dilation=dilation))
        self.net = nn.Sequential(self.conv1, Chomp1d(padding), nn.ReLU(), nn.Dropout(0.2))
        self.downsample = nn.Conv1d(inp, out, 1) if inp != out else None

    def forward(self, x: Tensor) -> Tensor:
        res = x if self.downsample is None else self.downsample(x)
        return F.relu(self.net(x) + res)


class TCN(nn.Module):
    """Causal convolutions by padding and cutting, weights normalised; the last step decides."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(TemporalBlock(2, 3, 1), TemporalBlock(3, 3, 2), TemporalBlock(3, 3, 4))
        self.decoder = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.network(x)[:, :, -1])


class CausalConv(nn.Module):
    """The same by padding on the left, with gates as WaveNet has them."""

    def __init__(self) -> None:
        super().__init__()
        self.filter, self.gate = nn.Conv1d(2, 3, 2, dilation=2), nn.Conv1d(2, 3, 2, dilation=2)
        self.mix, self.fc = nn.Conv1d(3, 4, 1), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (2, 0))
        h = torch.tanh(self.filter(x)) * torch.sigmoid(self.gate(x))
        return self.fc(F.glu(self.mix(h), dim=1).amax(dim=-1))


class PositionalEncoding(nn.Module):
    def __init__(self, d_model: int, max_len: int = 10) -> None:
        super().__init__()
        position = torch.arange(max_len).unsqueeze(1)
        div_term = torch.exp(torch.arange(0, d_model, 2) * (-math.log(10000.0) / d_model))
        pe = torch.zeros(max_len, 1, d_model)
        pe[:, 0, 0::2], pe[:, 0, 1::2] = torch.sin(position * div_term), torch.cos(position * div_term)
        self.register_buffer("pe", pe)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(x + self.pe[: x.size(0)])


class SequenceTransformer(nn.Module):
    """The transformer of torch's tutorial: sequences first, a causal mask, the mean over time."""

    def __init__(self) -> None:
        super().__init__()
        self.d_model, self.embed, self.pos_encoder = 4, nn.Linear(2, 4), PositionalEncoding(4)
        layer = nn.TransformerEncoderLayer(4, 2, 6, 0.1, activation=F.relu)
        self.transformer_encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.register_buffer("src_mask", nn.Transformer.generate_square_subsequent_mask(3))
        self.decoder = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        src = self.embed(x).permute(1, 0, 2) * math.sqrt(self.d_model)
        output = self.transformer_encoder(self.pos_encoder(src), self.src_mask)
        return self.decoder(output.mean(dim=0))


class AnnotatedNorm(nn.Module):
    def __init__(self, features: int, eps: float = 1e-2) -> None:
        super().__init__()
        self.a_2, self.b_2, self.eps = nn.Parameter(torch.ones(features)), nn.Parameter(torch.zeros(features)), eps

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(-1, keepdim=True)
        std = x.std(-1, keepdim=True)
        return self.a_2 * (x - mean) / (std + self.eps) + self.b_2


class AnnotatedTransformer(nn.Module):
    """Attention, masks and norms by hand, as in a well-known tutorial."""

    def __init__(self) -> None:
        super().__init__()
        self.h, self.d_k, self.proj = 2, 2, nn.Linear(2, 4)
        self.linears = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))
        self.norm, self.generator = AnnotatedNorm(4), nn.Linear(4, 3)
        self.register_buffer("mask", torch.tensor([[[[1, 1, 0]]]]))

    def forward(self, x: Tensor) -> Tensor:
        nbatches = x.size(0)
        src = self.proj(x)
        y = self.norm(src)
        query, key, value = [
            lin(t).view(nbatches, -1, self.h, self.d_k).transpose(1, 2)
            for lin, t in zip(self.linears, (y, y, y), strict=False)
        ]
        scores = torch.matmul(query, key.transpose(-2, -1)) / math.sqrt(query.size(-1))
        scores = scores.masked_fill(self.mask == 0, -1e9)
        out = torch.matmul(scores.softmax(dim=-1), value)
        out = out.transpose(1, 2).contiguous().view(nbatches, -1, self.h * self.d_k)
        return self.generator((src + self.linears[-1](out))[:, 0])


class FTTransformer(nn.Module):
    """A token for each feature of a table and one for the class; ReGLU in between."""

    def __init__(self, features: int = 4, d: int = 4) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(features + 1, d)), nn.Parameter(torch.randn(features, d))
        self.attention, self.norm = nn.MultiheadAttention(d, 2, batch_first=True), nn.LayerNorm(d)
        self.linear0, self.linear1 = nn.Linear(d, 8), nn.Linear(4, d)
        self.head = nn.Sequential(nn.LayerNorm(d), nn.ReLU(), nn.Linear(d, 3))

    def forward(self, x_num: Tensor) -> Tensor:
        x = torch.cat([x_num.new_ones((x_num.shape[0], 1)), x_num], dim=1)
        x = self.weight[None] * x[:, :, None]
        x = x + torch.cat([torch.zeros_like(self.bias[:1]), self.bias])[None]
        z = self.norm(x)
        x = x + self.attention(z, z, z, need_weights=False)[0]
        a, b = self.linear0(self.norm(x)).chunk(2, dim=-1)
        x = x + self.linear1(a * F.relu(b))
        return self.head(x[:, 0])


class Siamese(nn.Module):
    """Two halves of the input through one network; how near they are, in three measures."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(3, 6), nn.PReLU(), nn.Linear(6, 4))
        self.cos, self.out = nn.CosineSimilarity(dim=1), nn.Linear(6, 3)

    def forward_once(self, x: Tensor) -> Tensor:
        return F.normalize(self.encoder(x), p=2, dim=1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.forward_once(x[:, :3]), self.forward_once(x[:, 3:])
        near = torch.stack([self.cos(a, b), F.pairwise_distance(a, b)], dim=1)
        return self.out(torch.cat([torch.abs(a - b), near], dim=1))


class Maxout(nn.Module):
    """A wide and deep network: maxout, a residual of a norm, softplus temperatures."""

    def __init__(self) -> None:
        super().__init__()
        self.lin, self.deep = nn.Linear(6, 8), nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.SiLU())
        self.out, self.temperature = nn.Linear(4, 3), nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        m, _ = self.lin(x).view(x.shape[0], 4, 2).max(-1)
        h = m + self.deep(x)
        h = h / (1.0 + torch.norm(h, dim=1, keepdim=True))
        return self.out(h) / F.softplus(self.temperature)


SEQUENCES: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
    "tcn": (TCN, (2, 8)), "causal gates": (CausalConv, (2, 6)), "torch's transformer": (SequenceTransformer, (3, 2)),
    "annotated transformer": (AnnotatedTransformer, (3, 2)), "table": (FTTransformer, (4,)), "siamese": (Siamese, (6,)),
    "maxout": (Maxout, (6,)),
}  # fmt: skip


class LSTMClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.fc = nn.LSTM(2, 3, num_layers=1, batch_first=True), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.lstm(x)
        return self.fc(out[:, -1, :])


class GRUClassifier(nn.Module):
    """Makes its first state of the batch size, as tutorials do."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.fc = nn.GRU(2, 3, batch_first=True), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        h0 = torch.zeros(1, x.size(0), 3)
        return self.fc(self.gru(x, h0)[0][:, -1])


class Routed(nn.Module):
    """Mixture of experts, the best one chosen."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(6, 2), nn.ModuleList(nn.Linear(6, 3) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        best = self.gate(x).argmax(dim=1)
        out = torch.stack([e(x) for e in self.experts], 1)
        return out[torch.arange(len(x)), best]


class Bessel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.special.bessel_j0(self.fc(x)))


class TextCNN(nn.Module):
    """Looks indices up: there is nothing between two words."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.fc = nn.Embedding(9, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.embedding(x.long()).mean(1))


REFUSED: dict[str, tuple[type[nn.Module], tuple[int, ...], str]] = {
    "lstm": (LSTMClassifier, (3, 2), r"layer 'lstm' \(LSTM\)"),
    "gru": (GRUClassifier, (3, 2), r"layer 'gru' \(GRU\)"),
    "routed": (Routed, (6,), "argmax.*places|control flow|len"),
    "bessel": (Bessel, (6,), "bessel_j0 in the model"),
    "words": (TextCNN, (4,), "long in the model.*int64"),
}
"""Models that have no bounds, and what their refusals name."""
