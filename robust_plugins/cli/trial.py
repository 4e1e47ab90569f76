"""Whether a training can begin: data, network, loss and evaluation are tried together before anything is written."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import nn

from robust_plugins.balls import Ball
from robust_plugins.data import Dataset
from robust_plugins.errors import ArgumentError, of_type
from robust_plugins.harness.arguments import as_labels, check_inputs, decided
from robust_plugins.harness.batches import as_batch
from robust_plugins.harness.evaluation import evaluating
from robust_plugins.losses import MixedLoss
from robust_plugins.training import Scores


def suiting(data: Dataset, model: nn.Module, balls: list[Ball]) -> Dataset:
    """The data in the model's dtype; raises ArgumentError where the two, or the balls, do not fit together."""
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    data = replace(data, x_train=data.x_train.to(dtype), x_test=data.x_test.to(dtype))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ArgumentError("model", type(model).__name__, accepted="a model with weights", hint="Unfreeze them.")
    try:
        model.train()
    except NotImplementedError as error:
        raise ArgumentError(
            "model", f"{of_type(model)}: {error}", accepted="a model with a training mode",
            hint="Programs of torch.export have none: give 'package.module:factory', or TorchScript.",
        ) from error  # fmt: skip
    for part, x, y in (("train", data.x_train, data.y_train), ("test", data.x_test, data.y_test)):
        if not len(x):
            raise ArgumentError(
                f"x_{part}", "empty", accepted="at least one sample", hint="Give --data that is split into two parts."
            )
        for ball in balls:
            check_inputs(model, x, ball)
        with evaluating(model), torch.no_grad():
            try:
                outputs = decided(model, x[:1])[1].shape[1]
            except RuntimeError as error:
                raise ArgumentError(
                    "model", f"refusing the input: {error}", accepted=f"inputs of shape {data.input_shape}",
                    hint="Give the shape to its factory, which may take input_shape and classes.",
                ) from error  # fmt: skip
        as_labels(y, x, outputs, name=f"y_{part}")
    return data


def tried(model: nn.Module, loss: MixedLoss, scores: Scores, epochs: int) -> None:
    """Evaluates and trains for nothing, on two samples: what a component refuses is said now."""
    x, y = as_batch(scores.x[:2], scores.y[:2], model)
    with evaluating(model):
        # At the start of the ramp the worst case does not count, at its end the warm-up does not, in between all do.
        for share in (1.0, 0.5):
            trial = replace(loss, schedule=None if loss.schedule is None else partial(_constant, share))
            trial.step(epochs, 0)
            trial(model, x, y)
        replace(scores, x=x, y=y)(model)


def _constant(value: float, epoch: float) -> float:
    return value
