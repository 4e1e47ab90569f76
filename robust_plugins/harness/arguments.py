"""The checks that every public call makes on a model, a batch, its labels and a ball."""

from __future__ import annotations

import re

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robust_plugins.balls import Ball
from robust_plugins.errors import ArgumentError, of_type
from robust_plugins.harness.component import chunks
from robust_plugins.harness.final_layer import before_sigmoid, before_softmax, refuse_probabilities
from robust_plugins.harness.wrappers import Logits, TwoLogits, Untouched, as_module, logits_in

MISFIT = re.compile(r"shapes cannot be multiplied|expected input|Expected .*(dimension|input|channels)|size of tensor")
"""What torch says where a layer does not take inputs of such a shape."""


def check_inputs(model: object, x: Tensor, ball: Ball) -> nn.Module:
    """The module that `model` stands for: itself, or what an estimator of another library computes.

    Raises ArgumentError unless `x` is a finite float32 or float64 batch inside the ball's clip range, of the model's
    dtype and device.
    """
    if not isinstance(ball, Ball):
        raise ArgumentError(
            "ball",
            repr(ball),
            accepted="rp.Linf, rp.L2, rp.L1 or rp.Box",
            hint="For example rp.Linf(eps=0.1, clip=(0, 1)).",
        )
    model = as_module(model, ball)
    if not isinstance(x, Tensor):
        raise ArgumentError(
            "x", type(x).__name__, accepted="a torch.Tensor of shape (batch, *features)", hint="Use torch.as_tensor(x)."
        )
    if x.layout != torch.strided:
        raise ArgumentError("x", f"of layout {x.layout}", accepted="a dense tensor", hint="Give x.to_dense().")
    if x.dim() < 2 or x.dtype not in (torch.float32, torch.float64):
        raise ArgumentError(
            "x",
            f"{tuple(x.shape)} {x.dtype}",
            accepted="a batch of shape (batch, *features) in float32 or float64",
            hint="Add the batch axis with x.unsqueeze(0); convert x, and a model in half precision, with .float().",
        )
    for parameter in model.parameters():
        if parameter.is_floating_point():
            if parameter.dtype not in (torch.float32, torch.float64):
                raise ArgumentError(
                    "model",
                    f"in {parameter.dtype}",
                    accepted="a model in float32 or float64",
                    hint="Convert it with model.float(): bounds and attacks are not computed in half precision.",
                )
            if parameter.dtype != x.dtype or parameter.device != x.device:
                raise ArgumentError(
                    "x",
                    f"{x.dtype} on {x.device}",
                    accepted=f"the model's dtype and device, {parameter.dtype} on {parameter.device}",
                    hint="Convert one of them, for example x.to(next(model.parameters())).",
                )
            break
    ball.check(x)
    return model


def check_labels(y: Tensor, x: Tensor, classes: int, *, name: str = "y") -> None:
    """Raises ArgumentError unless `y` holds one class index in [0, classes) per sample."""
    if not isinstance(y, Tensor) or y.is_floating_point() or y.dtype == torch.bool or y.shape != x.shape[:1]:
        found = f"{tuple(y.shape)} {y.dtype}" if isinstance(y, Tensor) else type(y).__name__
        raise ArgumentError(
            name,
            found,
            accepted=f"an integer tensor of shape ({len(x)},), one class index per sample",
            hint="Convert one-hot rows with y.argmax(1), and lists with torch.tensor(y).",
        )
    if y.device != x.device:
        raise ArgumentError(
            name, f"on {y.device}", accepted=f"x's device, {x.device}", hint="Move it with .to(x.device)."
        )
    if len(y) and not (int(y.min()) >= 0 and int(y.max()) < classes):
        raise ArgumentError(
            name,
            f"between {int(y.min())} and {int(y.max())}",
            accepted=f"class indices from 0 to {classes - 1}",
            hint="Count classes from zero, and check that the labels belong to this model.",
        )


def check_spec(spec: Tensor, x: Tensor, classes: int) -> None:
    """Raises ArgumentError unless `spec` is a matrix of rows per sample, (rows, classes), of x's dtype and device."""
    if not isinstance(spec, Tensor):
        found = type(spec).__name__
    elif spec.dim() != 3 or len(spec) != len(x) or spec.shape[2] != classes or not spec.shape[1]:
        found = f"of shape {tuple(spec.shape)}"
    elif spec.dtype != x.dtype or spec.device != x.device:
        found = f"{spec.dtype} on {spec.device}"
    else:
        return
    raise ArgumentError(
        "spec",
        found,
        accepted=f"a tensor of shape ({len(x)}, rows, {classes}), rows > 0, {x.dtype} on {x.device}",
        hint="Give one matrix per sample, as rp.margin_spec(y, classes, dtype=x.dtype) does.",
    )


