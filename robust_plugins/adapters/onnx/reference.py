"""onnxruntime as the judge: it runs the file itself, and what was imported is compared with it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from robust_plugins.adapters.onnx.backend import library
from robust_plugins.adapters.onnx.importer import Port
from robust_plugins.errors import ArgumentError, ComponentError


class Session:
    """A file in onnxruntime, on one thread, for one sample at a time."""

    def __init__(self, path: Path, model: Any, inputs: list[Port]) -> None:
        runtime = library("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        try:
            self._session = runtime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime has a class for each kind of failure, with no common one
            raise _refused(path, error) from error
        self.path, self.inputs = path, inputs
        self.outputs = [port.name for port in model.graph.output]

    def __call__(self, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The outputs for one sample, flattened and joined in the file's order, as its inputs are in `x`."""
        feed, start = {}, 0
        for port in self.inputs:
            size = int(np.prod(port.shape))
            kind = np.float32 if port.dtype is torch.float32 else np.float64
            feed[port.name] = x.reshape(-1)[start : start + size].reshape(port.shape).astype(kind)
            start += size
        try:
            found = self._session.run(self.outputs, feed)
        except Exception as error:
            raise _refused(self.path, error) from error
        return np.concatenate([np.asarray(part).reshape(-1) for part in found])


def compare(session: Session, module: nn.Module, shape: tuple[int, ...], *, seed: int = 0) -> None:
    """Raises ComponentError unless `module` computes what onnxruntime computes, on random inputs of several sizes.

    Both round, differently: the difference may be 1e-5 of the largest output, and what the module's own result in
    single precision is away from that in double, eight times.
    """
    generator = torch.Generator().manual_seed(seed)
    dtype = session.inputs[0].dtype
    uniform = torch.rand((3, *shape), generator=generator, dtype=dtype)
    normal = torch.randn((4, *shape), generator=generator, dtype=dtype)
    normal[-1] *= 10
    x = torch.cat([uniform, normal])
    with torch.no_grad():
        try:
            ours = module(x).flatten(1).double()
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            raise _mismatch(session.path, f"the import fails on inputs of shape {shape}: {error}") from error
        exact = copy.deepcopy(module).double()(x.double()).flatten(1)
    theirs = torch.from_numpy(np.stack([session(sample.numpy()) for sample in x])).double()
    if theirs.shape != ours.shape:
        raise _mismatch(session.path, f"{ours.shape[1]} outputs were imported, and the file has {theirs.shape[1]}")
    worst = _excess(ours, theirs, exact if dtype is torch.float32 else ours)
    if worst > 0:
        raise _mismatch(session.path, f"the outputs differ, by up to {float((ours - theirs).abs().max()):.3g}")


def _excess(ours: Tensor, theirs: Tensor, exact: Tensor) -> float:
    allowed = 1e-5 * theirs.abs().amax(1, keepdim=True) + 8 * (ours - exact).abs() + 1e-30
    differs = (ours - theirs).abs() - allowed
    same = (ours == theirs) | (ours.isnan() & theirs.isnan())  # infinite, or not a number, in both
    return float(torch.where(same, torch.full_like(differs, -1.0), differs.nan_to_num(nan=torch.inf)).max())


def _mismatch(path: Path, found: str) -> ComponentError:
    return ComponentError(
        f"{str(path)!r} was imported, but does not compute what onnxruntime computes: {found}. Please report the file; "
        "until it is mended, nothing that is found for the import would hold for the file."
    )


def _refused(path: Path, error: Exception) -> ArgumentError:
    cause = (str(error) or type(error).__name__).strip().splitlines()[0]
    return ArgumentError(
        "file", f"{str(path)!r}: refused by onnxruntime ({cause})", accepted="a valid ONNX model",
        hint="Check it with onnx.checker, or export it again.",
    )  # fmt: skip
