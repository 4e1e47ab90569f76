"""`normal_form`: a ReLU form as what a proof is about: matrices, convolutions, and functions with one kink."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robust_plugins.errors import ArgumentError
from robust_plugins.intervals import rounding
from robust_plugins.intervals.interval import Interval
from robust_plugins.intervals.layers import Add, Choose, Constant, Contraction, Shift
from robust_plugins.intervals.methods.piecewise import piecewise_linear
from robust_plugins.intervals.network.graph import Network
from robust_plugins.intervals.rules.linear import padding
from robust_plugins.intervals.rules.structure import IDENTITIES, REARRANGING, REPEATING

SPREAD = 2.0**-48
"""More than what factors are off by, as a part of themselves, that the engine computes from others."""
EXACT = (*REARRANGING, *REPEATING, Add, Choose, Constant, Contraction, nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
NUMBERS = 2**28
"""Of one matrix, at most: beyond that a network is refused."""
SPARSE = 0.25

Arrays = dict[str, np.ndarray]


def normal_form(form: Network, shape: tuple[int, ...]) -> tuple[dict[str, Any], Arrays]:
    """The nodes of a ReLU form for an input of a `shape`, and their numbers, as a proof holds them.

    Node by node the same network, in float64; factors that the engine computes from the model's are given with a
    `spread` that covers their rounding. Raises ArgumentError, naming the layer, where that is not possible.
    """
    nodes: list[dict[str, Any]] = []
    arrays: Arrays = {}
    with torch.no_grad(), rounding.outward(False):
        values = [v.lower for v in form.forward(Interval.point(torch.zeros((1, *shape), dtype=torch.float64)))]
        for k, node in enumerate(form.nodes):
            about: dict[str, Any] = {"name": node.name, "size": prod(values[k].shape[1:]), "inputs": list(node.inputs)}
            about |= {"spread": 0.0, "bend": None, "maps": []}
            function = None if form.rules[k].affine or not k else piecewise_linear(form.layers[k])
            if function is not None:
                kink, change = function.kinks[0] if function.kinks else (0.0, 0.0)
                about["bend"] = [float(number) for number in (function.slope, function.value, kink, change)]
            elif k:
                about |= _affine(form, k, values, arrays)
            nodes.append(about)
    return {"nodes": nodes, "shape": list(shape)}, arrays


def _affine(form: Network, k: int, values: list[Tensor], arrays: Arrays) -> dict[str, Any]:
    layer, parameters, size = form.layers[k], form.parameters[k], prod(values[k].shape[1:])
    kind, inputs = form.rules[k].layer, [values[j] for j in form.nodes[k].inputs]
    given = {name: None if p is None else p.lower.detach() for name, p in parameters.items()}
    if kind in IDENTITIES or kind in (nn.Flatten, nn.Unflatten):
        return {"maps": [{"kind": "same"}]}
    if isinstance(layer, Shift):
        assert given["value"] is not None
        arrays[f"{k}.offset"] = _numbers((layer.sign * given["value"]).expand_as(values[k]))
        return {"maps": [_same(inputs[0], values[k], form, k, arrays)]}
    if kind is nn.Linear and inputs[0].dim() == 2:
        assert given["weight"] is not None
        arrays[f"{k}.0"] = given["weight"].numpy()
        if given["bias"] is not None:
            arrays[f"{k}.offset"] = _numbers(given["bias"])
        return {"maps": [{"kind": "dense"}]}
    if isinstance(layer, nn.Conv2d) and (about := _convolution(layer, given["weight"], inputs[0])) is not None:
        arrays[f"{k}.0"] = given["weight"].numpy()  # type: ignore[union-attr]
        if given["bias"] is not None:
            arrays[f"{k}.offset"] = _numbers(given["bias"].view(1, -1, 1, 1).expand_as(values[k]))
        return {"maps": [about]}
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        return _batch_norm(layer, given, inputs[0], k, arrays)
    return _any_affine(form, k, inputs, size, arrays)


def _same(x: Tensor, y: Tensor, form: Network, k: int, arrays: Arrays) -> dict[str, Any]:
    if x.shape == y.shape:
        return {"kind": "same"}
    at = torch.arange(x.numel()).view(x.shape).expand_as(y).flatten()
    return _sparse(f"{k}.0", torch.arange(len(at)), at, torch.ones(len(at), dtype=torch.float64), arrays)


def _convolution(layer: nn.Conv2d, weight: Tensor | None, x: Tensor) -> dict[str, Any] | None:
    assert weight is not None
    before, after = padding(layer, weight.shape)
    plain = layer.groups == 1 and tuple(layer.dilation) == (1, 1) and layer.padding_mode == "zeros" and x.dim() == 4
    if not plain or before != after:
        return None
    return {"kind": "convolution", "image": list(x.shape[1:]), "padding": before, "stride": list(layer.stride)}


def _batch_norm(
    layer: nn.modules.batchnorm._BatchNorm, given: dict[str, Tensor | None], x: Tensor, k: int, arrays: Arrays
) -> dict[str, Any]:
    assert layer.running_mean is not None  # it has bounds
    assert layer.running_var is not None
    factor, shift = torch.rsqrt(layer.running_var.double() + layer.eps), layer.running_mean.double()
    if given["weight"] is not None:
        factor = factor * given["weight"]
    offset, slack = -shift * factor, (shift * factor).abs()
    if given["bias"] is not None:
        offset, slack = offset + given["bias"], slack + given["bias"].abs()
    factor, offset, slack = (t.view(-1, *[1] * (x.dim() - 2)).expand(x.shape[1:]) for t in (factor, offset, slack))
    arrays[f"{k}.offset"], arrays[f"{k}.slack"] = _numbers(offset), SPREAD * _numbers(slack)
    at = torch.arange(x.numel())
    return {"maps": [_sparse(f"{k}.0", at, at, factor.flatten(), arrays)], "spread": SPREAD}


def _any_affine(form: Network, k: int, inputs: list[Tensor], size: int, arrays: Arrays) -> dict[str, Any]:
    """The matrices of a layer that is affine, by what it makes of the columns of the identity."""
    rule, layer, parameters = form.rules[k].forward, form.layers[k], form.parameters[k]
    assert rule is not None
    zeros = [torch.zeros_like(x) for x in inputs]
    offset = _of_points(rule, layer, zeros, parameters).flatten()
    # A bias is added to zeros above, exactly; to columns it would be added and taken away again.
    parameters = {name: None if name == "bias" else value for name, value in parameters.items()}
    constant = _of_points(rule, layer, zeros, parameters).flatten()
    maps, exact = [], form.rules[k].layer in EXACT
    for i, x in enumerate(inputs):
        rows, columns, values = [], [], []
        if x.numel() * size > NUMBERS:
            raise _refused(form, k, f"its matrix would have {x.numel()} times {size} entries")
        for part in torch.arange(x.numel()).split(max(1, 2**24 // max(1, size))):
            basis = torch.zeros((len(part), x.numel()), dtype=torch.float64)
            basis[torch.arange(len(part)), part] = 1
            given = [z.expand(len(part), *z.shape[1:]) for z in zeros]
            given[i] = basis.view(len(part), *x.shape[1:])
            moved = _of_points(rule, layer, given, parameters).reshape(len(part), size) - constant
            column, row = moved.nonzero(as_tuple=True)
            rows.append(row)
            columns.append(part[column])
            values.append(moved[column, row])
        row, column, value = torch.cat(rows), torch.cat(columns), torch.cat(values)
        if bool((constant[row] != 0).any()):
            raise _refused(form, k, "it adds a constant to what it multiplies")
        exact = exact or bool((value.abs() == 1).all())
        if len(value) == x.numel() == size and bool((value == 1).all()) and bool((row == column).all()):
            maps.append({"kind": "same"})
        elif len(value) > SPARSE * x.numel() * size:
            matrix = torch.zeros((size, x.numel()), dtype=torch.float64)
            matrix[row, column] = value
            arrays[f"{k}.{i}"] = matrix.numpy()
            maps.append({"kind": "dense"})
        else:
            maps.append(_sparse(f"{k}.{i}", row, column, value, arrays))
    if bool(offset.any()):
        arrays[f"{k}.offset"] = offset.numpy()
    return {"maps": maps, "spread": 0.0 if exact else SPREAD}


def _of_points(rule: Any, layer: nn.Module, inputs: list[Tensor], parameters: dict[str, Interval | None]) -> Tensor:
    found: Tensor = rule(layer, *map(Interval.point, inputs), **parameters).lower
    return found


def _sparse(name: str, rows: Tensor, columns: Tensor, values: Tensor, arrays: Arrays) -> dict[str, Any]:
    order = columns.argsort(stable=True)
    arrays[name] = values[order].numpy()
    arrays[f"{name}.rows"], arrays[f"{name}.columns"] = (t[order].int().numpy() for t in (rows, columns))
    return {"kind": "sparse"}


def _numbers(t: Tensor) -> np.ndarray:
    found: np.ndarray = t.flatten().double().numpy()
    return found


def _refused(form: Network, k: int, why: str) -> ArgumentError:
    name, layer = form.nodes[k].name, type(form.layers[k]).__name__
    return ArgumentError(
        "proof", f"asked for a network whose layer {name!r} ({layer}) no proof can hold: {why}",
        accepted="networks of affine and piecewise linear layers of moderate size", hint="Leave `proof` out.",
    )  # fmt: skip
