"""`Explained`: which number's gradient with respect to the input is the explanation."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from robust_plugins.errors import ArgumentError, UnsupportedModelError
from robust_plugins.harness.arguments import as_labels, decided
from robust_plugins.harness.wrappers import logits_in
from robust_plugins.intervals import Interval, rounding

Of = Literal["logit", "margin", "loss"]


@dataclass(frozen=True, eq=False)
class Explained:
    """One number per sample, computed from its logits; the explanation is its gradient with respect to the input.

    - `"logit"`: `z_y`.
    - `"margin"`: `z_y - z_j`, where j is the class other than y with the largest logit at the sample `x` itself. It
      stays the same over the whole ball, so that one differentiable function is explained.
    - `"loss"`: the cross-entropy of the logits and y, of each sample on its own (not divided by the batch size).

    The fields:

    - `of`: `"logit"`, `"margin"` or `"loss"`.
    - `y`: the classes.
    - `coefficients`: the logits' coefficients in the number; for the loss, those of `-z_y`, its part that is linear.
    """

    of: Of
    y: Int[Tensor, " batch"]
    coefficients: Float[Tensor, "batch classes"]

    @classmethod
    def at(cls, model: nn.Module, x: Float[Tensor, "batch *features"], y: Int[Tensor, " batch"], of: Of) -> Explained:
        """The explanations of the samples `x` for the classes `y`. `model` is in evaluation mode.

        A model of one output z a sample, of shape (batch,) or (batch, 1), has the logits (-z/2, z/2). Raises
        ArgumentError for another `of`, for labels that do not fit, and for outputs that are no logits.
        """
        return explained_by(model, x, y, of)[1]

    @classmethod
    def of_logits(cls, logits: Float[Tensor, "batch classes"], y: Shaped[Tensor, "batch *one"], of: Of) -> Explained:
        """The explanations of samples with these logits for the classes `y`; raises as `at` does."""
        if of not in get_args(Of):
            raise ArgumentError(
                "of", repr(of), accepted=", ".join(map(repr, get_args(Of))), hint="What is its gradient to explain?"
            )
        y = as_labels(y, logits, logits.shape[1])
        own = F.one_hot(y, logits.shape[1]).to(logits)
        if of == "logit":
            return cls(of, y, own)
        if of == "loss":
            return cls(of, y, -own)
        other = logits.masked_fill(own.bool(), -torch.inf).argmax(1)
        return cls(of, y, own - F.one_hot(other, logits.shape[1]).to(logits))

    def __getitem__(self, samples: slice) -> Explained:
        """The explanations of a slice of the batch."""
        return Explained(self.of, self.y[samples], self.coefficients[samples])

    def of_samples(self, samples: Int[Tensor, " chosen"]) -> Explained:
        """The explanations of the samples of these indices."""
        return Explained(self.of, self.y[samples], self.coefficients[samples])

    def repeated(self, times: int) -> Explained:
        """The explanations of the batch, `times` times over."""
        return Explained(self.of, self.y.repeat(times), self.coefficients.repeat(times, 1))

    def number(self, logits: Float[Tensor, "batch *classes"]) -> Float[Tensor, " batch"]:
        """The number that is explained, for each sample, from the model's output: logits, or one number z a sample."""
        if logits.shape[1:] in ((), (1,)):
            z = logits.reshape(-1, 1) / 2
            logits = torch.cat((-z, z), 1)
        if self.of == "loss":
            return F.cross_entropy(logits, self.y.long(), reduction="none")
        return (self.coefficients * logits).sum(1)

    def gradient(
        self, model: Callable[[Tensor], Tensor], x: Float[Tensor, "batch *features"], *, create_graph: bool = False
    ) -> Float[Tensor, "batch *features"]:
        """The explanation at `x`, which need not be where `at` was called: the gradient of `number` by x.

        By automatic differentiation; zero where the output does not depend on the input. With `create_graph` it can be
        differentiated again, with respect to weights, and to x where x requires gradients.
        """
        with torch.enable_grad(), twice_differentiable(create_graph):
            z = x if create_graph and x.requires_grad else x.detach().requires_grad_()
            with refused_in_place():
                number = self.number(logits_in(model(z))).sum()
            if not number.requires_grad:
                return torch.zeros_like(x)
            found = derivative(number, z, create_graph=create_graph)
        return found if create_graph else found.detach()


def derivative(number: Tensor, z: Tensor, *, create_graph: bool) -> Tensor:
    """The gradient of what a model returned. Raises UnsupportedModelError where layers in place have left it none."""
    with refused_in_place():
        (found,) = torch.autograd.grad(number, z, create_graph=create_graph, materialize_grads=True)
    return found


@contextmanager
def refused_in_place() -> Iterator[None]:
    """Raises UnsupportedModelError where torch cannot differentiate what layers in place have changed."""
    try:
        yield
    except RuntimeError as error:
        if not re.search("in-?place", str(error), re.IGNORECASE):
            raise
        raise UnsupportedModelError(
            "the model has no gradient to explain: it changes in place a value that its own backward pass needs; "
            "build its layers with inplace=False"
        ) from error


def twice_differentiable(wanted: bool) -> AbstractContextManager[None]:
    """Inside the block attention is computed in the one way whose gradient has a gradient in torch."""
    return sdpa_kernel(SDPBackend.MATH) if wanted else nullcontext()


def explained_by(
    model: nn.Module,
    x: Float[Tensor, "batch *features"],
    y: Shaped[Tensor, "batch *one"],
    of: Of,
    *,
    size: int | None = None,
) -> tuple[nn.Module, Explained]:
    """The module that gives logits of two or more classes in the place of `model`, and the explanations at `x`.

    What is explained is what the model returns. A log-softmax at its end is left out of margins and of the loss alone,
    which are the same without it. `size` is the number of samples that the model may see at a time, None for all.
    """
    with torch.no_grad():
        given, logits = decided(model, x, size=size, outputs=True)
        if of != "logit":
            before, z = decided(model, x, size=size)
            if before is not given and torch.allclose(z.log_softmax(1), logits, rtol=1e-4, atol=1e-6):
                given, logits = before, z
    return given, Explained.of_logits(logits, y, of)


def weight_intervals(model: nn.Module, gamma: float) -> dict[str, Interval] | None:
    """`[w - gamma |w|, w + gamma |w|]` for every parameter of the model, biases too; None for gamma 0."""
    if gamma == 0:
        return None
    found = {}
    for name, p in model.named_parameters():
        if p.is_floating_point():
            found[name] = Interval(*rounding.widened(p - gamma * p.abs(), p + gamma * p.abs(), ulps=2))
    return found
