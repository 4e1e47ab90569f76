"""Every message of a call or layer that cannot be traced says what to do, and doing so helps."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.intervals import Interval, network, trace

Forward = Callable[["Form", Tensor], Any]


class Form(nn.Module):
    """A model of sequences of two tokens with four features, whose forward is one expression."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.run = forward
        self.linear, self.weight, self.steps = nn.Linear(4, 3), nn.Parameter(torch.ones(3, 4)), 2
        self.first, self.last = nn.MultiheadAttention(4, 2), nn.MultiheadAttention(4, 2, batch_first=True)
        self.added = nn.MultiheadAttention(4, 2, batch_first=True, add_bias_kv=True)
        self.lstm, self.cell, self.state = nn.LSTM(4, 3, batch_first=True), nn.Linear(4, 12), nn.Linear(3, 12)
        self.softmin, self.softmin1 = nn.Softmin(), nn.Softmin(1)
        self.pools, self.pool = nn.AdaptiveMaxPool1d(2, return_indices=True), nn.AdaptiveMaxPool1d(2)
        self.register_buffer("mask", torch.tensor([[True, False]]))
        self.register_buffer("rows", torch.tensor([[0.5, -1.0], [2.0, 3.0], [0.0, 1.0]]))
        self.other = [nn.Linear(4, 3)]
        self.kept = nn.ModuleList([nn.Linear(4, 3)])

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def _unrolled(m: Form, x: Tensor) -> Tensor:
    h = c = torch.zeros_like(x[:, 0, :3])
    for t in range(m.steps):
        i, f, g, o = (m.cell(x[:, t]) + m.state(h)).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
    return h


def _attend(attention: nn.MultiheadAttention, x: Tensor, **options: Any) -> Tensor:
    result: Tensor = attention(x, x, x, need_weights=False, **options)[0]
    return result


