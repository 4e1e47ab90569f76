"""The meaning of labels: classes, shares of classes, or numbers. What has two readings is named, or inferred aloud."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from robust_plugins.errors import ArgumentError

Task = Literal["classification", "binary", "regression"]
"""The field's three: the cross-entropy of several logits, of one, or the mean squared error."""

SUM = 1e-3
"""How far from 1 the shares of a sample may sum up to: those in half precision do."""


@dataclass(frozen=True, eq=False)
class Labels:
    """The labels of one batch, in one of three forms; `why` is empty unless their task was guessed."""

    task: Task
    classes: Int[Tensor, " batch"] | None = None
    """One class per sample; with `shares`, that of the largest share."""
    shares: Float[Tensor, "batch classes"] | None = None
    """The share of every class, where some sample is not of one class alone."""
    numbers: Float[Tensor, "batch outputs"] | None = None
    """For regression."""
    why: str = ""


def labels_of(
    y: Shaped[Tensor, "batch *outputs"],
    out: Float[Tensor, "batch outputs"],
    task: Task | None,
    earlier: Task | None = None,
) -> Labels:
    """Reads the labels `y` of a model's outputs, one column for a model of one output.

    - `task` None takes integers and booleans for classes, and floating point of any other range than [0, 1] for
      numbers. In [0, 1] floating point has several readings: zeros and ones for one output are taken for two classes,
      rows with a single one and rows that sum up to 1 for classes and their shares, all else for numbers, and `why`
      says so. `earlier`: what floating point was taken for before.
    - "classification", for two outputs or more: classes, in floating point too, shape (batch,) or (batch, 1); one-hot
      rows; rows of shares, which are not negative and sum up to 1.
    - "binary", for one or two outputs: 0 and 1, or the share of class 1, shape (batch,) or (batch, 1).
    - "regression": numbers of the outputs' shape.

    Raises ArgumentError for labels that do not fit, and for several classes at once.
    """
    if not isinstance(y, Tensor):
        raise ArgumentError("y", type(y).__name__, accepted="a torch.Tensor", hint="Use torch.as_tensor(y).")
    if y.is_complex() or y.dim() not in (1, 2) or len(y) != len(out):
        raise _wrong(y, f"one label for each of {len(out)} samples", "Give one per sample, or one row per sample.")
    if y.device != out.device:
        raise ArgumentError(
            "y", f"on {y.device}", accepted=f"the device of the model, {out.device}", hint=f"y.to('{out.device}')."
        )
    outputs, why = out.shape[1], ""
    y = y.squeeze(1) if y.dim() == 2 and y.shape[1] == 1 else y
    if task is None:
        if y.is_floating_point() and earlier is not None:
            task = earlier
        else:
            task, why = _guessed(y, outputs)
    read = {"classification": _classes, "binary": _binary, "regression": _numbers}[task]
    try:
        found = read(y, out)
    except ArgumentError as error:
        if earlier is None or not y.is_floating_point() or task is not earlier:
            raise
        error.add_note(f"Labels were taken for those of {earlier!r} in an earlier batch; name the task of the loss.")
        raise
    classes, shares, numbers = found
    return Labels(task, classes, shares, numbers, why)


def said_of(labels: Labels) -> str:
    """The warning that the task of these labels was guessed: what it is, why, and how to name it."""
    others = " or ".join(f'task="{task}"' for task in get_args(Task) if task != labels.task)
    return (
        f'labels are {labels.why}: taken for those of {labels.task}. Name task="{labels.task}" to keep it so, '
        f"or {others}"
    )


def check_task(task: object) -> None:
    """Raises ArgumentError unless `task` is one of the three, or None."""
    if task is not None and task not in get_args(Task):
        raise ArgumentError(
            "task", repr(task), accepted=f"{', '.join(map(repr, get_args(Task)))}, or None", hint="What are the labels?"
        )


