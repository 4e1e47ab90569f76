"""Matrix products and convolutions become linear and convolutional layers where one factor is fixed."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, nn

from robust_plugins.adapters.onnx.operators.windows import padded, spatial
from robust_plugins.adapters.onnx.translation import Call, Translation, TranslationError, Value, translates


@translates("Gemm")
def _gemm(t: Translation, call: Call) -> Value:
    """`alpha * A' B' + beta * C`."""
    a, b = (_turned(t, call, i, name) for i, name in enumerate(("transA", "transB")))
    alpha, beta = float(call.get("alpha", 1.0)), float(call.get("beta", 1.0))
    c = call.inputs[2] if len(call.inputs) > 2 else None
    if isinstance(a, Value) and not isinstance(b, Value):
        bias = beta * c if isinstance(c, Tensor) and _is_row(c, b.shape[1]) else None
        product = linear(t, a, alpha * b, bias)
        if c is None or bias is not None:
            return product
    else:
        product = matrix_product(t, a, b)
        if alpha != 1.0:
            product = t.binary(operator.mul, product, torch.tensor(alpha))
        if c is None:
            return product
    if beta != 1.0:
        c = beta * c if isinstance(c, Tensor) else t.binary(operator.mul, c, torch.tensor(beta))
    return t.binary(operator.add, product, c)


def _turned(t: Translation, call: Call, index: int, flag: str) -> Value | Tensor:
    factor = call.inputs[index]
    if factor is None or len(factor.shape) != 2:
        raise TranslationError("its factors must be matrices")
    if not call.get(flag, 0):
        return factor
    return transposed(t, factor) if isinstance(factor, Value) else factor.t()


@translates("MatMul")
def _matmul(t: Translation, call: Call) -> Value:
    a, b = call.inputs
    if a is None or b is None:
        raise TranslationError("it has one factor only")
    return matrix_product(t, a, b)


def matrix_product(t: Translation, a: Value | Tensor, b: Value | Tensor) -> Value:
    """`a @ b`, at least one of which depends on the input."""
    if isinstance(a, Value) and isinstance(b, Tensor) and b.dim() == 2:
        return linear(t, a, b, None)
    if isinstance(a, Tensor) and isinstance(b, Value) and a.dim() == 2 and len(b.shape) < 3:
        if len(b.shape) == 1:
            return linear(t, b, a.t(), None)
        return transposed(t, linear(t, transposed(t, b), a.t(), None))
    shapes = [tuple(v.shape) for v in (a, b)]
    if any(len(shape) < 2 for shape in shapes):
        raise TranslationError(f"products of shapes {shapes[0]} and {shapes[1]} are not supported")
    try:
        batch = torch.broadcast_shapes(shapes[0][:-2], shapes[1][:-2])
    except RuntimeError:
        raise TranslationError(f"shapes {shapes[0]} and {shapes[1]} do not fit together") from None
    if shapes[0][-1] != shapes[1][-2]:
        raise TranslationError(f"shapes {shapes[0]} and {shapes[1]} do not fit together")
    shape = (*batch, shapes[0][-2], shapes[1][-1])
    values = [v for v in (a, b) if isinstance(v, Value)]
    leading = (
        len(shape) > 2
        and all(not v.lifted and len(v.shape) == len(shape) for v in values)
        and all(v.dim() < len(shape) or v.shape[0] == 1 for v in (a, b) if isinstance(v, Tensor))
    )
    args = [t.operand(v, len(shape), leading=leading) for v in (a, b)]
    return Value(t.graph.call_function(torch.matmul, tuple(args)), shape, not leading)


def linear(t: Translation, x: Value, weight: Tensor, bias: Tensor | None) -> Value:
    """`x @ weight + bias` as a layer."""
    features, outputs = weight.shape
    if not x.shape or x.shape[-1] != features:
        raise TranslationError(f"shapes {x.shape} and {tuple(weight.shape)} do not fit together")
    if not x.sample:
        x = t.lift(x)
    layer = nn.Linear(features, outputs, bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.t().contiguous())
    if bias is not None:
        layer.bias = nn.Parameter(bias.reshape(-1).expand(outputs).clone())
    return t.layer(layer, x, (*x.shape[:-1], outputs))


def add_bias(t: Translation, call: Call) -> Value | None:
    """The sum as the bias of the linear layer before, where it is one; else None."""
    value, other = call.inputs
    if not isinstance(value, Value) or not isinstance(other, Tensor) or value.node.op != "call_module":
        return None
    layer = t.root.get_submodule(str(value.node.target))
    if not call.alone or not isinstance(layer, nn.Linear) or layer.bias is not None:
        return None
    if not _is_row(other, layer.out_features) or other.dim() > len(value.shape):
        return None
    layer.bias = nn.Parameter(other.reshape(-1).expand(layer.out_features).clone())
    return value


def _is_row(constant: Tensor, features: int) -> bool:
    return constant.numel() in (1, features) and (constant.dim() == 0 or constant.shape[-1] == constant.numel())


def transposed(t: Translation, x: Value) -> Value:
    """A matrix with its two axes exchanged."""
    x = t.lift(x)
    return t.method("permute", x, 0, 2, 1, shape=(x.shape[1], x.shape[0]))


@translates("Conv", "ConvTranspose")
def _convolution(t: Translation, call: Call) -> Value:
    x, weight, bias = t.lead(call.value()), call.constant(1), call.optional(2)
    rank, backward = weight.dim() - 2, call.operator == "ConvTranspose"
    if rank not in (1, 2, 3) or len(x.shape) != weight.dim():
        raise TranslationError(f"an input of shape {x.shape} and a kernel of shape {tuple(weight.shape)}")
    kernel, window = tuple(weight.shape[2:]), spatial(call, tuple(weight.shape[2:]), x.shape[2:])
    groups = int(call.get("group", 1))
    begin, end = window.pads[:rank], window.pads[rank:]
    options: dict[str, Any] = {}
    if backward:
        if "output_shape" in call.attributes or begin != end:
            raise TranslationError("output_shape and different padding at the two ends are not supported")
        options["output_padding"] = tuple(call.get("output_padding", (0,) * rank))
        channels = weight.shape[0], weight.shape[1] * groups
        kind: Any = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[rank - 1]
    else:
        channels = weight.shape[1] * groups, weight.shape[0]
        kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
    if channels[0] != x.shape[1]:
        raise TranslationError(f"an input of shape {x.shape} and a kernel of shape {tuple(weight.shape)}")
    if begin != end:
        x, begin = padded(t, x, window.pads, 0.0), (0,) * rank
    layer = kind(
        *channels, kernel, window.strides, begin, dilation=window.dilations, groups=groups, bias=bias is not None,
        device="meta", **options,
    )  # fmt: skip
    layer.weight = nn.Parameter(weight.clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.clone())
    with torch.no_grad():
        return t.layer(layer, x, tuple(layer(torch.zeros(x.shape, dtype=weight.dtype)).shape))
