"""Steps that move values: reshaping, slices, stacks, repeats, and reductions over axes."""

from __future__ import annotations

from random import Random

from support.fuzzing.elementwise import function
from support.fuzzing.source import Draft, step


@step(1, weight=0.6)
def to_sequence(draft: Draft, random: Random) -> bool | None:
    (d,) = draft.shape
    fits = [c for c in (1, 2, 3, d) if d % c == 0]
    c = random.choice(fits)
    draft.run(random.choice((f"h = h.view(-1, {c}, {d // c})", f"h = h.reshape(h.shape[0], {c}, {d // c})",
                             f"h = h.unflatten(1, ({c}, {d // c}))")))  # fmt: skip
    draft.shape = (c, d // c)


@step(2, 3, weight=0.7)
def flattened(draft: Draft, random: Random) -> None:
    draft.run(random.choice(("h = h.flatten(1)", "h = torch.flatten(h, 1)", "h = h.reshape(len(h), -1)",
                             "h = h.view(h.size(0), -1)", f"h = {draft.keep('nn.Flatten()')}(h)")))  # fmt: skip
    draft.shape = (draft.size,)


@step(2, 3, weight=0.8)
def permuted(draft: Draft, random: Random) -> None:
    order = list(range(len(draft.shape)))
    random.shuffle(order)
    dims = (0, *(i + 1 for i in order))
    options = [f"h = h.permute{dims}", f"h = torch.permute(h, {dims})", f"h = h.permute{dims}.contiguous()"]
    if len(order) == 2 and order == [1, 0]:
        options += ["h = h.transpose(1, 2)", "h = h.mT", "h = h.transpose(-1, -2)"]
    draft.run(random.choice(options))
    draft.shape = tuple(draft.shape[i] for i in order)


@step(weight=1.2)
def sliced(draft: Draft, random: Random) -> bool | None:
    d = draft.shape[0]
    if d < 2:
        return False
    code, size = random.choice(
        (
            ("h[:, 1:]", d - 1), ("h[:, ::2]", (d + 1) // 2), ("h[:, :-1]", d - 1), ("h.chunk(2, 1)[0]", (d + 1) // 2),
            ("h.split((1, h.shape[1] - 1), 1)[1]", d - 1), ("torch.narrow(h, 1, 0, 1)", 1), ("h[:, [0, -1]]", 2),
            ("h.flip(1)", d), ("torch.roll(h, 1, 1)", d), ("h[:, torch.tensor([0, 0, 1])]", 3), ("h[..., :]", d),
            ("h.index_select(1, torch.tensor([1, 0]))", 2),
        )
    )  # fmt: skip
    draft.run(f"h = {code}")
    draft.shape = (size, *draft.shape[1:])
    return None


@step(weight=1.2)
def repeated(draft: Draft, random: Random) -> bool | None:
    d, rest = draft.shape[0], draft.shape[1:]
    if draft.size > 40:
        return False
    ones = ", 1" * len(rest)
    options = [
        (f"h.repeat(1, 2{ones})", 2 * d), (f"h.tile(2{ones})", 2 * d), ("torch.cat((h, h), 1)", 2 * d),
        ("h.repeat_interleave(2, 1)", 2 * d), (f"h[:, :1].expand(-1, 3{', -1' * len(rest)})", 3),
        (f"h[:, :1].repeat(1, 3{ones})", 3),
        ("torch.stack((h, -h), 1).flatten(1, 2)", 2 * d), ("torch.stack((h, h), 2).flatten(1, 2)", 2 * d),
    ]  # fmt: skip
    code, size = random.choice(options)
    draft.run(f"h = {code}")
    draft.shape = (size, *rest)
    return None


@step(weight=1.2)
def halves(draft: Draft, random: Random) -> bool | None:
    d = draft.shape[0]
    if d < 2 or d % 2:
        return False
    parts = ("h.chunk(2, 1)", f"h.split({d // 2}, dim=1)", "torch.chunk(h, 2, dim=1)", "(h[:, ::2], h[:, 1::2])")
    draft.run(f"r, s = {random.choice(parts)}")
    joined = f"torch.cat((s, {function(random, 'r')}), 1)"
    draft.run(f"h = {random.choice((joined, 'r * s.sigmoid()', 'r - s', 'r + s.relu()'))}")
    if joined not in draft.forward[-1]:
        draft.shape = (d // 2, *draft.shape[1:])
    return None


@step(weight=1.2)
def reduced(draft: Draft, random: Random) -> bool | None:
    rank = len(draft.shape)
    axis = random.randrange(rank)
    call = random.choice(("mean", "sum", "mean", "sum", "amax", "amin", "std", "logsumexp"))
    if rank == 1 or random.random() < 0.5:
        draft.run(f"h = h {random.choice(('-', '+', '*'))} h.{call}({axis + 1}, keepdim=True)")
        return None
    axes = tuple(i + 1 for i in range(1, rank)) if random.random() < 0.4 and call != "std" else (axis + 1,)
    draft.run(f"h = h.{call}({axes if len(axes) > 1 else axes[0]})")
    draft.shape = tuple(n for i, n in enumerate(draft.shape) if i + 1 not in axes)
    return None


@step(1, weight=0.7)
def softmax(draft: Draft, random: Random) -> None:
    factor = random.choice((1, 3, -2))
    draft.run(random.choice((f"h = {factor} * torch.softmax(h, 1)", f"h = h.softmax(-1) * {factor}",
                             f"h = {factor} * {draft.keep('nn.Softmax(dim=1)')}(h)")))  # fmt: skip


@step(1, rare=True)
def log_softmax(draft: Draft, random: Random) -> None:
    """And other functions of the whole vector."""
    draft.run(random.choice((
        "h = F.log_softmax(h, 1)", "h = h.log_softmax(-1)", f"h = {draft.keep('nn.LogSoftmax(1)')}(h)",
        "h = F.normalize(h, dim=1)", "h = h * h.norm(dim=1, keepdim=True)", "h = h - h.amax(1, keepdim=True)",
        "h = F.glu(torch.cat((h, 2 * h), 1), 1)", "h = h * F.cosine_similarity(h, h.tanh(), dim=1).unsqueeze(1)",
    )))  # fmt: skip


@step(2, rare=True)
def attention(draft: Draft, random: Random) -> None:
    draft.run(random.choice(("h = torch.softmax(h @ h.mT, -1) @ h", "h = torch.bmm(h, h.transpose(1, 2)).tanh() @ h",
                             "h = torch.einsum('bij,bkj->bik', h, h).sigmoid() @ h",
                             "h = F.scaled_dot_product_attention(h, h, h)", "h = F.normalize(h, dim=-1) @ h.mT @ h",
                             "h = F.scaled_dot_product_attention(h, h, -h, is_causal=True)",
                             "h = h + torch.softmax(3 * h @ h.mT, -1) @ h.tanh()")))  # fmt: skip


@step(2, 3, weight=0.6, rare=True)
def contraction(draft: Draft, random: Random) -> None:
    """Products with constants along an axis."""
    *_, n, d = draft.shape
    k = random.choice((1, 2, 3))
    right, left = draft.keep(f"nn.Parameter(torch.randn({d}, {k}))"), draft.keep(f"torch.randn({k}, {n})")
    if random.random() < 0.6:
        draft.run(f"h = h @ {right}")
        draft.shape = (*draft.shape[:-1], k)
    else:
        draft.run(f"h = {left} @ h")
        draft.shape = (*draft.shape[:-2], k, d)
