"""An estimator around the network, for ART's attacks on training data, and the way back into the budget.

ART computes in float32; its samples are brought back into the budget in the dtype of the data.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robust_plugins.adapters.art.silence import silent
from robust_plugins.errors import ComponentError
from robust_plugins.poisoning.attacks.goals import features_of
from robust_plugins.poisoning.attacks.interface import sample_outputs
from robust_plugins.poisoning.budget import PoisoningBudget
from robust_plugins.poisoning.concrete.batches import PoisonedBatch
from robust_plugins.poisoning.concrete.trainings import Trainings

SCHEDULE = (0.1, 0.01, 0.001, 0.0001)
MILESTONES = (0.4, 0.6, 0.8, 0.88)
"""ART's steps, and the parts of all epochs after which each of them ends."""


def surrogate(trainings: Trainings, budget: PoisoningBudget, x: Tensor, *, featured: bool = False) -> Any:
    """An estimator of ART around a copy of the trained network, in float32."""
    from art.estimators.classification import PyTorchClassifier

    class Featured(PyTorchClassifier):  # type: ignore[misc] # ART is untyped
        """Its activations are the inputs of the last linear layer, whatever the layer is called."""

        def get_activations(self, x: Any, layer: object = None, batch_size: int = 128, framework: bool = False) -> Any:
            given = torch.as_tensor(x, device=self.device)
            found = features_of(self.model, given)
            return found if framework else found.detach().cpu().numpy()

    model: nn.Module = trainings.trained().float().eval().requires_grad_()
    low, high = budget.clip or (x.min().item(), x.max().item())
    high = max(high, low + 1e-6 * max(abs(low), 1.0))  # features that are all the same have a range, in float32 too
    cuda = torch.cuda.is_available()  # ART's gradient matching asks this, and nothing else, where to compute
    with silent():
        return (Featured if featured else PyTorchClassifier)(
            model=model.cuda() if cuda else model.cpu(), loss=nn.CrossEntropyLoss(), input_shape=tuple(x.shape[1:]),
            nb_classes=sample_outputs(trainings, x), clip_values=(low, high),
            preprocessing=(0.0, 1.0), device_type="gpu" if cuda else "cpu",
        )  # fmt: skip


def brought_back(budget: PoisoningBudget, x: Tensor, y: Tensor, chosen: Tensor, found: np.ndarray) -> PoisonedBatch:
    """The batch with the chosen samples as ART has moved them, as far as the budget allows."""
    z = torch.from_numpy(np.asarray(found)).to(x)
    if z.shape != x[chosen].shape:
        raise ComponentError(f"ART returned poison of shape {tuple(z.shape)}; expected {tuple(x[chosen].shape)}")
    same = z == x[chosen].float().to(x)  # what float32 alone has moved is left
    z = torch.where(same | ~z.isfinite(), x[chosen], budget.project(z, x[chosen]))
    return PoisonedBatch.whole(x.index_copy(0, chosen, z), y)


@contextmanager
def in_this_process() -> Iterator[None]:
    """Inside, torch's loaders start no workers, as ART's gradient matching has them do in every epoch."""
    loader = torch.utils.data.DataLoader

    @functools.wraps(loader, updated=())
    def alone(*args: Any, **kwargs: Any) -> Any:
        return loader(*args, **{**kwargs, "num_workers": 0})

    torch.utils.data.DataLoader = alone  # type: ignore[assignment, misc]
    try:
        yield
    finally:
        torch.utils.data.DataLoader = loader  # type: ignore[misc]


def schedule(steps: int) -> tuple[list[float], list[int]]:
    """ART's step sizes, and the step at which each of them ends."""
    return list(SCHEDULE), [max(round(part * steps), 1) for part in MILESTONES]


def radius(budget: PoisoningBudget) -> float:
    """The largest radius, within which ART searches; the budget then cuts what has its own limits."""
    return float(budget.largest)


def array(x: Tensor) -> np.ndarray:
    """A copy as ART takes it."""
    found: np.ndarray = x.detach().cpu().numpy().astype(np.float32)
    return found.copy()
