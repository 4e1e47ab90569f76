"""ART's estimators as models: the network with the estimator's normalisation in front. Needs no import of ART."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robust_plugins.balls import Ball
from robust_plugins.errors import ArgumentError, of_type
from robust_plugins.harness.wrappers import converts

ESTIMATORS = "art.estimators."
STANDARDISATION = "art.preprocessing.standardisation_mean_std."
PREDICTION = ("predict", "_predict_framework", "_apply_preprocessing", "_apply_postprocessing")
"""The methods that decide how an estimator's answer follows from its network."""


class Normalised(nn.Module):
    """A network behind an estimator's normalisation: `model((x - mean) / std)`.

    `mean` and `std` broadcast against the batch.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, x: Tensor) -> Tensor:
        """The network's outputs for the normalised inputs."""
        out: Tensor = self.model((x - self.mean) / self.std)
        return out


@converts
def module_of(estimator: object, ball: Ball | None) -> nn.Module | None:
    """The module that computes what a PyTorchClassifier of ART predicts; None for what is no estimator of ART.

    The clip range of `ball` has to be the estimator's clip values, unless nothing moves. Raises ArgumentError where it
    is not, and for estimators and defences that are more than a network behind a
    normalisation.
    """
    if not _is_of(estimator, ESTIMATORS):
        return None
    model = network_of(estimator)
    if ball is not None and ball.largest > 0:
        _check_clip(estimator, ball.clip)
    for operation in _operations(estimator):
        model = _normalised(model, operation, estimator)
    return model


def network_of(estimator: Any) -> nn.Module:
    """The bare network of an estimator whose every operation around it is known: a PyTorchClassifier, undefended.

    Raises ArgumentError, naming the estimator or the defence, for any other one.
    """
    name = type(estimator).__name__
    base = next((c for c in type(estimator).__mro__ if c.__module__ == f"{ESTIMATORS}classification.pytorch"), None)
    if base is None or any(getattr(type(estimator), m, None) is not getattr(base, m, None) for m in PREDICTION):
        raise ArgumentError(
            "model",
            f"a {name} of ART",
            accepted="a torch.nn.Module, or an estimator that predicts as ART's PyTorchClassifier does",
            hint="Write what it computes as a torch.nn.Module.",
        )
    check_defences(estimator)
    network: nn.Module = estimator.model
    if isinstance(network, nn.Sequential) and type(network).forward is not nn.Sequential.forward:
        raise ArgumentError(
            "model",
            f"a {name} of ART around {of_type(network)}, a Sequential whose own forward ART does not call",
            accepted="a network that ART and PyTorch run alike",
            hint="Derive the network from torch.nn.Module.",
        )
    return network


def check_defences(estimator: Any) -> None:
    """Raises ArgumentError, naming it, for a defence of the estimator that changes its predictions."""
    for defence in (*_operations(estimator), *(getattr(estimator, "postprocessing_defences", None) or ())):
        if getattr(defence, "apply_predict", True) and not _is_of(defence, STANDARDISATION):
            raise ArgumentError(
                "model",
                f"{of_type(estimator)} of ART with the defence {type(defence).__name__}",
                accepted="estimators whose only preprocessing is a normalisation by mean and standard deviation",
                hint="Write the defence as a torch.nn.Module in front of (or behind) the network.",
            )


def is_normalising(estimator: Any) -> bool:
    """Whether the estimator does more than call its network."""
    return any(not _is_identity(operation) for operation in _operations(estimator))


def _operations(estimator: Any) -> list[Any]:
    """The operations that inputs go through before the network sees them, without those for training alone."""
    operations = getattr(estimator, "preprocessing_operations", None) or []
    return [operation for operation in operations if operation.apply_predict]


def _is_of(thing: object, module: str) -> bool:
    return any(base.__module__.startswith(module) for base in type(thing).__mro__)


def _is_identity(operation: Any) -> bool:
    return _is_of(operation, STANDARDISATION) and bool(np.all(operation.mean == 0) and np.all(operation.std == 1))


def _normalised(model: nn.Module, operation: Any, estimator: Any) -> nn.Module:
    if _is_identity(operation):
        return model
    mean, std = (np.asarray(values, dtype=np.float32) for values in (operation.mean, operation.std))
    if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std != 0).all()):
        raise ArgumentError(
            "model", f"an estimator of ART that divides by {std.tolist()}", accepted="finite means and deviations != 0",
            hint="Build the estimator with the mean and the standard deviation of the training data.",
        )  # fmt: skip
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    shape = (1, *estimator.input_shape)
    return Normalised(model, *(torch.from_numpy(_broadcast(values, shape)).to(like) for values in (mean, std)))


def _broadcast(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The values, shaped as ART reads them: a vector goes along the last axis if that is as long, else the channels."""
    if values.ndim == 1 and len(values) > 1 and len(values) != shape[-1]:
        values = values.reshape(-1, *[1] * (len(shape) - 2))
    try:
        fits = np.broadcast_shapes(values.shape, shape) == shape
    except ValueError:
        fits = False
    if not fits:
        raise ArgumentError(
            "model", f"an estimator of ART that normalises inputs of shape {shape[1:]} by values of {values.shape}",
            accepted="one value, or one per channel", hint="Give its preprocessing the shape of one input.",
        )  # fmt: skip
    return values.reshape([1] * (len(shape) - values.ndim) + list(values.shape))


def _check_clip(estimator: Any, clip: tuple[float, float] | None) -> None:
    theirs = estimator.clip_values
    if theirs is None:
        return
    ends = [np.unique(np.asarray(end, dtype=np.float64)) for end in theirs]
    ours = None if clip is None else np.asarray(clip, dtype=np.float64)
    if ours is None or any(len(end) != 1 for end in ends) or not np.allclose(np.concatenate(ends), ours, rtol=1e-6):
        described = tuple(float(end[0]) if len(end) == 1 else end.tolist() for end in ends)
        raise ArgumentError(
            "ball",
            f"a ball with the clip range {clip}, for an estimator of ART with the clip values {described}",
            accepted="the same range for both",
            hint="Give the ball that range, or build the estimator for the range that the inputs really have.",
        )
