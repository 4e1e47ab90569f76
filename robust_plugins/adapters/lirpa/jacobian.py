"""`lirpa:jacobian`: auto_LiRPA's bounds on the Jacobian, from version 0.7 on."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robust_plugins.adapters.lirpa import compat
from robust_plugins.adapters.lirpa.bounded import default_dtype
from robust_plugins.adapters.lirpa.compat import LiRPA
from robust_plugins.adapters.lirpa.failures import first_line
from robust_plugins.adapters.lirpa.graph import kind
from robust_plugins.adapters.lirpa.rewrite import convertible
from robust_plugins.balls import Ball
from robust_plugins.errors import ArgumentError, UnsupportedModelError
from robust_plugins.explanations import Explained, ExplanationCertifier
from robust_plugins.intervals import Interval


@dataclass(frozen=True, kw_only=True)
class Jacobian(ExplanationCertifier):
    """Linear relaxation of the backward pass by auto_LiRPA's `JacobianOP`; not differentiable.

    Shi et al. 2022, "Efficiently computing local Lipschitz constants of neural networks via bound propagation". With
    `optimize`, the bounds of the layers before are optimised first. Explains logits and margins, not the loss, of
    models with fixed weights. One sample a call: for ReLU networks the backend's bounds are wrong on batches. It
    knows Linear, ReLU, Tanh, Sigmoid, reshapes, Conv2d before a ReLU, and a normalisation of the input; other layers
    are unsupported.
    """

    optimize: bool = False

    def import_backend(self) -> None:
        """Imports it with what it lacks in a current torch."""
        compat.load()

    def gradient_bounds(  # noqa: D102 (inherited)
        self, model: nn.Module, x: Float[Tensor, "batch *features"], ball: Ball, explained: Explained, *, radius: float
    ) -> Interval:
        if explained.of == "loss":
            raise ArgumentError("of", "'loss'", accepted="'logit' or 'margin'", hint="Use interval:relaxed for it.")
        if radius:
            raise ArgumentError("radius", radius, accepted="0", hint="Use interval:relaxed for intervals of weights.")
        box = ball.box(x).detach()
        model = convertible(model, x, convolve=False)
        ends = [self._one(model, x[i : i + 1], box[i : i + 1], explained.coefficients[i]) for i in range(len(x))]
        return Interval(*(torch.cat(found).view_as(x) for found in zip(*ends, strict=True)))

    def _one(self, model: nn.Module, x: Tensor, box: Interval, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        """The bounds for a single sample, (1, 1, *features)."""
        backend = compat.load()
        operator = importlib.import_module("auto_LiRPA.jacobian").JacobianOP
        refused: list[str] = []
        with default_dtype(x.dtype), backend.tracing(refused), torch.enable_grad():
            try:
                # Patches fail on its backward pass through strides; the weights of the copy are its own.
                module: Any = _expanding(backend)(
                    _Gradient(model, coefficients, operator), x, device=x.device, bound_opts={"conv_mode": "matrix"}
                )
                module.eval()
                around = backend.perturbation_class(norm=torch.inf, x_L=box.lower, x_U=box.upper)
                low, up = module.compute_jacobian_bounds((backend.tensor_class(x, around),), optimize=self.optimize)
            except (RuntimeError, NotImplementedError, AttributeError, KeyError, ValueError, AssertionError) as error:
                named = f" ({', '.join(refused)})" if refused else ""
                raise UnsupportedModelError(
                    f"auto_LiRPA cannot bound the gradient of {type(model).__name__}{named}: {first_line(error)}"
                ) from error
        if low.numel() != x.numel() or low.shape[1 - x.dim() :] != x.shape[1:]:
            raise UnsupportedModelError(
                f"auto_LiRPA gives the gradient of {type(model).__name__} the shape {tuple(low.shape)}; "
                f"expected {tuple(x.shape)}"
            )
        return low.detach(), up.detach()


@cache
def _expanding(backend: LiRPA) -> type[Any]:
    base: Any = backend.module_class

    class Expanding(base):  # type: ignore[misc]
        """A bounded module whose backward pass goes through a normalisation of the input as well."""

        def _expand_jacobian(self) -> None:
            for node in self.nodes():
                if kind(node) in _AFFINE and sum(not i.from_input for i in node.inputs) == 1:
                    object.__setattr__(node, "build_gradient_node", partial(_through, node))
            super()._expand_jacobian()

    return Expanding


_AFFINE = ("BoundAdd", "BoundSub", "BoundMul")


def _through(node: Any, upstream: Tensor) -> list[Any]:
    """The gradient of a sum or product with a constant.

    The backend's own stops in front of the input, and takes the axes of a constant for others unless it has all.
    """
    place = 0 if node.inputs[0].from_input else 1
    constant = node.inputs[1 - place]
    if node.inputs[place].output_shape != node.output_shape:
        raise NotImplementedError("a value that is repeated by a sum or product with a constant")
    found: list[Any] = [None, None]
    if kind(node) == "BoundMul":
        found[place] = (_Scaled(), (upstream, constant.forward_value), [constant])
    else:
        found[place] = (_Signed(-1.0 if kind(node) == "BoundSub" and place == 1 else 1.0), (upstream,), [])
    return found


class _Scaled(nn.Module):
    def forward(self, gradient: Tensor, constant: Tensor) -> Tensor:
        """`gradient` has the shape (1, 1, *features) or (1, *features); the constant's batch axis, if any, is 1."""
        return gradient * constant


class _Signed(nn.Module):
    def __init__(self, sign: float) -> None:
        super().__init__()
        self.sign = sign

    def forward(self, gradient: Tensor) -> Tensor:
        return gradient * self.sign


class _Gradient(nn.Module):
    """The gradient of a fixed combination of the logits, as auto_LiRPA wants it written."""

    def __init__(self, model: nn.Module, coefficients: Tensor, operator: Any) -> None:
        super().__init__()
        self.model, self.operator = model, operator
        self.combination = nn.Linear(len(coefficients), 1, bias=False, dtype=coefficients.dtype)
        self.combination.to(coefficients.device)
        with torch.no_grad():
            self.combination.weight.copy_(coefficients.unsqueeze(0))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.operator.apply(self.combination(self.model(x)), x)
        return found
