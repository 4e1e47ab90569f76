"""`L2Penalty`, `HessianPenalty`: terms that make explanations robust in practice, and prove nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robust_plugins.errors import ArgumentError
from robust_plugins.explanations.explained import Explained, Of
from robust_plugins.explanations.surrogate import smoothed
from robust_plugins.harness.call import ordinary
from robust_plugins.losses.batch import Batch
from robust_plugins.losses.refused import check_gradients
from robust_plugins.losses.regularisers import Regulariser, classes_of


@dataclass(frozen=True, kw_only=True)
class L2Penalty(Regulariser):
    """A term to add to any loss: `alpha` times the squared Euclidean norm of the explanation, averaged over the batch.

    `of`: whose gradient with respect to the input, as for `rp.ExplanationCertifier`. Drucker and Le Cun 1992,
    "Improving generalization performance using double backpropagation".
    """

    alpha: float = 1.0
    of: Of = "logit"

    def __post_init__(self) -> None:
        _check_alpha(self.alpha)

    def __call__(
        self, model: nn.Module, x: Float[Tensor, "batch *features"], y: Int[Tensor, " batch"]
    ) -> Float[Tensor, ""]:
        """The term for one batch in the model's present mode, differentiable in its parameters; 0 for an empty one."""
        check_gradients()
        if not len(x):
            return x.sum()
        x = ordinary(x)
        explained = Explained.at(model, x, y, self.of)
        gradient = explained.gradient(model, x, create_graph=True)
        return self.alpha * gradient.flatten(1).square().sum(1).mean()

    def penalty(self, batch: Batch) -> Float[Tensor, ""]:
        """The term for one batch of a mixed loss. Batch normalisation uses the statistics of the clean batch."""
        y = classes_of(batch, self)
        with batch.replaying():
            return self(batch.model, batch.x, y)


@dataclass(frozen=True, kw_only=True)
class HessianPenalty(Regulariser):
    """A term to add to any loss: `alpha` times the squared Frobenius norm of the explanation's Jacobian.

    The Jacobian of a gradient is the Hessian, which says how fast the explanation turns. Its norm is estimated
    without bias from `samples` >= 1 random directions v as the mean of `|H v|^2`, and averaged over the batch.
    `beta` > 0: with piecewise linear activations, whose Hessian is zero almost everywhere, it is that of the softplus
    surrogate of this sharpness. Dombrowski et al. 2022, "Towards robust explanations for deep neural networks",
    section 3.3.
    """

    alpha: float = 1.0
    of: Of = "logit"
    beta: float = 10.0
    samples: int = 1

    def __post_init__(self) -> None:
        _check_alpha(self.alpha)
        if not 0 < self.beta < math.inf:
            raise ArgumentError("beta", self.beta, accepted="a finite number above 0", hint="For example 10.")
        if not isinstance(self.samples, int) or self.samples < 1:
            raise ArgumentError("samples", self.samples, accepted="an integer of at least 1", hint="Take one or more.")

    def __call__(
        self, model: nn.Module, x: Float[Tensor, "batch *features"], y: Int[Tensor, " batch"]
    ) -> Float[Tensor, ""]:
        """The term for one batch in the model's present mode, differentiable in its parameters; 0 for an empty one.

        The directions are drawn from torch's random state.
        """
        check_gradients()
        if not len(x):
            return x.sum()
        x = ordinary(x)
        explained = Explained.at(model, x, y, self.of)
        z = x.detach().requires_grad_()
        with smoothed(self.beta):
            gradient = explained.gradient(model, z, create_graph=True)
        total = x.new_zeros(())
        for _ in range(self.samples):
            direction = torch.randint(0, 2, x.shape, device=x.device).to(x) * 2 - 1
            # The Hessian is symmetric: v^T H is (H v)^T.
            (product,) = torch.autograd.grad(
                gradient, z, direction, create_graph=True, retain_graph=True, materialize_grads=True
            )
            total = total + product.flatten(1).square().sum(1).mean()
        return self.alpha * total / self.samples

    def penalty(self, batch: Batch) -> Float[Tensor, ""]:
        """The term for one batch of a mixed loss. Batch normalisation uses the statistics of the clean batch."""
        y = classes_of(batch, self)
        with batch.replaying():
            return self(batch.model, batch.x, y)


def _check_alpha(alpha: float) -> None:
    if not 0 <= alpha < math.inf:
        raise ArgumentError("alpha", alpha, accepted="a finite number >= 0", hint="0 switches the term off.")
