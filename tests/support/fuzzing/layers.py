"""Steps with weights: linear layers, convolutions with every option, normalisations, pooling, padding; and heads."""

from __future__ import annotations

from random import Random

import torch
from torch import nn

from support.fuzzing.source import Draft, head, step


def out_shape(code: str, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape of a sample behind the module or function of `h` that `code` is, or None where it does not fit."""
    names = {"torch": torch, "nn": nn, "F": nn.functional, "h": torch.zeros(2, *shape)}
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            made = eval(code, names)
            h = made.eval()(names["h"]) if isinstance(made, nn.Module) else made
    except (RuntimeError, ValueError):
        return None
    return tuple(h.shape[1:]) if 0 < h.numel() <= 600 else None


def placed(draft: Draft, random: Random, code: str) -> bool | None:
    """Appends the module that `code` makes."""
    shape = out_shape(code, draft.shape)
    if shape is None:
        return False
    draft.run(f"h = {draft.layer(random, code)}(h)")
    draft.shape = shape
    return None


def called(draft: Draft, code: str) -> bool | None:
    """Appends `h = code`."""
    shape = out_shape(code, draft.shape)
    if shape is None:
        return False
    draft.run(f"h = {code}")
    draft.shape = shape
    return None


@step(1, weight=5)
def linear(draft: Draft, random: Random) -> None:
    (d,), k = draft.shape, random.choice((2, 3, 4, 5, 6))
    bias = random.random() < 0.8
    if random.random() < 0.7:
        draft.run(f"h = {draft.layer(random, f'nn.Linear({d}, {k}, bias={bias})')}(h)")
    else:
        w, b = (draft.keep(f"nn.Parameter(0.7 * torch.randn({size}))") for size in (f"{k}, {d}", k))
        draft.run(random.choice((f"h = F.linear(h, {w}, {b})", f"h = F.linear(h, {w})", f"h = h @ {w}.t() + {b}",
                                 f"h = torch.addmm({b}, h, {w}.t())",
                                 f"h = F.linear(h, {w}.tanh(), bias={b})")))  # fmt: skip
    draft.shape = (k,)


@step(2, 3, weight=6)
def convolution(draft: Draft, random: Random) -> bool | None:
    rank, c = len(draft.shape) - 1, draft.shape[0]
    k = random.choice((1, 2, 3, 4))
    fits = [g for g in range(1, c + 1) if c % g == 0 and k % g == 0]
    groups = random.choice((*fits, fits[-1], 1))
    kernel, stride, dilation = random.choice((1, 2, 3, 3)), random.choice((1, 1, 1, 2)), random.choice((1, 1, 1, 2))
    pad = random.choice((0, 1, 1, "'same'" if stride == 1 else 1))
    mode = random.choice(("zeros",) * 8 + ("reflect", "replicate", "circular"))
    bias = random.random() < 0.8
    if random.random() < 0.75:
        return placed(
            draft, random, f"nn.Conv{rank}d({c}, {k}, {kernel}, stride={stride}, padding={pad}, dilation={dilation}, "
            f"groups={groups}, bias={bias}, padding_mode='{mode}')",
        )  # fmt: skip
    rest = f"stride={stride}, padding={pad}, dilation={dilation}, groups={groups}"
    weight = f"torch.randn({k}, {c // groups}{f', {kernel}' * rank})"
    shape = out_shape(f"F.conv{rank}d(h, {weight}, None, {rest})", draft.shape)
    if shape is None:
        return False
    w = draft.keep(f"nn.Parameter({0.7 / kernel:.2f} * {weight})")
    b = draft.keep(f"nn.Parameter(torch.randn({k}))") if bias else "None"
    draft.run(f"h = F.conv{rank}d(h, {w}, {b}, {rest})")
    draft.shape = shape
    return None


@step(3, weight=8)
def block(draft: Draft, random: Random) -> bool | None:
    """What most image models are made of: a convolution that keeps the size, and an activation."""
    c, k = draft.shape[0], random.choice((2, 4, 4))
    groups = c if k % c == 0 and random.random() < 0.6 else random.choice([g for g in (1, 2) if not (c % g or k % g)])
    kernel = random.choice((1, 3, 3))
    if placed(draft, random, f"nn.Conv2d({c}, {k}, {kernel}, padding={kernel // 2}, groups={groups})") is False:
        return False
    draft.run(
        random.choice(("h = torch.relu(h)", f"h = {draft.keep('nn.ReLU()')}(h)", "h = h.relu()", "h = torch.tanh(h)"))
    )
    return None


@step(1, weight=5)
def hidden(draft: Draft, random: Random) -> None:
    draft.run(f"h = {draft.layer(random, f'nn.Linear({draft.shape[0]}, {(k := random.choice((3, 5, 6)))})')}(h)")
    draft.run(random.choice(("h = torch.relu(h)", f"h = {draft.keep('nn.ReLU()')}(h)", "h = h.relu()", "h = h.tanh()")))
    draft.shape = (k,)


@step(2, 3, weight=0.8, rare=True)
def transposed_convolution(draft: Draft, random: Random) -> bool | None:
    rank, c = len(draft.shape) - 1, draft.shape[0]
    k = random.choice((1, 2, 4))
    groups = 2 if c % 2 == 0 and k % 2 == 0 and random.random() < 0.4 else 1
    stride = random.choice((1, 2))
    out, pad = random.choice((0, 0, 1)) if stride == 2 else 0, random.choice((0, 1))
    return placed(draft, random, f"nn.ConvTranspose{rank}d({c}, {k}, {random.choice((2, 3))}, stride={stride}, "
                                 f"padding={pad}, output_padding={out}, groups={groups})")  # fmt: skip


@step(weight=2)
def normalised(draft: Draft, random: Random) -> bool | None:
    rank, c = len(draft.shape), draft.shape[0]
    if random.random() < 0.7:
        name = f"nn.BatchNorm{max(rank - 1, 1)}d({c}, affine={random.random() < 0.8})"
        layer = draft.keep(name)
        draft.init.append(f"{layer}.running_mean.uniform_(-0.5, 0.5); {layer}.running_var.uniform_(0.2, 2.0)")
        if "True" in name:
            draft.init.append(f"{layer}.weight.data.uniform_(-1.5, 1.5); {layer}.bias.data.uniform_(-0.5, 0.5)")
        draft.run(f"h = {layer}(h)")
        return None
    draft.run(f"h = (h - {draft.keep(str(random.choice((0.1307, 0.5))))}) / {draft.keep('0.3081')}")
    return None


@step(rare=True)
def odd_normalisation(draft: Draft, random: Random) -> bool | None:
    rank, shape, c = len(draft.shape), draft.shape, draft.shape[0]
    codes = [f"nn.LayerNorm({list(shape)})", f"nn.LayerNorm({shape[-1]}, elementwise_affine=False)",
             f"nn.GroupNorm(1, {c})", f"nn.GroupNorm({c}, {c})", f"nn.LayerNorm({shape[-1]}, eps=0.1)",
             f"nn.RMSNorm({shape[-1]})", f"nn.RMSNorm({list(shape)}, eps=0.1)"]  # fmt: skip
    if rank > 1:
        codes.append(f"nn.InstanceNorm{rank - 1}d({c}, affine={random.random() < 0.5})")
    if random.random() < 0.2:
        draft.flags.add("batch")
        codes = [f"nn.BatchNorm{max(rank - 1, 1)}d({c}, track_running_stats=False)"]
    return placed(draft, random, random.choice(codes).replace("bias=False", ""))


@step(2, 3, weight=2)
def pooled(draft: Draft, random: Random) -> bool | None:
    d = len(draft.shape) - 1
    kernel, stride, pad = random.choice((2, 2, 3)), random.choice(("None", 1, 2)), random.choice((0, 0, 1))
    ceil, count = random.random() < 0.3, random.random() < 0.5
    functional = random.random() < 0.4
    kind = random.choice(("avg", "avg", "max", "max", "adaptive", "divisor" if d == 2 else "avg", "lp"))
    size = random.choice((1, 2, 3))
    if kind == "adaptive":
        name = random.choice(("avg", "avg", "max"))
        module, call = f"nn.Adaptive{name.title()}Pool{d}d({size})", f"F.adaptive_{name}_pool{d}d(h, {size})"
    elif kind == "max":
        dilation = random.choice((1, 1, 2))
        rest = f"{kernel}, {stride}, {pad}, {dilation}, ceil_mode={ceil}"
        module, call = f"nn.MaxPool{d}d({rest})", f"F.max_pool{d}d(h, {rest})"
    elif kind == "lp":
        module, call = f"nn.LPPool{d}d(2, {kernel})", f"F.lp_pool{d}d(h, 2.0, {kernel})"
    else:
        divisor = ", divisor_override=3" if kind == "divisor" else ""
        rest = f"{kernel}, {stride}, {pad}, ceil_mode={ceil}, count_include_pad={count}{divisor}"
        module, call = f"nn.AvgPool{d}d({rest})", f"F.avg_pool{d}d(h, {rest})"
    if kind == "lp" and random.random() < 0.8:
        return False
    return called(draft, call) if functional else placed(draft, random, f"{module}")


@step(2, 3, weight=0.6, rare=True)
def padded(draft: Draft, random: Random) -> bool | None:
    d = len(draft.shape) - 1
    sides = (1, 0) * d if random.random() < 0.5 else (1, 1) * d
    mode = random.choice(("constant", "constant", "reflect", "replicate", "circular"))
    value = f", value={random.choice((0.0, 0.7, -1.0))}" if mode == "constant" else ""
    options = [f"F.pad(h, {sides}, mode='{mode}'{value})",
    f"F.interpolate(h, scale_factor=2, mode='{('linear', 'bilinear')[d - 1]}')",
               "F.interpolate(h, scale_factor=2)"]  # fmt: skip
    return called(draft, random.choice(options[:1] * 3 + options))


@step(2, weight=0.6, rare=True)
def transformer(draft: Draft, random: Random) -> bool | None:
    """Attention in torch's own layers."""
    n, d = draft.shape
    if d % 2 or draft.size > 40:
        return False
    heads, options = random.choice((1, 2)), f"dropout={random.choice((0.0, 0.1))}, batch_first=True"
    if random.random() < 0.5:
        f = draft.layer(random, f"nn.MultiheadAttention({d}, {heads}, {options})")
        mask = draft.keep(f"torch.ones({n}, {n}).triu(1).bool()") if random.random() < 0.3 else "None"
        draft.run(f"h = h + {f}(h, h, h, attn_mask={mask}, need_weights={random.random() < 0.5})[0]")
    else:
        norm, act = random.random() < 0.5, random.choice(("relu", "gelu"))
        layer = f"nn.TransformerEncoderLayer({d}, {heads}, 4, norm_first={norm}, activation='{act}', {options})"
        draft.run(f"h = {draft.layer(random, layer)}(h)")
    return None


def _flat(draft: Draft) -> None:
    if len(draft.shape) > 1:
        draft.run("h = h.flatten(1)")
        draft.shape = (draft.size,)


@head(weight=12)
def linear_head(draft: Draft, random: Random) -> None:
    _flat(draft)
    draft.run(f"h = {draft.layer(random, f'nn.Linear({draft.size}, {draft.classes})')}(h)")
    draft.shape = (draft.classes,)


@head(weight=2)
def pooling_head(draft: Draft, random: Random) -> None:
    """Ends without a linear layer, where the shape allows it."""
    if len(draft.shape) == 3 and draft.shape[0] > 1:
        draft.run(
            random.choice(("h = h.mean((2, 3))", "h = F.adaptive_avg_pool2d(h, 1).flatten(1)", "h = h.amax((2, 3))"))
        )
        draft.shape = draft.shape[:1]
    elif draft.size > 1:
        _flat(draft)
    else:
        linear_head(draft, random)


@head(weight=2)
def activated_head(draft: Draft, random: Random) -> None:
    linear_head(draft, random)
    draft.run(random.choice(("h = h.relu()", "h = h.sigmoid()", "h = torch.tanh(h) * 3", "h = h.clamp(-1, 1)")))


@head(weight=1.5)
def probabilities(draft: Draft, random: Random) -> None:
    linear_head(draft, random)
    draft.run(random.choice(("h = F.log_softmax(h, 1)", "h = torch.softmax(h, 1)",
    f"h = {draft.keep('nn.LogSoftmax(dim=1)')}(h)",
                             "h = h - h.logsumexp(1, keepdim=True)")))  # fmt: skip


@head(weight=1)
def one_output(draft: Draft, random: Random) -> None:
    _flat(draft)
    draft.run(f"h = {draft.layer(random, f'nn.Linear({draft.size}, 1)')}(h)")
    if random.random() < 0.4:
        draft.run(random.choice(("h = h.squeeze(1)", "h = h[:, 0]")))
    draft.shape = (1,)
