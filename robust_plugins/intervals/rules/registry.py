"""The rules of the engine: how each type of layer bounds its output, its input's gradient and its weights' gradients.

A rule is a function registered for a layer type:

    @forward_rule(nn.ReLU)
    def relu(layer: nn.ReLU, x: Interval) -> Interval: ...

    @backward_rule(nn.ReLU)
    def relu_vjp(layer: nn.ReLU, x: Interval, grad: Interval) -> Interval: ...

- Forward: the layer, one interval per input, and each parameter by name (an Interval, or None where the layer has
  none). It returns the interval of the output; axis 0 of inputs and outputs is the batch.
- Backward: the same, with the interval `grad` of dL/d output after the inputs. It returns the interval of dL/d input,
  a tuple for several inputs.
- Weights: as backward, with the keyword `summed`. It returns the interval of dL/d parameter for each parameter, one
  per sample (shape (batch, *parameter)), or with `summed` of their sum over the batch.
- Relaxation: as forward. It returns two linear functions of the input, a lower and an upper bound of the output.

An `affine` layer is affine in its inputs and linear in its parameters taken together, and its backward rule does not
look at the inputs' values: linear relaxation then passes through it exactly. A layer that is neither affine nor has
a relaxation is relaxed by the constant interval of its output.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor, nn

from robust_plugins.errors import ArgumentError
from robust_plugins.intervals.interval import Interval

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class LinearBound:
    """A linear function that bounds a layer's output from one side: `z -> J z + offset`, J in transposed form.

    `transpose` maps coefficients of the output, shape (batch or 1, rows, *output), to coefficients of the input,
    (batch, rows, *input). `offset` has the output's shape.
    """

    transpose: Callable[[Tensor], Tensor]
    offset: Tensor


@dataclass
class Rules:
    """The rules of one layer type."""

    layer: type[nn.Module]
    forward: Callable[..., Interval] | None = None
    backward: Callable[..., Interval | tuple[Interval, ...]] | None = None
    weights: Callable[..., dict[str, Interval]] | None = None
    relaxation: Callable[..., tuple[LinearBound, LinearBound]] | None = None
    parameters: tuple[str, ...] = ()
    affine: bool = False
    owner: str = ""
    additive: bool = False
    """Whether an affine layer adds its parameters to its input, instead of multiplying the two."""


_RULES: dict[type[nn.Module], Rules] = {}


def forward_rule(
    *layers: type[nn.Module], parameters: tuple[str, ...] = (), affine: bool = False, additive: bool = False
) -> Callable[[Function], Function]:
    """Registers the forward rule of `layers`, whose `parameters` it takes by name."""

    def decorate(rule: Function) -> Function:
        for layer in layers:
            entry = _entry(layer)
            entry.forward, entry.parameters, entry.affine = rule, parameters, affine
            entry.additive = additive
        return rule

    return decorate


def backward_rule(*layers: type[nn.Module]) -> Callable[[Function], Function]:
    """Registers the backward rule of `layers`."""
    return _decorator("backward", layers)


def weights_rule(*layers: type[nn.Module]) -> Callable[[Function], Function]:
    """Registers the rule for the weights' gradients of `layers`."""
    return _decorator("weights", layers)


def relaxation_rule(*layers: type[nn.Module]) -> Callable[[Function], Function]:
    """Registers the linear relaxation of `layers`."""
    return _decorator("relaxation", layers)


class RegisterRules:
    """The callable that the hook `register_interval_rules` receives: registers all rules of one layer type."""

    def __init__(self, owner: str) -> None:
        self.owner = owner

    def __call__(
        self,
        layer: type[nn.Module],
        *,
        forward: Callable[..., Interval],
        backward: Callable[..., Interval | tuple[Interval, ...]] | None = None,
        weights: Callable[..., dict[str, Interval]] | None = None,
        relaxation: Callable[..., tuple[LinearBound, LinearBound]] | None = None,
        parameters: tuple[str, ...] = (),
        affine: bool = False,
    ) -> None:
        """Registers the rules of `layer`, a type of module, as described in `robust_plugins.intervals.rules.registry`.

        Raises ArgumentError where `layer` is none, or has rules from elsewhere.
        """
        if not (isinstance(layer, type) and issubclass(layer, nn.Module)):
            raise ArgumentError("layer", repr(layer), accepted="a subclass of torch.nn.Module", hint="Pass the class.")
        if layer in _RULES and _RULES[layer].owner != self.owner:
            raise ArgumentError(
                "layer",
                layer.__name__,
                accepted="a layer type without interval rules",
                hint=f"It has rules from {_RULES[layer].owner or 'this package'!r}; subclass it to change them.",
            )
        _RULES[layer] = Rules(layer, forward, backward, weights, relaxation, parameters, affine, self.owner)


def forget(owner: str) -> None:
    """Removes the rules that `owner` registered."""
    for layer in [layer for layer, rules in _RULES.items() if rules.owner == owner]:
        del _RULES[layer]


def rules_for(layer: nn.Module) -> Rules | None:
    """The rules of the layer's type, or of the base whose `forward` it inherits; None where there are none."""
    for base in type(layer).__mro__:
        if base in _RULES:
            return _RULES[base] if type(layer).forward is base.forward else None
    return None


def supported() -> dict[type[nn.Module], Rules]:
    """Every layer type with rules."""
    return dict(_RULES)


def _entry(layer: type[nn.Module]) -> Rules:
    return _RULES.setdefault(layer, Rules(layer))


def _decorator(field: str, layers: tuple[type[nn.Module], ...]) -> Callable[[Function], Function]:
    def decorate(rule: Function) -> Function:
        for layer in layers:
            setattr(_entry(layer), field, rule)
        return rule

    return decorate
