"""Steps that keep something in the model: hooks, parametrisations, buffers and attributes that forward writes."""

from __future__ import annotations

from random import Random

from support.fuzzing.branches import same_shape
from support.fuzzing.elementwise import function
from support.fuzzing.source import Draft, step


@step(weight=0.8)
def parametrised(draft: Draft, random: Random) -> None:
    layer = same_shape(draft, random)
    choices = ["nn.utils.parametrizations.weight_norm({0})", "nn.utils.parametrizations.spectral_norm({0})",
               "nn.utils.weight_norm({0})", "nn.utils.spectral_norm({0})"]  # fmt: skip
    if len(draft.shape) == 1:
        choices.append("nn.utils.parametrizations.orthogonal({0})")
    code = random.choice(choices).format(layer)
    if "parametrizations" not in code:
        draft.flags.add("writes")  # what a hook computes before each call is an attribute
    if code.startswith("nn.utils.weight"):
        draft.init.append("import warnings")
        draft.init.append(f"with warnings.catch_warnings(): warnings.simplefilter('ignore'); {code}")
    else:
        draft.init.append(code)
    draft.run(f"h = {layer}(h)")


@step(weight=0.8)
def hooked(draft: Draft, random: Random) -> None:
    layer = same_shape(draft, random)
    draft.init.append(
        random.choice(
            (
                f"{layer}.register_forward_hook(lambda m, i, o: 2 * o - 0.1)",
                f"{layer}.register_forward_hook(lambda m, i, o: o.relu())",
                f"{layer}.register_forward_pre_hook(lambda m, i: (i[0] * 0.5,))",
                f"{layer}.register_forward_pre_hook(lambda m, i: (i[0].tanh(), *i[1:]))",
                f"{layer}.register_forward_hook(lambda m, i, o: None)",
                f"{layer}.register_forward_hook(lambda m, i, o: o + i[0])",
            )
        )
    )
    draft.run(f"h = {layer}(h)")


@step(weight=0.8)
def remembering(draft: Draft, random: Random) -> None:
    """Forward writes into the model; nothing that it writes changes what it returns."""
    draft.flags.add("writes")
    ones = f"{draft.shape[0]}" + ", 1" * (len(draft.shape) - 1)
    over = (0, *range(2, len(draft.shape) + 1))
    name = f"b{next(draft.names)}"
    kept = draft.keep("[]")
    table = draft.keep("{}")
    calls = draft.keep("0")
    draft.init.append(f"self.register_buffer('{name}', torch.zeros({ones}))")
    mean = f"h.detach().mean({over}, keepdim=True)[0]"
    draft.run(
        random.choice(
            (
                f"self.{name} = 0.9 * self.{name} + 0.1 * {mean}", f"self.{name}.mul_(0.9).add_(0.1 * {mean})",
                f"self.{name} = {mean}", f"{calls} += 1", f"{kept}.append(h)", f"{table}['h'] = h", "self.last = h",
                f"self.{name}.copy_({mean})", f"{kept}[:] = [h.mean()]", f"self.register_buffer('{name}', {mean})",
            )
        )
    )  # fmt: skip


@step(weight=0.8)
def dropped(draft: Draft, random: Random) -> None:
    layer = draft.keep(random.choice(("nn.Dropout(0.5)", "nn.Dropout(0.3, inplace=True)", "nn.AlphaDropout(0.2)")))
    draft.run(random.choice((f"h = {layer}(h)", f"h = {layer}(h)", "h = F.dropout(h, 0.5, self.training)")))


@step(weight=0.8)
def looked_up(draft: Draft, random: Random) -> None:
    """What forward does is read from attributes, lists, dictionaries and closures."""
    table = draft.keep(f"{{'scale': {random.choice((0.3, 2.0))}, 'shifts': [0.1, {random.choice((-0.4, 0.7))}]}}")
    call = draft.keep(f"lambda h: {function(random, 'h')}")
    flag = draft.keep(str(random.random() < 0.5))
    draft.run(
        random.choice(
            (
                f"h = h * {table}['scale'] + {table}['shifts'][1]", f"h = {call}(h)",
                f"h = torch.relu(h) if {flag} else -h",
                f"for shift in {table}['shifts']: h = torch.tanh(h + shift)", "h = h * 2 if h.dim() == 2 else h * 0.5",
                f"h = (h + {draft.shape[0]}) / h.shape[1]", "h = -h if self.training else h",
            )
        )
    )  # fmt: skip


@step(weight=0.8)
def contained(draft: Draft, random: Random) -> None:
    layers = [same_shape(draft, random) for _ in range(2)]
    if random.random() < 0.5:
        block = draft.keep(f"nn.Sequential({layers[0]}, nn.ReLU(inplace=True), {layers[1]})")
        draft.run(f"h = {block}(h)")
    else:
        block = draft.keep(f"nn.ModuleList([{layers[0]}, {layers[1]}])")
        draft.run(f"for layer in {block}: h = layer(h).relu()")
