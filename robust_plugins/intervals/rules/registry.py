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
- Relaxation: as forward. It returns two linear functions of the inputs, a lower and an upper bound of the output.

- Slopes: as forward, for a layer that acts on each entry, or on the entries of several inputs one by one. It returns a
  tuple with the interval of each output entry's derivative by the entry of each input.

An `affine` layer is affine in its inputs and linear in its parameters taken together, and its backward rule does not
look at the inputs' values: linear relaxation then passes through it exactly. A layer that is neither affine nor has
a relaxation is relaxed by the constant interval of its output.

Outward rounding of linear relaxation asks for more: of an affine layer for the lengths of its sums, `terms`, and for
their size, the sum of the absolute values of all terms; of a relaxation that its lines hold for the layer as the
library computes it, and have room for the rounding errors of their own coefficients.

The rules of this package stand in one table, `BUILTIN`; those of plugins in a table on top of it, which belongs to
the registry that loaded them. A rule describes what the class computed when the rule was registered: a layer whose
`forward`, or a method that it calls, is another one has no rules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_plugins.errors import ArgumentError
from robust_plugins.intervals.interval import Interval
from robust_plugins.intervals.windows import WindowRule

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class LinearBound:
    """A linear function that bounds a layer's output from one side: `z -> J z + offset`, J in transposed form.

    `transpose` maps coefficients of the output, shape (batch or 1, rows, *output), to coefficients of the input,
    (batch, rows, *input); of a layer of several inputs to a tuple, one for each: `(x, y) -> J x + K y + offset`.
    `offset` has the output's shape.
    """

    transpose: Callable[[Tensor], Tensor | tuple[Tensor, ...]]
    offset: Tensor
    slope: Tensor | None = None
    """The diagonal of J, of the output's shape, where J is diagonal; without it coefficients keep no windows."""

    @classmethod
    def elementwise(cls, slope: Tensor, offset: Tensor) -> LinearBound:
        """The function `z -> slope z + offset` of each entry."""
        return cls(lambda coefficients: coefficients * slope.unsqueeze(1), offset, slope)

    @classmethod
    def of_entries(cls, slopes: tuple[Tensor, ...], offset: Tensor, shapes: tuple[tuple[int, ...], ...]) -> LinearBound:
        """The function `slopes[0] x + slopes[1] y + ... + offset` of the entries of several inputs.

        These have the given shapes, batch first, and broadcast to the output's, which slopes and offset have.
        """

        def transpose(coefficients: Tensor) -> tuple[Tensor, ...]:
            products = (coefficients * slope.unsqueeze(1) for slope in slopes)
            return tuple(p.sum_to_size(*p.shape[:2], *s[1:]) for p, s in zip(products, shapes, strict=True))

        return cls(transpose, offset)


Terms = Callable[..., tuple[int, int]]
"""How many products an affine layer adds up for an output, and how many its gradient rule adds up for an input; two
zeros for a layer that only moves entries. Called as the forward rule is."""


class WindowRules(NamedTuple):
    """How a layer passes on coefficients that are windows of an image; see `robust_plugins.intervals.windows`."""

    back: WindowRule
    """From the layer's output to its input."""
    through: WindowRule
    """The same for the layer's transpose: from the input to the output."""


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
    windows: WindowRules | None = None
    """Of an affine layer from images to images."""
    slopes: Callable[..., tuple[Interval, ...]] | None = None
    terms: Terms | None = None
    """Of an affine layer; None where outward rounding of linear relaxation knows nothing of it."""
    size: Callable[..., Tensor] | None = None
    """Returns the sum of the absolute values of the terms of each output, from the largest absolute values of inputs
    and parameters, as the forward rule is called. None: what the forward rule makes of these, without its sign."""
    outward: bool = False
    """Whether the relaxation's lines have room for rounding inside `rounding.outward()`."""
    methods: dict[str, Any] = field(init=False)
    """The methods that a call runs, as they were when the rules were made."""
    functions: dict[str, Any] = field(init=False)
    """The functions of `torch.nn.functional` that these name."""
    tensor_functions: dict[str, Any] = field(init=False)
    """The functions of `torch` that either name."""
    interceptors: list[Any] = field(init=False)
    """The type's own ways of being called, and of looking up attributes."""

    def __post_init__(self) -> None:
        self.methods = _called(self.layer)
        self.interceptors = _interceptors(self.layer)
        names = {name for method in self.methods.values() for name in _names(method)}
        self.functions = {name: vars(F)[name] for name in names & vars(F).keys() if callable(vars(F)[name])}
        names |= {name for function in self.functions.values() for name in _names(function)}
        self.tensor_functions = {name: f for name in names if callable(f := vars(torch).get(name))}

    def describe(self, layer: nn.Module) -> bool:
        """Whether a layer computes what the rules were made for: its class and it override nothing of it."""
        kind = type(layer)
        return (
            all(getattr(kind, name, None) is method for name, method in self.methods.items())
            and vars(layer).keys().isdisjoint((*self.methods, *_INTERCEPTORS))
            and _interceptors(kind) == self.interceptors
            and all(vars(F).get(name) is function for name, function in self.functions.items())
            and all(vars(torch).get(name) is function for name, function in self.tensor_functions.items())
        )