CASES: dict[str, tuple[Forward, str, Forward]] = {
    # calls
    "unknown": (lambda m, x: x.lgamma(), "register_interval_rules", lambda m, x: x.tanh()),
    "truth": (lambda m, x: (x > 0) + (x > 1), r"write \(h > 0\)\.float\(\)",
              lambda m, x: (x > 0).float() + (x > 1).float()),
    "casting to truth": (lambda m, x: x.bool().float(), "compare with a number instead", lambda m, x: (x > 0).float()),
    "comparison": (lambda m, x: (x > x.sin()).float(), "compare with a number", lambda m, x: (x - x.sin() > 0).float()),
    "narrow dtype": (lambda m, x: m.linear(x.half().float()), "rounds values.*to one dtype", lambda m, x: m.linear(x)),
    "wide dtype": (lambda m, x: x.double().float(), "bounds are computed in one dtype", lambda m, x: x.float()),
    "drawn slopes": (lambda m, x: F.rrelu(x, training=True), "pass training=self.training",
                     lambda m, x: F.rrelu(x, training=m.training)),
    "dropout": (lambda m, x: F.dropout(x), "pass training=self.training", lambda m, x: F.dropout(x, 0.5, m.training)),
    "decimals": (lambda m, x: torch.round(x, decimals=1), "of h scaled beforehand",
                 lambda m, x: torch.round(10 * x) / 10),
    "rounded quotient": (lambda m, x: torch.div(x, 2, rounding_mode="floor"), "with torch.floor or torch.trunc",
                         lambda m, x: torch.floor(x / 2) + torch.trunc(x / 2)),
    "alpha": (lambda m, x: torch.add(x, m.rows[:1, :1], alpha=2), r"write a \+ alpha \* b",
              lambda m, x: x + 2 * m.rows[:1, :1]),
    "two inputs": (lambda m, x: F.bilinear(x, m.weight[:2].expand((x.shape[0], 2, 4)), torch.ones(1, 4, 4)),
                   "of a constant one write a linear layer", lambda m, x: m.linear(x)),
    "distances": (lambda m, x: torch.cdist(x.repeat(1, 13, 1), x), "donot_use_mm",
                  lambda m, x: torch.cdist(x.repeat(1, 13, 1), x, compute_mode="donot_use_mm_for_euclid_dist")),
    "points": (lambda m, x: torch.cdist(x, m.rows.new_ones((1, 2, 4))), "must be a matrix",
               lambda m, x: torch.cdist(x, m.rows.new_ones((2, 4)))),
    "order": (lambda m, x: x.topk(2, 2, sorted=False).values, "leave sorted=True",
              lambda m, x: x.topk(2, 2, sorted=True).values),
    "addcmul": (lambda m, x: torch.addcmul(x, torch.ones(4), torch.ones(4)), r"write it as h \+ a \* b",
                lambda m, x: x + torch.ones(4) * torch.ones(4)),
    "addcdiv": (lambda m, x: torch.addcdiv(x, torch.ones(4), torch.ones(4)), r"write it as h \+ a / b",
                lambda m, x: x + torch.ones(4) / torch.ones(4)),
    "lerp": (lambda m, x: torch.lerp(torch.ones(4), torch.zeros(4), x), r"write it as a \+ weight \* \(b - a\)",
             lambda m, x: torch.ones(4) + x * (torch.zeros(4) - torch.ones(4))),
    "rsub": (lambda m, x: torch.rsub(x, 1.0, alpha=2), "write it as a - b", lambda m, x: 1.0 - 2 * x),
    "negative base": (lambda m, x: (-2.0) ** x, "must be above 0", lambda m, x: 2.0**x),
    "options": (lambda m, x: F.hardtanh(x, m.rows.amin(), 1.0), "its options must be numbers",
                lambda m, x: F.hardtanh(x, -1.0, 1.0)),
    "softmax": (lambda m, x: torch.softmax(x, -1, dtype=torch.float32), "give softmax its dim, and no dtype",
                lambda m, x: torch.softmax(x, -1)),
    "log_softmax": (lambda m, x: torch.log_softmax(x, -1, dtype=torch.float32), "give log_softmax its dim",
                    lambda m, x: torch.log_softmax(x, -1)),
    "running statistics": (
        lambda m, x: F.instance_norm(x, m.rows[:2, 0], m.rows[1:, 1]), "torch.nn.InstanceNorm1d",
        lambda m, x: nn.InstanceNorm1d(2)(x)),
    # shapes
    "over the batch": (lambda m, x: x - x.mean(0), "along the axes of each sample", lambda m, x: x - x.mean(1, True)),
    "over everything": (lambda m, x: x / (1 + x.sum((0, 1, 2))), "along the axes of each sample",
                        lambda m, x: x / (1 + x.abs().sum((1, 2), True))),
    "batch moved": (lambda m, x: (x.permute(1, 2, 0).reshape(8, -1) + 1).t(), "move it back before",
                    lambda m, x: x.permute(1, 2, 0).permute(2, 0, 1).reshape(-1, 8) + 1),
    "batch size": (lambda m, x: x / x.size(0), "leave the batch size out", lambda m, x: x / x.size(1)),
    "rolled": (lambda m, x: x.roll(1), "give it its dims, without the batch", lambda m, x: x.roll(1, 2)),
    "flipped": (lambda m, x: x.flip(0), "name axes of each sample", lambda m, x: x.flip(1)),
    "repeated": (lambda m, x: x.repeat_interleave(2, 0)[::2], "along the axes of each sample",
                 lambda m, x: x.repeat_interleave(2, 1)),
    "repeated by a tensor": (lambda m, x: x.repeat_interleave(torch.tensor([1, 2]), 1), "give it a number, and its dim",
                             lambda m, x: x.repeat_interleave(2, 1)),
    "vectors": (lambda m, x: x[:, 0].tril(), "each sample must be a matrix", lambda m, x: x.tril()),
    "index": (lambda m, x: x[::1], r"index as x\[:, \.\.\.\]",
              lambda m, x: x[:, [0, 1]] + x[:, torch.tensor([1, 0])]),
    "joined": (lambda m, x: torch.cat((x, x))[: x.shape[0]], "join along another axis|along the axes of each sample",
               lambda m, x: torch.cat((x, x), 1)),
    "attribute": (lambda m, x: x.real, "use a function of torch", lambda m, x: torch.abs(x)),
    "constant rows": (lambda m, x: torch.cat((x, m.rows.unsqueeze(2).expand(3, 2, 4)[: x.shape[0]]), 1),
                      "leave the batch size out",
                      lambda m, x: torch.cat((x, m.rows[:1].unsqueeze(2).expand(x.shape[0], 2, 4)), 1)),
    "condition": (lambda m, x: torch.where(x > 0, x, -x), r"write \(h > 0\)\.float\(\) \* a \+ \.\.\. instead",
                  lambda m, x: (x > 0).float() * x + (x <= 0).float() * -x),
    "filled": (lambda m, x: x.masked_fill(m.mask.t(), m.linear(x).sum()), "constant tensor|filled with a number|axes",
               lambda m, x: x.masked_fill(m.mask.t(), 0.5)),
    # products
    "ranks": (lambda m, x: x.unsqueeze(1) @ x.mT, "equally many axes",
              lambda m, x: x.unsqueeze(1) @ x.mT.unsqueeze(1)),
    "sum over the batch": (lambda m, x: (m.rows.t() @ x[:, 0]), "cannot be run|sums over the batch",
                           lambda m, x: x[:, 0] @ m.weight.t() + (m.weight @ x[:, 0].unsqueeze(2)).squeeze(2)),
    "einsum": (lambda m, x: torch.einsum("...i,ji->...j", x, m.weight), "each axis by one letter",
               lambda m, x: torch.einsum("bti,ji->btj", x, m.weight)),
    "einsum of a sum": (lambda m, x: torch.einsum("bti,jk->bijk", x, m.weight), r"as in x\.sum\(2\)",
                        lambda m, x: torch.einsum("bi,jk->bijk", x.sum(1), m.weight)),
    "einsum of two": (lambda m, x: torch.einsum("bti,bsj->bts", x, x), r"as in x\.sum\(2\)",
                      lambda m, x: torch.einsum("bt,bs->bts", x.sum(2), x.sum(2))),
    "attention's dropout": (lambda m, x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.1),
                            "leave dropout_p at 0 unless self.training",
                            lambda m, x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.1 * m.training)),
    "attention to constants": (lambda m, x: F.scaled_dot_product_attention(x, m.weight[None], m.weight[None]),
                               "must depend on the model's input",
                               lambda m, x: torch.softmax(x @ m.weight.t() / 2, -1) @ m.weight),
    "nowhere": (lambda m, x: F.scaled_dot_product_attention(x, x, x, torch.zeros(2, 2).bool()),
                "let each query look at itself",
                lambda m, x: F.scaled_dot_product_attention(x, x, x, torch.eye(2).bool())),
    # layers
    "attention of the batch": (lambda m, x: _attend(m.first, x), "its batch must be axis 1, or.*batch_first=True",
                               lambda m, x: _attend(m.first, x.transpose(0, 1)).transpose(0, 1) + _attend(m.last, x)),
    "added keys": (lambda m, x: _attend(m.added, x), "without add_bias_kv", lambda m, x: _attend(m.last, x)),
    "mask of the input": (lambda m, x: _attend(m.last, x, key_padding_mask=x[:, :, 0] > 0), "a constant matrix",
                          lambda m, x: _attend(m.last, x, key_padding_mask=m.mask.expand((x.shape[0], -1)))),
    "one token": (lambda m, x: _attend(m.last, x[:, 0]), "must be sequences", lambda m, x: _attend(m.last, x[:, :1])),
    "recurrent": (lambda m, x: m.lstm(x)[0][:, -1], "write its steps in forward", _unrolled),
    "softmin": (lambda m, x: m.softmin(x[:, 0]), "give it its dim|Implicit", lambda m, x: m.softmin1(x)),
    "pool's places": (lambda m, x: m.pools(x)[0], "return_indices=False", lambda m, x: m.pool(x)),
    "pool's indices": (lambda m, x: F.adaptive_max_pool1d(x, 2, return_indices=True)[0], "return_indices=False",
                       lambda m, x: F.adaptive_max_pool1d(x, 2)),
    "uneven pool": (lambda m, x: F.adaptive_max_pool1d(x, 3), "must divide.*pad or crop",
                    lambda m, x: F.adaptive_max_pool1d(x[:, :, :3], 3) + F.adaptive_max_pool1d(F.pad(x, (0, 2)), 3)),
    # axes
    "places": (lambda m, x: x.argmax(2).float(), r"h\.amax\(dim\)", lambda m, x: x.amax(2)),
    "a norm's name": (lambda m, x: x.norm("nuc", (1, 2)), "p must be a number or 'fro'",
                      lambda m, x: x.norm("fro", (1, 2))),
    "a matrix norm": (lambda m, x: torch.linalg.norm(x, 2, (1, 2)), "torch.linalg.vector_norm",
                      lambda m, x: torch.linalg.vector_norm(x, 2, (1, 2))),
    "a small order": (lambda m, x: x.norm(0.5, 1), "from 1 on", lambda m, x: x.norm(1, 1)),
    # what tracing cannot follow
    "length": (lambda m, x: x.view(len(x), 8), r"write x\.shape\[0\] in place of len\(x\)",
               lambda m, x: x.view(x.shape[0], 8)),
    "sizes one by one": (lambda m, x: x + torch.zeros(x.shape[0], 2, 4), "as one tuple",
                         lambda m, x: x + torch.zeros((x.shape[0], 2, 4))
                         + torch.ones(1, 1, 1).expand((x.shape[0], 2, 4))),
    "hidden list": (lambda m, x: m.other[0](x), "ModuleList", lambda m, x: m.kept[0](x)),
    "in place": (lambda m, x: (x[:, 0], x.mul_(2.0))[0] + x[:, 1], "without changing a value in place",
                 lambda m, x: x[:, 0] + (x * 2.0)[:, 1]),
    "autocast": (lambda m, x: _lowered(m, x), "call it without", lambda m, x: m.linear(x)),
    "parameter as a number": (lambda m, x: x * m.weight.sum().item(), "compute with the tensor itself",
                              lambda m, x: x * m.weight.sum()),
    "sparse": (lambda m, x: x @ m.weight.detach().t().to_sparse(), "keep it dense",
               lambda m, x: x @ m.weight.t()),
}  # fmt: skip


