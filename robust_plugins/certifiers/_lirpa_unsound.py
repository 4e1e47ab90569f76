"""The layers that an installed auto_LiRPA is known to bound wrongly: they are refused, never passed on.

Found by sampling, corners and gradient ascent. Average pooling as a module is repaired where a model is copied, so
here it is met as a function call, or with a border that no convolution gives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from robust_plugins.certifiers._lirpa_bounded import Bounded
from robust_plugins.certifiers._lirpa_graph import constants_meet_images, kind
from robust_plugins.certifiers._lirpa_support import layer, leaves
from robust_plugins.errors import UnsupportedModelError


class _Wrong(NamedTuple):
    what: str
    legacy: bool
    """Whether the releases before 0.4 are meant, or those since."""
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


def _square(node: Any) -> bool:
    return kind(node) in ("BoundSqr", "BoundPow") or (kind(node) == "BoundMul" and node.inputs[0] is node.inputs[1])


_KNOWN = (
    _Wrong("average pooling with padding or overlapping windows", True, _LINEAR, _not_tiled, _AVERAGES),
    _Wrong("a square root", True, _LINEAR, lambda n: kind(n) == "BoundSqrt", (nn.LayerNorm, nn.GroupNorm)),
    _Wrong("average pooling that does not count its padding", False, _ALL, _ignores_padding, _AVERAGES),
    # Seen in 0.7; 0.3 has the same code, and fails on most models with it.
    *(
        _Wrong("max pooling", old, frozenset({"alpha-CROWN"}), lambda n: kind(n) == "BoundMaxPool", (nn.MaxPool2d,))
        for old in (False, True)
    ),
    _Wrong("the square of an activation", False, _LINEAR, _square, ()),
)


def refuse_unsound(converted: Bounded, model: nn.Module, method: str, *, patches: bool) -> None:
    """Raises UnsupportedModelError, naming the layer, where `method` would return wrong bounds.

    `patches` says that convolutions are bounded as patches.
    """
    legacy = converted.backend.legacy
    for wrong in _KNOWN:
        if wrong.legacy == legacy and method in wrong.methods and any(map(wrong.found, converted.module.children())):
            named = [layer(name, module) for name, module in leaves(model) if isinstance(module, wrong.modules)]
            where = " or ".join(named) or f"{wrong.what} in {type(model).__name__}"
            version = ".".join(map(str, converted.backend.version))
            raise UnsupportedModelError(
                f"{where}: auto_LiRPA {version} is unsound there with {method} ({wrong.what}), so it is refused"
            )
    if legacy and patches and constants_meet_images(converted.module):
        raise UnsupportedModelError(
            f"{type(model).__name__}: a constant is added to or multiplied with an image, "
            "which auto_LiRPA 0.3 cannot do in its patches mode"
        )
