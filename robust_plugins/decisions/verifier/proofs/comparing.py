"""`compare_network`: whether the network that a proof is about is a user's model."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robust_plugins.decisions.verifier.proofs.normal_form import normal_form
from robust_plugins.decisions.verifier.relu_form import relu_form
from robust_plugins.errors import ComponentError
from robust_plugins.harness.arguments import decided
from robust_plugins.harness.call import calling
from robust_plugins.intervals import Interval, trace
from robust_plugins.proof_check.reading import Node, ProofError, Record

POINTS = 8
TOLERANCE = 1e-4
"""Of outputs, as a part of the largest: a model computes in float32."""


def compare_network(record: Record, nodes: list[Node], model: nn.Module) -> None:
    """Raises ProofError, saying where, if the network of a record is another one than the model in evaluation mode.

    Layers, weights and offsets have to be equal in float64, but for the last bits of factors that the engine computes
    from a model's numbers. Both are run on random inputs besides. A model of one output stands for two logits, and
    one that ends with a softmax for those before it, as certifiers read it; or for its outputs as they are.
    """
    shape = record.about.get("shape")
    if not isinstance(shape, list) or np.prod(shape, dtype=object) != nodes[0].size:
        raise ProofError("the network does not say the shape of its inputs")
    dtype = next((p.dtype for p in model.parameters()), torch.get_default_dtype())
    x = torch.rand((POINTS, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    with torch.no_grad(), calling(model, x) as call:
        logits_model, logits = decided(call.model, x.clone())
        found = _difference(record, _form(logits_model, x))
        if found:
            other = _difference(record, _form(call.model, x))
            found, logits = (found, logits) if other else (other, call.model(x.clone()))
    if found:
        raise ProofError(f"the model is another network: {found}")
    outputs = np.stack([evaluated(nodes, one.double().flatten().numpy())[-1] for one in x])
    if not np.allclose(outputs, logits.double().numpy(), rtol=0, atol=TOLERANCE * (1e-30 + np.abs(outputs).max())):
        raise ComponentError("the network of the proof has the model's layers and weights, but not its outputs")


def evaluated(nodes: list[Node], x: np.ndarray) -> list[np.ndarray]:
    """The outputs of all nodes of a network of a proof; the last one is its own."""
    values = [x]
    for node in nodes[1:]:
        if node.bend is not None:
            slope, value, kink, change = node.bend
            z = values[node.inputs[0]]
            values.append(slope * z + value + change * np.maximum(z - kink, 0))
        else:
            values.append(node.offset + sum(m.forward(values[j]) for m, j in zip(node.maps, node.inputs, strict=True)))
    return values


def _form(model: nn.Module, x: Tensor) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    network = trace(model, x)
    shapes = [tuple(v.shape[1:]) for v in network.forward(Interval.point(x[:1]))]
    return normal_form(relu_form(network, shapes), tuple(x.shape[1:]))


def _difference(record: Record, made: tuple[dict[str, Any], dict[str, np.ndarray]]) -> str:
    """Where a record and a network differ, in words; empty for nowhere."""
    about, arrays = made
    theirs, ours = record.about["nodes"], about["nodes"]
    if len(theirs) != len(ours):
        return f"it has {len(ours)} steps, that of the proof {len(theirs)}"
    for k, (one, two) in enumerate(zip(theirs, ours, strict=True)):
        if {n: v for n, v in one.items() if n != "name"} != {n: v for n, v in two.items() if n != "name"}:
            return f"step {k} of the proof ({one.get('name')}) is not its layer {two['name']!r}"
    if record.arrays.keys() != arrays.keys():
        return "some of its layers have biases, or entries, that those of the proof do not have"
    for name, array in arrays.items():
        k, given = int(name.split(".")[0]), record.arrays[name]
        if given.shape != array.shape or given.dtype != array.dtype:
            return f"layer {ours[k]['name']!r} has numbers of another shape"
        room = 4 * ours[k]["spread"] * np.abs(array) if array.dtype.kind == "f" else 0
        if not (np.abs(given.astype(np.float64) - array) <= room).all():
            return f"layer {ours[k]['name']!r} has other numbers, by up to {np.abs(given - array).max():.3g}"
    return ""