def _guessed(y: Tensor, outputs: int) -> tuple[Task, str]:
    """The task of labels whose task was not named, and why it is that, where there is another reading."""
    bits = not y.is_floating_point() or bool(((y == 0) | (y == 1)).all())
    rows = y.dim() == 2 and y.shape[1] == outputs
    if not y.is_floating_point():
        if rows and _one_hot(y):
            return "classification", "integers with a single one in each row"
        return ("binary" if outputs == 1 else "classification"), ""
    if y.dim() == 2 or outputs > 1:
        if not rows:
            hint = 'Give classes as integers, for example y.long(), or name task="classification".'
            raise _wrong(y, f"numbers of shape {(len(y), outputs)}, or classes", hint)
        if not bool(y.any()):
            return "regression", ""  # no class is named
        if bits and not _one_hot(y):
            raise _wrong(
                y, "one class per sample, or its shares, which sum up to 1",
                'Several classes at once have no loss here; task="regression" takes them for numbers.',
            )  # fmt: skip
        if bits or _are_shares(y):
            return "classification", f"floating point with {'a single one in' if bits else 'a sum of 1 in'} each row"
    elif bits:
        return "binary", "floating point of zeros and ones alone"
    inside = bool(((y >= 0) & (y <= 1)).all())
    return "regression", "floating point between 0 and 1" if inside else ""


_Read = tuple[Tensor | None, Tensor | None, Tensor | None]
"""Classes, shares and numbers."""


def _classes(y: Tensor, out: Tensor) -> _Read:
    outputs = out.shape[1]
    if outputs == 1:
        raise _unsuited("classification", 1, "two or more outputs", 'A model of one output is task="binary".')
    if y.dim() == 2:
        if y.shape[1] != outputs or not (_one_hot(y) or _are_shares(y)):
            raise _wrong(
                y, f"classes of shape ({len(y)},), or rows of {outputs} shares that are not negative and sum up to 1",
                "Give classes, such as y.argmax(1) of one-hot rows, or divide shares by their sum.",
            )  # fmt: skip
        if _one_hot(y):
            return y.long().argmax(1), None, None
        shares = y.to(out.dtype)
        return shares.argmax(1), shares / shares.sum(1, keepdim=True), None
    if y.is_floating_point() and not bool((y == y.round()).all()):
        raise _wrong(y, "whole numbers, the classes", 'For numbers, name task="regression".')
    return _in_range(y, outputs), None, None


def _binary(y: Tensor, out: Tensor) -> _Read:
    outputs = out.shape[1]
    if outputs > 2:
        raise _unsuited("binary", outputs, "one or two outputs", 'Several classes are task="classification".')
    if y.dim() == 2:
        if outputs == 2:
            return _classes(y, out)
        raise _wrong(y, f"one label per sample, shape ({len(y)},)", "Give the class, 0 or 1, or the share of class 1.")
    if not y.is_floating_point() or bool(((y == 0) | (y == 1)).all()):
        return _in_range(y, 2), None, None
    if not bool(((y >= 0) & (y <= 1)).all()):
        raise _wrong(
            y, "0 and 1, or shares of class 1 between them",
            'Turn -1 and 1 into them with (y + 1) / 2; for numbers, name task="regression".',
        )  # fmt: skip
    share = y.to(out.dtype)
    shares = torch.stack((1 - share, share), 1)
    return shares.argmax(1), shares, None


def _numbers(y: Tensor, out: Tensor) -> _Read:
    y = y.unsqueeze(1) if y.dim() == 1 else y
    if y.shape != out.shape:
        raise _wrong(
            y, f"numbers of shape {tuple(out.shape)}", 'Give one per output; for classes, name task="classification".'
        )
    return None, None, y.to(out.dtype)


def _in_range(y: Tensor, classes: int) -> Tensor:
    y = y.long()
    if not (int(y.min()) >= 0 and int(y.max()) < classes):
        raise ArgumentError(
            "y", f"between {int(y.min())} and {int(y.max())}", accepted=f"class indices from 0 to {classes - 1}",
            hint='Count classes from zero, and check that they are this model\'s; for numbers, name task="regression".',
        )  # fmt: skip
    return y


def _one_hot(y: Tensor) -> bool:
    return bool(((y == 0) | (y == 1)).all()) and bool((y.sum(1) == 1).all())


def _are_shares(y: Tensor) -> bool:
    return y.is_floating_point() and bool((y >= 0).all()) and bool(((y.sum(1) - 1).abs() <= SUM).all())


def _wrong(y: Tensor, accepted: str, hint: str) -> ArgumentError:
    return ArgumentError("y", f"of shape {tuple(y.shape)} and {y.dtype}", accepted=accepted, hint=hint)


def _unsuited(task: Task, outputs: int, accepted: str, hint: str) -> ArgumentError:
    return ArgumentError(
        "task", f"{task!r}, for a model of {outputs} output{'s' * (outputs != 1)}", accepted=accepted, hint=hint
    )
