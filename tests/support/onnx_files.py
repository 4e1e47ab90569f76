"""Small ONNX files, written by hand, and the folder of published ones."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

SHARED = Path(__file__).resolve().parents[3] / "shared" / "vnncomp"


def published() -> Path:
    """The folder of the competition's files; skips the test where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the published verification benchmarks in {SHARED}")
    return SHARED


def write(
    path: Path,
    nodes: Sequence[Any],
    *,
    inputs: Mapping[str, Sequence[Any]],
    outputs: Sequence[str] = ("y",),
    constants: Mapping[str, Any] | None = None,
    opset: int = 17,
    dtype: int = TensorProto.FLOAT,
) -> Path:
    """Writes a file of these nodes; the shapes of outputs are left open."""
    graph = helper.make_graph(
        list(nodes),
        "small",
        [helper.make_tensor_value_info(name, dtype, list(shape)) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, dtype, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 8
    path.write_bytes(model.SerializeToString())
    return path


def sum_of_relus(folder: Path, properties: Mapping[str, str]) -> None:
    """Writes a network whose output over [-1, 1] x {0.1} is 1.1 at most, properties by name, and a list of them."""
    nodes = [helper.make_node("Relu", ["x"], ["h"]), helper.make_node("MatMul", ["h", "w"], ["y"])]
    write(folder / "net.onnx", nodes, inputs={"x": (1, 2)}, constants={"w": np.ones((2, 1), np.float32)})
    declared = "".join(f"(declare-const {v} Real)" for v in ("X_0", "X_1", "Y_0"))
    box = "(assert (and (>= X_0 -1) (<= X_0 1) (>= X_1 0.1) (<= X_1 0.1)))"
    for name, unsafe in properties.items():
        (folder / f"{name}.vnnlib").write_text(f"{declared}{box}\n(assert {unsafe})")
    (folder / "instances.csv").write_text("".join(f"net.onnx,{name}.vnnlib,30\n" for name in properties))


def floats(*shape: int, seed: int = 0, scale: float = 1.0) -> Any:
    """Normally distributed numbers of single precision."""
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def mlp(path: Path, widths: Sequence[int] = (3, 8, 2), *, seed: int = 0, batch: Any = 1, opset: int = 17) -> Path:
    """Writes a network of linear layers with ReLUs between them."""
    nodes, constants, last = [], {}, "x"
    for i, (a, b) in enumerate(itertools.pairwise(widths)):
        constants |= {f"w{i}": floats(a, b, seed=seed + i, scale=a**-0.5), f"b{i}": floats(b, seed=seed + 50 + i)}
        final = i == len(widths) - 2
        nodes += [helper.make_node("MatMul", [last, f"w{i}"], [f"m{i}"], name=f"matmul{i}")]
        nodes += [helper.make_node("Add", [f"m{i}", f"b{i}"], ["y" if final else f"a{i}"], name=f"add{i}")]
        nodes += [] if final else [helper.make_node("Relu", [f"a{i}"], [f"h{i}"], name=f"relu{i}")]
        last = f"h{i}"
    return write(path, nodes, inputs={"x": (batch, widths[0])}, constants=constants, opset=opset)


def read(path: Path) -> Any:
    """The file in the library's own form."""
    return onnx.load_model(path)
