"""Learners of any kind: functions that train, and classifiers in the manner of scikit-learn."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from robust_plugins.errors import ArgumentError, ComponentError
from robust_plugins.harness.evaluation import evaluating, evaluation_mode
from robust_plugins.harness.wrappers import logits_in

Train = Callable[[Tensor, Tensor], Any]
"""From samples and their labels to a model."""


def trained(train: Any, x: Shaped[Tensor, "samples *features"], y: Shaped[Tensor, " samples"], seed: int) -> Any:
    """Trains a model on these samples, with every random generator seeded; the caller's are left as they were.

    A classifier with `fit`, as those of scikit-learn, is copied untrained, and learns from arrays of shapes (samples,
    features) and (samples,).
    """
    with evaluating(nn.Identity(), seed=seed, guarded=False), torch.inference_mode(False), torch.enable_grad():
        if hasattr(train, "fit"):
            model = copy.deepcopy(train)
            model.fit(x.flatten(1).cpu().numpy(), y.cpu().numpy())
            return model
        return train(x.clone(), y.clone())


def check_learner(train: object) -> None:
    """Raises ArgumentError for what cannot train."""
    fits = hasattr(train, "fit")
    # A class that learns as it is made, from (x, y), is as good as a function.
    untrained = isinstance(train, type) and (fits or issubclass(train, nn.Module))
    if not (callable(train) or fits) or isinstance(train, nn.Module) or untrained:
        raise ArgumentError("train", f"the class {train.__name__}" if isinstance(train, type) else type(train).__name__,
                            accepted="a function (x, y) -> model, or a classifier with fit(x, y)",
                            hint="Make an object of the class." if isinstance(train, type) and fits else
                            "Make the network inside the function, so that every call starts anew.")  # fmt: skip


def scores_of(
    model: Any, x: Float[Tensor, "samples *features"], classes: int, *, batch_size: int | None = None
) -> Float[Tensor, "samples classes"]:
    """The scores of a trained model: those of a network, probabilities, or 1 for the class that it decides on.

    Raises ComponentError for answers that are no scores of so many classes, or are not numbers.
    """
    parts = [x] if batch_size is None else list(x.split(batch_size))
    found = torch.cat([_answered(model, part, classes) for part in parts]) if parts else x.new_zeros((0, classes))
    if bool(found.isnan().any()):
        raise ComponentError(f"the model {type(model).__name__} answers with NaN, which is no vote")
    return found


def _answered(model: Any, x: Tensor, classes: int) -> Tensor:
    if not (callable(model) or hasattr(model, "predict")):
        raise ComponentError(
            f"training returned {type(model).__name__}, which is no model: return a network, a function of samples, or "
            "a classifier with predict"
        )
    with torch.no_grad():
        if isinstance(model, nn.Module):
            with evaluation_mode(model):
                raw = logits_in(model(x))
        elif hasattr(model, "predict"):
            raw = _predicted(model, x.flatten(1).cpu().numpy(), classes)
        else:
            raw = logits_in(model(x))
    found = torch.as_tensor(raw, device=x.device)
    if found.shape == (len(x),) and not found.is_floating_point():
        if len(found) and not 0 <= int(found.min()) <= int(found.max()) < classes:
            raise ComponentError(f"the model {type(model).__name__} decides on classes outside 0 to {classes - 1}")
        return torch.nn.functional.one_hot(found.long(), classes).double()
    if found.shape != (len(x), classes):
        raise ComponentError(
            f"the model {type(model).__name__} answers with shape {tuple(found.shape)}; expected scores of shape "
            f"{(len(x), classes)} or classes of shape {(len(x),)}; `classes` says how many classes there are"
        )
    return found.double()


def _predicted(model: Any, x: np.ndarray, classes: int) -> np.ndarray:
    if not hasattr(model, "predict_proba"):
        return np.asarray(model.predict(x))
    known = np.asarray(model.classes_).astype(np.int64)
    if len(known) and not 0 <= known.min() <= known.max() < classes:
        raise ComponentError(f"{type(model).__name__} has learned classes outside 0 to {classes - 1}")
    found = np.zeros((len(x), classes))
    found[:, known] = model.predict_proba(x)  # 0 for classes that its partition lacks
    return found
