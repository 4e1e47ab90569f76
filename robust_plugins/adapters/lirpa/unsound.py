"""The layers that an installed auto_LiRPA is known to bound wrongly: they are refused, never passed on.

Found by sampling, corners and gradient ascent. Average pooling as a module is repaired where a model is copied, so
here it is met as a function call, or with a border that no convolution gives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from robust_plugins.adapters.lirpa.bounded import Bounded
from robust_plugins.adapters.lirpa.failures import layer, leaves
from robust_plugins.adapters.lirpa.graph import constants_meet_images, kind
from robust_plugins.errors import UnsupportedModelError


class _Wrong(NamedTuple):
    what: str
    legacy: bool | None
    """Whether the releases before 0.4 are meant, or those since; None for all."""
    methods: frozenset[str]
    found: Callable[[Any], bool]
    """Tells the graph's nodes that are bounded wrongly."""
    modules: tuple[type[nn.Module], ...]
    """Layers that become such nodes."""


_LINEAR = frozenset({"CROWN-IBP", "CROWN", "alpha-CROWN"})
_ALL = _LINEAR | {"IBP"}
_AVERAGES = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)


def _not_tiled(node: Any) -> bool:
    """Whether a pooling does more than cut its input into tiles."""
    if kind(node) != "BoundAveragePool":
        return False
    kernel, image = list(node.kernel_size), node.input_shape[2:]
    rest = [n % k for n, k in zip(image, kernel, strict=True)]
    return kernel != list(node.stride) or any(node.padding) or any(rest)


def _ignores_padding(node: Any) -> bool:
    return kind(node) == "BoundAveragePool" and any(node.padding) and not node.attr.get("count_include_pad", 0)


def _product_with_itself(node: Any) -> bool:
    return kind(node) == "BoundMul" and node.inputs[0] is node.inputs[1]


def _slope(node: Any) -> float:
    """The slope below zero; of all that is no leaky ReLU, one that does no harm."""
    return float(node.attr.get("alpha", 0.01)) if kind(node) == "BoundLeakyRelu" else 0.0


def _scaled_product(node: Any) -> bool:
    """Whether the factors of alpha * (A @ B) + beta * C are other than 1: intervals are not swapped by their signs."""
    return kind(node) == "BoundLinear" and any((node.attr or {}).get(key, 1) != 1 for key in ("alpha", "beta"))


def _picks_twice(node: Any) -> bool:
    """Whether an index is repeated: the backward pass overwrites where it should add."""
    if kind(node) == "BoundGather" and isinstance(node.indices, Tensor):
        return len(node.indices.unique()) < node.indices.numel()
    if kind(node) == "BoundGatherElements" and isinstance(node.index, Tensor):
        picked = node.index.sort(node.axis).values.movedim(node.axis, 0)
        return bool((picked[1:] == picked[:-1]).any())
    return False


def _exponent(node: Any) -> Tensor | None:
    """The exponent of a power; None where it is no constant."""
    exponent: Any = node.inputs[1]
    while kind(exponent) == "BoundCast":
        exponent = exponent.inputs[0]
    return torch.as_tensor(exponent.forward()) if kind(exponent) == "BoundConstant" else None


def _falling_power(node: Any) -> bool:
    """Whether an exponent is negative, or may become so: the bounds are then swapped, or span a pole."""
    if kind(node) != "BoundPow":
        return False
    exponent = _exponent(node)
    return exponent is None or bool((exponent < 0).any())


def _even_power(node: Any) -> bool:
    """Whether a power is other than an odd one: the lower line, a tangent from a table, crosses the curve."""
    if kind(node) != "BoundPow":
        return False
    exponent = _exponent(node)
    return exponent is None or bool((exponent % 2 != 1).any())


def _repeats(node: Any) -> bool:
    """Whether a repeat goes over an axis longer than 1: coefficients are then given back in the wrong order."""
    if kind(node) != "BoundTile":
        return False
    before, after = list(node.inputs[0].output_shape), list(node.output_shape)
    return len(before) != len(after) or any(a != b and b > 1 for a, b in zip(after, before, strict=True))


def _grouped(node: Any) -> bool:
    return kind(node) in ("BoundConv", "BoundConvTranspose") and node.groups != 1


_KNOWN = (
    _Wrong("a slope above 1 below zero", None, _LINEAR, lambda n: _slope(n) > 1, (nn.LeakyReLU, nn.RReLU)),
    _Wrong("a negative slope below zero", None, _ALL, lambda n: _slope(n) < 0, (nn.LeakyReLU, nn.RReLU)),
    _Wrong("a matrix product with factors, as in torch.addmm", None, _ALL, _scaled_product, ()),
    _Wrong("a repeated index", None, _LINEAR, _picks_twice, ()),
    _Wrong("a power with a negative or variable exponent", None, _ALL, _falling_power, ()),
    _Wrong("average pooling with padding or overlapping windows", True, _LINEAR, _not_tiled, _AVERAGES),
    _Wrong("a square root", True, _LINEAR, lambda n: kind(n) == "BoundSqrt", (nn.LayerNorm, nn.GroupNorm)),
    _Wrong("average pooling that does not count its padding", False, _ALL, _ignores_padding, _AVERAGES),
    # Seen in 0.7; 0.3 has the same code, and fails on most models with it.
    *(
        _Wrong("max pooling", old, frozenset({"alpha-CROWN"}), lambda n: kind(n) == "BoundMaxPool", (nn.MaxPool2d,))
        for old in (False, True)
    ),
    _Wrong("a repeat over an axis longer than 1", False, _LINEAR, _repeats, ()),
    _Wrong("a power whose exponent is not odd", False, _LINEAR, _even_power, ()),
    _Wrong("the product of a value with itself", False, _LINEAR, _product_with_itself, ()),
)


def refuse_unsound(converted: Bounded, model: nn.Module, method: str, *, patches: bool) -> None:
    """Raises UnsupportedModelError, naming the layer, where `method` would return wrong bounds.

    `patches` says that convolutions are bounded as patches.
    """
    legacy = converted.backend.legacy
    for wrong in _KNOWN:
        concerned = wrong.legacy in (None, legacy) and method in wrong.methods
        if concerned and any(map(wrong.found, converted.module.children())):
            named = [layer(name, module) for name, module in leaves(model) if isinstance(module, wrong.modules)]
            where = " or ".join(named) or f"{wrong.what} in {type(model).__name__}"
            version = ".".join(map(str, converted.backend.version))
            raise UnsupportedModelError(
                f"{where}: auto_LiRPA {version} is unsound there with {method} ({wrong.what}), so it is refused"
            )
    if patches and any(map(_grouped, converted.module.children())):
        raise UnsupportedModelError(
            f"{type(model).__name__}: a grouped convolution, which auto_LiRPA bounds wrongly in its patches mode"
        )
    if legacy and patches and constants_meet_images(converted.module):
        raise UnsupportedModelError(
            f"{type(model).__name__}: a constant is added to or multiplied with an image, "
            "which auto_LiRPA 0.3 cannot do in its patches mode"
        )
