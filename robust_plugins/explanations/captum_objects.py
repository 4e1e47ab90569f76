"""Explanations as objects of Captum: what each stands for among our own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from robust_plugins.errors import ArgumentError
from robust_plugins.explanations.attributions import Attribution, InputXGradient, IntegratedGradients, Saliency

OURS: dict[str, tuple[type[Attribution], tuple[str, ...]]] = {
    "Saliency": (Saliency, ("abs",)),
    "InputXGradient": (InputXGradient, ()),
    "IntegratedGradients": (IntegratedGradients, ("baselines", "n_steps", "method")),
}
"""Of each class of Captum ours, and the options of its `attribute` that are fields of ours."""


def of_captum(name: str, given: Attribution | Callable[..., Tensor] | object) -> Attribution | None:
    """The explanation that an object of Captum, or its `attribute`, stands for; None for what is not of Captum.

    Options come by `functools.partial(explainer.attribute, abs=False)`. Raises ArgumentError, naming the argument
    `name`, for classes and options of which nothing can be proved.
    """
    options: dict[str, Any] = {}
    while isinstance(given, partial):
        options = given.keywords | options
        given = given.func
    found = getattr(given, "__self__", given)
    if not type(found).__module__.startswith("captum."):
        return None
    own = OURS.get(type(found).__name__)
    model = getattr(found, "forward_func", None)
    local = own is not None and own[0] is IntegratedGradients and not getattr(found, "multiplies_by_inputs", True)
    if own is None or local or not isinstance(model, nn.Module):
        what = f"Captum's {type(found).__name__}" + ("" if own is None else " of a function, or without its inputs")
        raise ArgumentError(
            name, what, accepted=f"of Captum {', '.join(OURS)} of a torch.nn.Module, times the inputs",
            hint="rp.explain has SmoothGrad, with noise that is drawn once, in the place of NoiseTunnel.",
        )  # fmt: skip
    if options.keys() - set(own[1]):
        raise ArgumentError(
            name, f"Captum's {type(found).__name__} with {', '.join(sorted(options.keys() - set(own[1])))}",
            accepted=", ".join(own[1]) or "no option", hint="Leave the others out: they change no attribution.",
        )  # fmt: skip
    return own[0](model, **options)