def _lowered(m: Form, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        result: Tensor = m.linear(x)
    return result


def _x() -> Tensor:
    return torch.linspace(-1, 1, 24).view(3, 2, 4)


@cache
def told(name: str) -> str:
    """The message for a model that cannot be traced."""
    with pytest.raises(rp.UnsupportedModelError) as caught:
        trace(Form(CASES[name][0]).eval(), _x())
    return str(caught.value)


@pytest.mark.filterwarnings("ignore:Implicit dimension")
@pytest.mark.parametrize("name", CASES)
def test_messages_say_what_to_do_and_that_helps(name: str) -> None:
    _, message, advised = CASES[name]
    assert re.search(message, told(name)), told(name)
    x, model = _x(), Form(advised).eval()
    found = trace(model, x).forward(Interval.point(x))[-1].lower
    with torch.no_grad():
        torch.testing.assert_close(found, model(x.clone()), atol=1e-5, rtol=1e-5)


FOLDER = Path(network.__file__).parent
FILES = (
    "calls",
    "elementwise_calls",
    "layer_calls",
    "structural_calls",
    "product_calls",
    "reducing_calls",
    "ordering_calls",
    "neighbour_calls",
    "expansions",
)
ELSEWHERE = (
    "what it takes must depend", "what it takes besides must be", "one of its tensors must depend",
    "its inputs must be", "a constant must have one row", "its input must be images",
    "{} is not supported with these", "is not supported as it is used: {}", "join along another axis",
    "it sums over the batch", "the batch must stay", "stack along", "its constant has more axes",
    "its input must depend", "of one value there is none", "of no values there is none", "give it its axes",
    "the batch must be the first axis", "it must be filled with",
)  # fmt: skip
"""Messages that name what is wrong and leave nothing to be tried, or that another check comes before."""


def advice() -> Iterator[str]:
    """The strings of every refusal of a call, with {} for what is put in."""
    for path in FILES:
        for node in ast.walk(ast.parse((FOLDER / f"{path}.py").read_text())):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
                text = node.exc.args[0]
                if isinstance(text, ast.JoinedStr):
                    yield "".join(str(v.value) if isinstance(v, ast.Constant) else "{}" for v in text.values)
                elif isinstance(text, ast.Constant):
                    yield str(text.value)


@pytest.mark.filterwarnings("ignore:Implicit dimension")
def test_every_message_of_a_call_is_tried() -> None:
    said = [told(name) for name in CASES]
    known = [text for text in advice() if not any(part in text for part in ELSEWHERE)]
    assert len(known) > 25
    untried = [t for t in known if not any(re.search(re.escape(t).replace(r"\{\}", ".*"), s) for s in said)]
    assert not untried, untried
