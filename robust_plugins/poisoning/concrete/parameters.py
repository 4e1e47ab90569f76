"""Which parameters of a model are trained."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from robust_plugins.errors import ArgumentError, UnknownNameError


def trained_names(model: nn.Module, parameters: Iterable[str] | None) -> list[str]:
    """The parameters to train: those named, or those that require gradients, in the model's order."""
    known = dict(model.named_parameters())
    if parameters is None:
        chosen = [name for name, p in known.items() if p.requires_grad]
    else:
        asked = [parameters] if isinstance(parameters, str) else list(parameters)
        for name in asked:
            if name not in known:
                raise UnknownNameError("parameter of the model:", name, known)
        chosen = [name for name in known if name in asked]
    if not chosen:
        raise ArgumentError("parameters", "none", accepted="at least one parameter that is trained",
                            hint="Name them, or set requires_grad.")  # fmt: skip
    return chosen
