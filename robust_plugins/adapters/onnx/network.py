"""`OnnxNetwork`: an ONNX file as a torch module that was compared with onnxruntime."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from robust_plugins.adapters.onnx.files import read_model
from robust_plugins.adapters.onnx.importer import Port, ports, translated
from robust_plugins.adapters.onnx.reference import Session, compare
from robust_plugins.errors import ArgumentError


@dataclass(frozen=True, eq=False)
class OnnxNetwork:
    """A file, read."""

    path: Path
    model: nn.Module
    """In evaluation mode: `(batch, *input_shape)` to `(batch, *output_shape)`."""
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    inputs: tuple[Port, ...]
    session: Session
    """The file itself, in onnxruntime."""

    @property
    def dtype(self) -> torch.dtype:
        """The type of inputs and outputs."""
        return self.inputs[0].dtype


def read_network(path: str | Path) -> OnnxNetwork:
    """The network in an ONNX file, plain or gzipped, imported and compared with onnxruntime on random inputs.

    Raises ArgumentError for files that hold no network or one that has no translation, ComponentError where the import
    computes something else than onnxruntime, PluginError where onnx or onnxruntime is not installed.
    """
    path = Path(path)
    proto = read_model(path)
    inputs = ports(path, proto)
    model = translated(path, proto, inputs)
    session = Session(path, proto, inputs)
    if len(inputs) > 1:
        shape: tuple[int, ...] = (sum(math.prod(port.shape) for port in inputs),)
    else:
        (whole,) = (port.shape for port in inputs)
        shape = whole[1:] if len(whole) > 1 and whole[0] == 1 else whole
    compare(session, model, shape)
    with torch.no_grad():
        output_shape = tuple(model(torch.zeros(1, *shape, dtype=inputs[0].dtype)).shape[1:])
    return OnnxNetwork(path, model, shape, output_shape, tuple(inputs), session)


def read_classifier(path: str | Path, input_shape: Sequence[int] | None, classes: int | None) -> nn.Module:
    """The model in an ONNX file, for inputs of `input_shape`, with one output for each of `classes` classes.

    Where the file has the same sides in the same order, but for sides of one or as one flat vector, samples are
    reshaped. None leaves it to the file. Raises ArgumentError where file and arguments do not fit together.
    """
    network = read_network(path)
    model = network.model
    if classes is not None and math.prod(network.output_shape) != classes:
        raise ArgumentError(
            "classes", f"{classes}, and the outputs of {str(path)!r} have the shape {network.output_shape}",
            accepted="the number of the network's outputs", hint="Use the data set that the network is for.",
        )  # fmt: skip
    layers: list[nn.Module] = [model]
    if input_shape is not None and tuple(input_shape) != network.input_shape:
        wanted, given = ([n for n in shape if n != 1] for shape in (network.input_shape, input_shape))
        if wanted != given and not (len(wanted) < 2 and math.prod(wanted) == math.prod(given)):
            raise ArgumentError(
                "input_shape", f"{tuple(input_shape)}, and {str(path)!r} takes inputs of shape {network.input_shape}",
                accepted="the shape of the file's inputs, with or without sides of one, or flat there",
                hint="Use the data set that the network is for, its channels where the network has them.",
            )  # fmt: skip
        layers = [nn.Flatten(), model] if len(network.input_shape) == 1 else [nn.Flatten(), _unflatten(network), model]
    if len(network.output_shape) > 1 and classes is not None:
        layers.append(nn.Flatten())
    return nn.Sequential(*layers).eval() if len(layers) > 1 else model


def _unflatten(network: OnnxNetwork) -> nn.Module:
    return nn.Unflatten(1, network.input_shape)
