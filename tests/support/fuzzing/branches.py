"""Steps in which a tensor is read twice: residual and dense blocks, products, quotients, shared layers, batches."""

from __future__ import annotations

from random import Random

from support.fuzzing.elementwise import function, module
from support.fuzzing.source import Draft, step


def same_shape(draft: Draft, random: Random) -> str:
    """A layer that keeps the shape, by name."""
    kinds = {1: "nn.Linear", 2: "nn.Conv1d", 3: "nn.Conv2d"}
    rank, channels = len(draft.shape), draft.shape[0]
    if rank == 1:
        return draft.layer(random, f"nn.Linear({channels}, {channels})")
    groups = random.choice([g for g in (1, 1, 2, channels) if channels % g == 0])
    size, dilation = random.choice(((1, 1), (3, 1), (3, 2)))
    pad = dilation * (size - 1) // 2
    code = f"{kinds[rank]}({channels}, {channels}, {size}, padding={pad}, dilation={dilation}, groups={groups})"
    return draft.layer(random, code)


@step(weight=2)
def residual(draft: Draft, random: Random) -> None:
    layer, f = same_shape(draft, random), function(random, "r")
    draft.run(f"r = {layer}({function(random, 'h') if random.random() < 0.5 else 'h'})")
    draft.run(random.choice((f"h = h + {f}", f"h = {f} - h", f"h = torch.add({f}, h)", f"h = {f}; h = h.add(r)")))


@step(weight=2)
def read_twice(draft: Draft, random: Random) -> None:
    """The first reader of `h` is not the only one."""
    f, g = function(random, "h"), function(random, "h")
    draft.run(
        random.choice(
            (
                "h = torch.relu(h) + torch.relu(-h)", "h = torch.relu(h) - torch.relu(-h)", "h = h * (-h)",
                "h = torch.addcmul(h, torch.relu(h), torch.tanh(h))", f"h = {f} + {g}", f"h = {f} - {g}",
                f"h = {f} * {g}",
                "h = h * h", "h = h * torch.sigmoid(h)", "h = torch.relu(h) * h", "h = h - 0.5 * h", "h = h + h",
            )
        )
    )  # fmt: skip


@step(weight=1.5)
def gate(draft: Draft, random: Random) -> None:
    layer = same_shape(draft, random)
    draft.run(
        random.choice(
            (
                f"h = h * torch.sigmoid({layer}(h))", f"h = {layer}(h).tanh() * torch.relu(h)",
                f"r = {layer}(h); h = r * h",
                f"h = torch.mul({layer}(h), h)", f"r = {layer}(h).relu(); h = r * r",
            )
        )
    )  # fmt: skip


@step(rare=True)
def quotient(draft: Draft, random: Random) -> None:
    layer = same_shape(draft, random)
    draft.run(
        random.choice(
            (
                f"h = h / (1.5 + torch.tanh({layer}(h)))", f"h = {layer}(h) / (1 + h * h)", "h = h / (1 + h.abs())",
                f"h = torch.maximum(h, {layer}(h))", f"h = torch.minimum({layer}(h), -h)",
                "h = h / h.norm(dim=1, keepdim=True)",
                f"h = torch.where(h > 0, {layer}(h), h)", "h = h / (1e-2 + h.abs().amax(1, keepdim=True))",
            )
        )
    )  # fmt: skip


@step(weight=1.5)
def dense(draft: Draft, random: Random) -> bool | None:
    if draft.size > 60:
        return False
    other = f"{same_shape(draft, random)}(h)" if random.random() < 0.5 else function(random, "h")
    call = random.choice(("torch.cat((h, {0}), 1)", "torch.cat([{0}, h], dim=1)", "torch.concat(({0}, {0}), 1)"))
    draft.run(f"h = {call.format(other)}")
    draft.shape = (2 * draft.shape[0], *draft.shape[1:])
    return None


@step(weight=1.5)
def shared(draft: Draft, random: Random) -> None:
    """A module that is used twice."""
    layer = same_shape(draft, random)
    if random.random() < 0.4:
        f = draft.keep(module(random))
        draft.run(f"h = {f}({layer}({f}({layer}(h))))")
    else:
        draft.run(
            random.choice(
                (
                    f"h = {layer}(torch.relu({layer}(h)))",
                    f"h = {layer}(h) + {layer}(h.tanh())",
                    f"h = {layer}({layer}(h))",
                )
            )
        )


@step()
def constants(draft: Draft, random: Random) -> None:
    """Parameters and buffers that forward itself combines."""
    ones = (draft.shape[0], *[1] * (len(draft.shape) - 1))
    c = draft.keep(f"nn.Parameter(torch.randn({ones}))")
    name = f"b{next(draft.names)}"
    draft.init.append(f"self.register_buffer('{name}', torch.randn({ones}), persistent={random.random() < 0.5})")
    draft.run(
        random.choice(
            (
                f"h = h * {c} + self.{name}", f"h = (h - self.{name}) / {c}.exp()", f"h = {c} - h",
                f"h = h + {c} * self.{name}", f"h = h.mul({c}).sub(self.{name})", f"h = h * {c}.sigmoid()",
            )
        )
    )  # fmt: skip


@step(weight=0.3)
def across_the_batch(draft: Draft, random: Random) -> None:
    draft.flags.add("batch")
    draft.run(
        random.choice(
            (
                "h = h - h.mean(0)", "h = torch.softmax(h, 0)", "h = h / len(h)", "h = h * h.shape[0]",
                "h = h / h.norm()", "h = h + h.flip(0)", "h = h.roll(1, 0)", "h = h + h.sum()",
                "h = h if h.sum() > 0 else -h",
                "h = F.normalize(h, dim=0)", "h = h - h.amax(0, keepdim=True)", "h = h.cumsum(0)",
            )
        )
    )  # fmt: skip


@step(weight=0.1)
def chance(draft: Draft, random: Random) -> None:
    draft.flags.add("chance")
    draft.run(random.choice(("h = h + torch.randn_like(h)", "h = F.dropout(h, 0.5)", "h = h * torch.rand(1).item()")))