def as_labels(y: Tensor, x: Tensor, classes: int, *, name: str = "y") -> Int[Tensor, " batch"]:
    """`y` as int64 labels, checked as `check_labels` does. Integers of any dtype, bool, and shape (batch, 1) count."""
    if isinstance(y, Tensor) and not y.is_floating_point() and not y.is_complex():
        y = y.long()
        if y.dim() == 2 and y.shape[1] == 1:
            y = y.squeeze(1)
    check_labels(y, x, classes, name=name)
    return y


def decided(
    model: nn.Module, x: Float[Tensor, "batch *features"], *, size: int | None = None, outputs: bool = False
) -> tuple[nn.Module, Float[Tensor, "batch classes"]]:
    """The module that gives logits of two or more classes in the place of `model`, and its logits at `x`.

    - A model of one output z, of shape (batch,) or (batch, 1), gets the logits (-z/2, z/2); a sigmoid at its end,
      however it is written, is left out, so that the decision is that of the probability 1/2.
    - A softmax or log-softmax at the end is left out, which changes no decision, unless `outputs`: then the numbers
      that `model` returns are wanted and no others.
    - A model that returns a record with the field `logits`, as those of transformers do, gives these.
    - A model whose forward changes its input in place is given copies.

    Any other model is returned as it is. `size` is the number of samples that it may see at a time, None for all.
    Raises ArgumentError for outputs that are no logits, or probabilities behind no sigmoid that can be found.
    """
    first = x[:size]
    given = first.clone()
    try:
        out = model(given)
    except AssertionError as error:
        if not hasattr(model, "_guards_fn"):
            raise
        raise ArgumentError(
            "model",
            f"exported for other inputs than {len(first)} of shape {tuple(first.shape[1:])} ({error})",
            accepted="a program of torch.export that takes batches of any size",
            hint="Give the module that it was made from, or export it with "
            '`dynamic_shapes=({0: torch.export.Dim("batch")},)`.',
        ) from error
    except RuntimeError as error:
        if not MISFIT.search(str(error)):
            raise
        raise ArgumentError(
            "x",
            f"of samples of shape {tuple(x.shape[1:])}, on which the model raises: {error}",
            accepted="inputs of the shape that the model takes",
            hint="Compare the shape with the model's first layer.",
        ) from error
    if given._version:
        model = Untouched(model)
    if (found := logits_in(out)) is not out:
        model, out = Logits(model), found
    if isinstance(out, Tensor) and len(out.shape) and len(out) == len(first) and out.shape[1:] in ((), (1,)):
        before = before_sigmoid(model, first, out)
        if before is not None:
            model, out = before, before(first.clone())
        else:
            refuse_probabilities(model, first, out)
        model = TwoLogits(model, flat=out.dim() == 1)
        z = out.reshape(-1, 1) / 2
        logits = torch.cat((-z, z), 1)
    else:
        logits = _checked(out, first)
        while not outputs and (before := before_softmax(model, first, logits)) is not None:
            model, logits = before, before(first.clone())
    if len(first) == len(x):
        return model, logits
    return model, torch.cat((logits, logits_of(model, x[len(first) :], size=size)))


def first_decided(
    model: nn.Module, x: Float[Tensor, "batch *features"], *, size: int | None = None, outputs: bool = False
) -> tuple[nn.Module, int]:
    """The module that `decided` gives and the number of classes, found by running the first sample alone."""
    try:
        model, logits = decided(model, x[:1], outputs=outputs)
    except Exception as error:
        if isinstance(error, ArgumentError) and not isinstance(error.__cause__, AssertionError):
            raise
        # A model that was exported for the batch size of x, say.
        model, logits = decided(model, x[:size], outputs=outputs)
    return model, logits.shape[1]


def logits_of(
    model: nn.Module, x: Float[Tensor, "batch *features"], *, size: int | None = None
) -> Float[Tensor, "batch classes"]:
    """`model(x)`, checked to be logits of shape (batch, classes) with at least two classes. `x` is left as it is.

    `size` is the number of samples that the model may see at a time, None for all.
    """
    if size is None or len(x) <= size:
        return _checked(model(x.clone()), x)
    return torch.cat([_checked(model(x[part].clone()), x[part]) for part in chunks(len(x), size)])


def _checked(out: object, x: Tensor) -> Tensor:
    if not isinstance(out, Tensor):
        raise ArgumentError(
            "model",
            f"returning {of_type(out)}",
            accepted="a model that returns one tensor of logits, shape (batch, classes)",
            hint="Wrap it so that forward returns only the logits.",
        )
    if out.dim() != 2 or len(out) != len(x) or out.shape[1] < 2:
        raise ArgumentError(
            "model",
            f"returning the shape {tuple(out.shape)} for a batch of {len(x)}",
            accepted="logits of shape (batch, classes) with at least two classes, or one output per sample",
            hint="Wrap it so that forward returns one row of logits for each sample.",
        )
    return out
