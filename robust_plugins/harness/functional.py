"""A model run with other tensors in place of its own, which it keeps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call


def called(model: nn.Module, values: Mapping[str, Tensor], *inputs: Any) -> Any:
    """Runs `model(*inputs)` with `values`, by the names of parameters and buffers, in place of its own tensors.

    A tensor that several modules hold is replaced in all of them. `torch.func.functional_call` alone leaves a module
    that is registered under two names with the other tensors; and hooks that compute a weight, as those of weight_norm,
    leave the computed one. Neither happens here.
    """
    own = {id(t): name for name, t in (*model.named_parameters(), *model.named_buffers())}
    everywhere: dict[str, Tensor] = {}
    for path, module in model.named_modules():  # each module once, however many names it has
        for local, tensor in (*module._parameters.items(), *module._buffers.items()):
            name = own.get(id(tensor), "")  # "" for one that is missing
            if name in values:
                everywhere[f"{path}.{local}" if path else local] = values[name]
    computed = [(m, {k: v for k, v in vars(m).items() if isinstance(v, Tensor)}) for m in model.modules()]
    try:
        return functional_call(model, everywhere, inputs, tie_weights=False)
    finally:
        for module, tensors in computed:
            if tensors:
                vars(module).update(tensors)


def in_precision(model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """The parameters and buffers of `model` by name, those of floating point in `dtype`, for `called`."""
    tensors = (*model.named_parameters(), *model.named_buffers())
    return {name: t.detach().to(dtype) if t.is_floating_point() else t for name, t in tensors}


def other_precision(dtype: torch.dtype) -> tuple[torch.dtype, float]:
    """The precision to compare with, and the size of this one's rounding error as a share of the difference."""
    if dtype != torch.float64:
        return torch.float64, 1.0
    return torch.float32, torch.finfo(dtype).eps / torch.finfo(torch.float32).eps
