"""The logits behind a final softmax: a monotone last layer changes no decision, and makes every bound looser."""

from __future__ import annotations

import operator
from collections.abc import Callable
from contextlib import suppress
from copy import copy
from typing import NamedTuple
from weakref import WeakSet

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, fx, nn

from robust_plugins.errors import ArgumentError
from robust_plugins.harness.written_sigmoid import before_written_sigmoid


class _Kind(NamedTuple):
    """The ways to write one last layer."""

    modules: tuple[type[nn.Module], ...]
    functions: tuple[Callable[..., Tensor], ...]
    methods: tuple[str, ...]


_SOFTMAX = _Kind(
    (nn.Softmax, nn.LogSoftmax),
    (torch.softmax, torch.log_softmax, F.softmax, F.log_softmax, torch.special.softmax, torch.special.log_softmax),
    ("softmax", "log_softmax"),
)
_SIGMOID = _Kind(
    (nn.Sigmoid,), (F.sigmoid, torch.sigmoid, torch.sigmoid_, torch.special.expit), ("sigmoid", "sigmoid_")
)
_SHAPING = ("squeeze", "flatten", "view", "reshape", "unsqueeze", "contiguous", "clone", operator.getitem)
_SHAPING_MODULES = (nn.Identity, nn.Flatten, nn.Unflatten)
"""May come after it: they move numbers, and change none. Whether all is well is seen by the values."""

Outputs = Float[Tensor, "batch *classes"]


def before_softmax(model: nn.Module, x: Float[Tensor, "batch *features"], out: Outputs) -> nn.Module | None:
    """The model without the softmax or log-softmax over the classes that it ends with; None where it has none.

    `out` are its outputs at `x`, of shape (batch, classes). It is found whether it is a module or a function, by its
    values first, so that other models pay for a look at these alone.
    """
    if not len(out):
        return None
    if bool((out >= 0).all()) and _near(out.sum(1), 1.0):
        return _without(model, x, _SOFTMAX, lambda z: z.softmax(1), out)
    if _near(out.logsumexp(1), 0.0):
        return _without(model, x, _SOFTMAX, lambda z: z.log_softmax(1), out)
    return None


def before_sigmoid(model: nn.Module, x: Float[Tensor, "batch *features"], out: Outputs) -> nn.Module | None:
    """The model without the sigmoid that it ends with, however that is written; None where it has none.

    `out` are its outputs at `x`: one for each sample, or one for each label.
    """
    if not len(out) or not bool(((out >= 0) & (out <= 1)).all()):
        return None
    found = _without(model, x, _SIGMOID, torch.sigmoid, out) or before_written_sigmoid(model, x, out)
    if found is not None:
        _cut.add(found)
    return found


def refuse_probabilities(model: nn.Module, x: Float[Tensor, "batch *features"], out: Outputs) -> None:
    """Raises ArgumentError where `out`, one number per sample or label, are probabilities whose logits nobody found.

    They count as such where they lie in [0, 1] and stay there at inputs however far away: read as logits they would
    decide for the class at every input, and be certified for it.
    """
    if not len(out) or not bool(((out >= 0) & (out <= 1)).all()):
        return
    generator = torch.Generator().manual_seed(0)
    for scale in (1.0, 1e2, 1e4):
        far = torch.randn(16, *x.shape[1:], generator=generator).to(x) * scale
        try:
            values = model(far)
        except Exception:  # it looks at its inputs, or takes one batch size alone: nobody can say
            return
        if not isinstance(values, Tensor) or not bool(((values >= 0) & (values <= 1)).all()):
            return
    raise ArgumentError(
        "model",
        "with outputs in [0, 1] at every input that was tried, and no sigmoid at its end that could be left out",
        accepted="a model that returns logits z, which decide for the class where z > 0",
        hint="Return the numbers before they become probabilities; numbers in [0, 1] that are logits all the same "
        "are taken as torch.cat((-z, z), 1) / 2.",
    )


def _near(values: Tensor, aim: float) -> bool:
    return bool(((values - aim).abs() <= 1e-4).all())


def _without(
    model: nn.Module, x: Tensor, kind: _Kind, last: Callable[[Tensor], Tensor], out: Tensor
) -> nn.Module | None:
    """The model before `last`, checked: `last` of what it returns must be `out`."""
    for cut in (_call_left_out, _module_left_out):
        with suppress(Exception):  # a model that cannot be cut is taken as it is
            found = cut(model, x, kind)
            if found is not None and torch.allclose(last(found(x.clone())), out, rtol=1e-4, atol=1e-6):
                _cut.add(found)
                return found
    return None


def is_cut(model: nn.Module) -> bool:
    """Whether a last layer was left out of this module, or of the module that it wraps."""
    return any(module in _cut for module in (model, *model.children()))


_cut: WeakSet[nn.Module] = WeakSet()


def _module_left_out(model: nn.Module, x: Tensor, kind: _Kind) -> nn.Module | None:
    """The model with the module whose result it returns replaced by the identity: for code that cannot be traced."""
    results: list[tuple[nn.Module, object]] = []
    hooks = [
        module.register_forward_hook(lambda module, args, result: results.append((module, result)))
        for module in model.modules()
        if isinstance(module, kind.modules)
    ]
    try:
        out = model(x[:1].clone()) if hooks else None
    finally:
        for hook in hooks:
            hook.remove()
    used = [module for module, result in results if result is out]
    if len(used) != 1 or sum(module is used[0] for module, _ in results) > 1:
        return None
    return _replaced(model, used[0], {})


def _replaced(module: nn.Module, old: nn.Module, done: dict[nn.Module, nn.Module]) -> nn.Module:
    """`module` with the identity in the place of `old`; its parents are shallow copies."""
    if module is old:
        return nn.Identity()
    if module not in done:
        children = {n: None if child is None else _replaced(child, old, done) for n, child in module._modules.items()}
        done[module] = module
        if any(module._modules[name] is not child for name, child in children.items()):
            done[module] = copy(module)
            done[module]._modules = children
    return done[module]


def _call_left_out(model: nn.Module, x: Tensor, kind: _Kind) -> nn.Module | None:
    """The traced graph of the model without the call whose result it returns."""
    root = copy(model)
    graph = fx.Tracer().trace(root)
    output = next(iter(reversed(graph.nodes)))

    def module(node: fx.Node) -> nn.Module | None:
        return root.get_submodule(str(node.target)) if node.op == "call_module" else None

    def shapes(node: fx.Node) -> bool:
        name = getattr(node.target, "__name__", None) if node.op == "call_function" else node.target
        return isinstance(module(node), _SHAPING_MODULES) or (
            node.op in ("call_function", "call_method") and (name in _SHAPING or node.target in _SHAPING)
        )

    final, behind = output.args[0], []
    while isinstance(final, fx.Node) and len(final.users) == 1 and shapes(final):
        behind.append(final)
        final = final.args[0] if final.args else None
    if not isinstance(final, fx.Node) or len(final.users) != 1:
        return None
    known = (
        isinstance(module(final), kind.modules)
        or (final.op == "call_function" and final.target in kind.functions)
        or (final.op == "call_method" and final.target in kind.methods)
    )
    source = final.args[0] if final.args else final.kwargs.get("input")
    if not known or not isinstance(source, fx.Node):
        return None
    final.replace_all_uses_with(source)
    graph.erase_node(final)
    for node in behind:
        if isinstance(module(node), nn.Identity):
            node.replace_all_uses_with(node.all_input_nodes[0])
            graph.erase_node(node)
    found = fx.GraphModule(root, graph)
    found.training = model.training  # its alone: the modules inside are the model's own
    return found
