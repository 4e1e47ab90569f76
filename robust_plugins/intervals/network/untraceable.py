"""Why a model cannot be traced, and what to do: a message for each kind of failure."""

from __future__ import annotations

import inspect
import traceback

import torch
from torch import nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from robust_plugins.errors import UnsupportedModelError
from robust_plugins.intervals.network.fingerprint import called_otherwise
from robust_plugins.intervals.network.symbolic import BatchSizeError, DataError, Tracer

HARMLESS = ("torch.utils._device", "torch.utils.flop_counter")
"""Where the modes are from that change no values: a default device, and the counter of operations."""


def check_traceable(model: nn.Module) -> None:
    """Raises UnsupportedModelError, with what to do, for models that are known beforehand not to be traceable."""
    for name, module in model.named_modules():
        place = f"{name or 'the model'} ({type(module).__name__})"
        if isinstance(module, torch.jit.ScriptModule):
            raise UnsupportedModelError(
                f"{place} is TorchScript, which cannot be traced; pass the module that it was made from"
            )
        if "quantized" in type(module).__module__:
            raise UnsupportedModelError(
                f"{place} is quantised, and its rounding has no bounds; pass the float model that it was made from"
            )
    modes = [*_get_current_function_mode_stack(), *_get_current_dispatch_mode_stack()]
    if strange := [type(mode).__name__ for mode in modes if type(mode).__module__ not in HARMLESS]:
        raise UnsupportedModelError(
            f"a mode ({strange[-1]}) is active, which may change what functions of torch compute, and bounds would not "
            "see that; ask for them outside of its with block"
        )
    if called_otherwise():
        raise UnsupportedModelError(
            "torch.nn.Module.__call__ has been replaced in this process, and tracing would not see by what; undo that "
            "while bounds are computed"
        )
    try:
        inspect.signature(model.forward).bind(torch.empty(0))
    except TypeError as error:
        raise UnsupportedModelError(
            f"the model ({type(model).__name__}) does not take one input ({error}); wrap it in a module that does, and "
            "keeps the others as attributes"
        ) from error
    except ValueError:  # a forward without a signature
        return


def explained(error: Exception, model: nn.Module, tracer: Tracer) -> UnsupportedModelError:
    """The error to raise for one that tracing ended with: where, why, and what to do."""
    where = tracer.failed or f"the model ({type(model).__name__})"
    cause, advice = _cause(error, tracer)
    line = _line(error)
    return UnsupportedModelError(f"{where} cannot be traced: {cause}{line}; {advice}")


def _cause(error: Exception, tracer: Tracer) -> tuple[str, str]:
    text = f"{type(error).__name__}: {error}"
    numpy = any(node.target in ("numpy", "__array__") for node in tracer.graph.nodes)
    if isinstance(error, BatchSizeError):
        return "control flow that depends on the batch size", "treat all batches alike: bounds are for each sample"
    if isinstance(error, DataError):
        return (
            "control flow that depends on data",
            "compute both branches, and join them as (h > 0).float() * a + (h <= 0).float() * b",
        )
    if numpy or "numpy" in text or "ufunc" in text:
        return "it calls numpy", "use the function of torch that does the same"
    if "parameter is not a member of this module" in text:
        return (
            "it uses a parameter that torch does not see",
            "keep it as an attribute, or in a torch.nn.ParameterList",
        )
    if "takes 1 positional argument but" in text:
        return (
            "it gives sizes one by one, the first of them of the input",
            "give them as one tuple, as in torch.zeros((x.shape[0], 3)) or mask.expand((x.shape[0], -1))",
        )
    if "'len' is not supported" in text:
        return "it asks for the length of a symbol", "write x.shape[0] in place of len(x)"
    if any(part in text for part in ("__index__", "as an integer", "as an index", "int()")):
        return (
            "it needs a number where tracing has a symbol",
            "use x.shape[i] in conditions and reshapes only, and keep sizes as attributes",
        )
    if "iterated" in text:
        return "it loops over a tensor", "index it by numbers that are known beforehand, as x[:, 0]"
    if "float()" in text or "must be real number" in text:
        return "it makes a plain number of a tensor", "compute with the tensor itself"
    return f"its forward raised {text}", "write it with operations of torch on tensors"


def _line(error: BaseException) -> str:
    """Where in the user's code it happened."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        library = any(
            part in frame.filename
            for part in ("/torch/", "robust_plugins/intervals/", "<", "/numpy/", "/jaxtyping/", "/beartype/")
        )
        if not library and frame.name != "__call__":
            return f" ({frame.filename.rpartition('/')[2]}, line {frame.lineno}: {frame.line})"
    return ""