class RuleTable:
    """Rules by layer type, on top of another table; each plugin registry owns one on top of `BUILTIN`."""

    def __init__(self, below: RuleTable | None = None) -> None:
        self.below = below
        self._rules: dict[type, Rules] = {}

    def get(self, layer: type) -> Rules | None:
        """The rules of exactly this type."""
        found = self._rules.get(layer)
        return found if found is not None or self.below is None else self.below.get(layer)

    def __iter__(self) -> Iterator[type]:
        """Every layer type with rules."""
        yield from self._rules
        yield from self.below or ()

    def entry(self, layer: type[nn.Module]) -> Rules:
        """The rules of this table itself for a type, made where there are none."""
        if layer not in self._rules:
            self._rules[layer] = Rules(layer)
        return self._rules[layer]

    def register(self, rules: Rules) -> None:
        """Adds the rules of one type. Raises ArgumentError where it has some from elsewhere."""
        present = self.get(rules.layer)
        if present is not None and present.owner != rules.owner:
            raise ArgumentError(
                "layer",
                rules.layer.__name__,
                accepted="a layer type without interval rules",
                hint=f"It has rules from {present.owner or 'this package'!r}; subclass it to change them.",
            )
        self._rules[rules.layer] = rules

    def forget(self, owner: str) -> None:
        """Removes the rules that `owner` registered."""
        self._rules = {layer: rules for layer, rules in self._rules.items() if rules.owner != owner}


BUILTIN = RuleTable()
"""The rules of this package."""

_source: Callable[[], RuleTable | None] = lambda: None  # noqa: E731 (replaced by `follow`)


def follow(source: Callable[[], RuleTable | None]) -> None:
    """From now on the rules are those of the table that `source` returns, or for None those of this package alone."""
    global _source
    _source = source


def current() -> RuleTable:
    """The table that is in force."""
    return _source() or BUILTIN


def forward_rule(
    *layers: type[nn.Module],
    parameters: tuple[str, ...] = (),
    affine: bool = False,
    additive: bool = False,
    terms: Terms | None = None,
    size: Callable[..., Tensor] | None = None,
) -> Callable[[Function], Function]:
    """Registers the forward rule of `layers`, whose `parameters` it takes by name, as one of this package.

    - `affine`, `additive`, `terms`, `size`: what `Rules` says of them
    """

    def decorate(rule: Function) -> Function:
        for layer in layers:
            entry = BUILTIN.entry(layer)
            entry.forward, entry.parameters, entry.affine = rule, parameters, affine
            entry.additive, entry.terms, entry.size = additive, terms, size
        return rule

    return decorate


def backward_rule(*layers: type[nn.Module]) -> Callable[[Function], Function]:
    """Registers the backward rule of `layers`."""
    return _decorator("backward", layers)


def weights_rule(*layers: type[nn.Module]) -> Callable[[Function], Function]:
    """Registers the rule for the weights' gradients of `layers`."""
    return _decorator("weights", layers)


def relaxation_rule(*layers: type[nn.Module], outward: bool = False) -> Callable[[Function], Function]:
    """Registers the linear relaxation of `layers`; `outward` where its lines can be rounded outward."""
    for layer in layers:
        BUILTIN.entry(layer).outward = outward
    return _decorator("relaxation", layers)


def window_rules(*layers: type[nn.Module], back: WindowRule, through: WindowRule) -> None:
    """Registers how `layers` pass on windows of coefficients."""
    for layer in layers:
        BUILTIN.entry(layer).windows = WindowRules(back, through)


def slopes_rule(*layers: type[nn.Module]) -> Callable[[Function], Function]:
    """Registers the rule for the slopes of `layers`."""
    return _decorator("slopes", layers)


class RegisterRules:
    """The callable that the hook `register_interval_rules` receives: registers all rules of one layer type."""

    def __init__(self, owner: str, table: RuleTable) -> None:
        self.owner, self.table = owner, table

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
        self.table.register(Rules(layer, forward, backward, weights, relaxation, parameters, affine, self.owner))


def rules_for(layer: nn.Module) -> Rules | None:
    """The rules of the layer's type, or of the base whose computation it inherits; None where there are none."""
    table = current()
    for base in type(layer).__mro__:
        if (rules := table.get(base)) is not None:
            return rules if rules.describe(layer) else None
    return None


def overridden(layer: nn.Module) -> bool:
    """Whether its type or a base has rules, but the layer computes something else."""
    return any(current().get(base) is not None for base in type(layer).__mro__) and rules_for(layer) is None


_INTERCEPTORS = ("__call__", "_call_impl", "_wrapped_call_impl", "__getattr__", "__getattribute__")


def _interceptors(kind: type) -> list[Any]:
    """The ways of calling a module, or of looking up its attributes, that it does not have from `nn.Module`."""
    own = kind.__mro__[: kind.__mro__.index(nn.Module)]
    return [vars(base)[name] for base in own for name in _INTERCEPTORS if name in vars(base)]


def _called(layer: type[nn.Module]) -> dict[str, Any]:
    """`forward` and the methods and properties of the class that it names, directly or through one another."""
    found: dict[str, Any] = {}
    waiting = {"forward"}
    while waiting:
        name = waiting.pop()
        method = getattr(layer, name, None)
        if name in found or not (callable(method) or isinstance(method, property)):
            continue
        found[name] = method
        inherited = vars(nn.Module)  # what every module has, such as `to`, decides nothing
        waiting |= {n for n in _names(method) if hasattr(layer, n) and n not in inherited and not n.startswith("__")}
    return found


def _names(method: Any) -> set[str]:
    code = getattr(getattr(method, "fget", method), "__code__", None)
    return set() if code is None else set(code.co_names)


def _decorator(rule_field: str, layers: tuple[type[nn.Module], ...]) -> Callable[[Function], Function]:
    def decorate(rule: Function) -> Function:
        for layer in layers:
            setattr(BUILTIN.entry(layer), rule_field, rule)
        return rule

    return decorate
