"""Refuses models whose samples depend on each other: a certificate is about one sample, whatever is beside it.

A mean over the batch, a division by its length, a softmax along it: what such a model answers at a point of the ball
depends on the other samples, and those move as well. The batch may have any length when the model is used, so a model
is tried with several, also where it is handed one sample at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import suppress

import torch
from torch import Tensor, nn

from robust_plugins.adapters.lirpa.failures import out_of_memory
from robust_plugins.errors import UnsupportedModelError
from robust_plugins.harness.functional import called, in_precision

_LENGTHS = (2, 3, 5)
_SPREADS = (1.0, 20.0)
"""How far the samples tried lie from those given: a dependence may be behind an activation that is seldom open."""

Run = Callable[[Tensor], Tensor]


def refuse_mixed(model: nn.Module, x: Tensor) -> None:
    """Raises UnsupportedModelError where a sample's logits change with the other samples, or with their number.

    `model` is in evaluation mode; it runs on copies of `x` and of points around it, in double precision where it can. A
    sample that is not a number must leave the others as they are: however small a dependence is, that shows it. Where
    the model runs with the length of `x` alone, the other samples are exchanged, but not their number.
    """
    with torch.no_grad():
        run, x = _precise(model, x)
        if any(_mixed(run, samples) for samples in _batches(x)):
            raise UnsupportedModelError(
                f"the logits that {type(model).__name__} gives a sample depend on the other samples of the batch; a "
                "certificate of one sample would not hold beside others. Leave out what computes along the batch axis"
            )


def _precise(model: nn.Module, x: Tensor) -> tuple[Run, Tensor]:
    def run(z: Tensor) -> Tensor:
        found: Tensor = model(z.clone())
        return found

    state = in_precision(model, torch.float64)

    def precise(z: Tensor) -> Tensor:
        found: Tensor = called(model, state, z.clone())
        return found

    with suppress(Exception):  # constants or a device of single precision
        x64 = x.detach().double()
        if precise(x64).dtype == torch.float64:
            return precise, x64
    return run, x.detach()


def _batches(x: Tensor) -> Iterator[Tensor]:
    """Batches of every length to be tried, near the samples of `x` and far from them."""
    generator = torch.Generator().manual_seed(0)
    lengths = dict.fromkeys((*_LENGTHS, *([len(x)] if len(x) <= 16 else [])))
    for length in lengths:
        for spread in _SPREADS:
            noise = torch.randn((length, *x.shape[1:]), generator=generator, dtype=x.dtype).to(x.device)
            yield x[torch.arange(length) % len(x)] + spread * noise


def _mixed(run: Run, samples: Tensor) -> bool:
    together = _attempt(run, samples)
    if together is None:  # runs with another length alone
        return False
    if len(together) != len(samples):
        return True
    one_by_one = [_attempt(run, samples[i : i + 1]) for i in range(len(samples))]
    alone = [out for out in one_by_one if out is not None]
    if len(alone) == len(samples) and any(out.shape != together[:1].shape for out in alone):
        return True
    if len(alone) == len(samples) and not _same(torch.cat(alone), together):
        return True
    for i in range(len(samples)) if len(samples) <= 3 else (0, len(samples) - 1):
        others = torch.arange(len(samples)) != i
        for value in (math.nan, 1e3):
            changed = samples.clone()
            changed[i] = value
            beside = _attempt(run, changed)
            if beside is not None and not _same(beside[others], together[others]):
                return True
    return False


def _attempt(run: Run, z: Tensor) -> Tensor | None:
    try:
        return run(z)
    except Exception as error:
        if out_of_memory(error):
            raise
        return None


def _same(found: Tensor, expected: Tensor) -> bool:
    """Equal up to rounding where `expected` is finite."""
    known = expected.isfinite()
    if not bool(known.any()):
        return True
    found, expected = found[known], expected[known]
    if not bool(found.isfinite().all()):
        return False
    few = 1e7 if found.dtype == torch.float64 else 1e3
    tolerance = few * torch.finfo(found.dtype).eps * (float(expected.abs().amax()) + 1)
    return bool(((found - expected).abs() <= tolerance).all())
