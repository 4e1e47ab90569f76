"""Running somebody's model and leaving no trace: evaluation mode, gradients, flags and random states."""

from __future__ import annotations

import operator
import random
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from robust_plugins.errors import ArgumentError, ComponentError
from robust_plugins.harness.functional import called, in_precision, other_precision
from robust_plugins.harness.guard import Found

NEIGHBOURS = 3
"""At how many points beside a sample rounding errors are measured where a verdict depends on them."""


@contextmanager
def evaluating(
    model: nn.Module, *, seed: int | None = None, freeze: bool = False, guarded: bool = True, thorough: bool = True
) -> Iterator[Found | None]:
    """Puts `model` into evaluation mode, and on leaving restores all that a backend may have changed.

    Restored: the mode of every submodule, its hooks and attributes, `requires_grad` and `.grad` of every parameter, the
    values of weights and buffers, torch's default dtype, and the random states of torch (all initialised devices),
    numpy and python. Gives what was found, which tells what has been changed, and None unless `guarded`; `thorough` is
    that of `Found`.

    With `seed` the random states are seeded inside. `freeze` switches weight gradients off inside, for those who only
    need gradients of inputs. Raises ComponentError where weights were changed.
    """
    modes = tuple(_modes(model))
    parameters = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    with _random_states():
        found, ended = None, False
        try:
            if any(training for _, training in modes):
                _to_evaluation(model)
            for parameter, _, _ in parameters:
                parameter.grad = None  # a backend that adds to the gradient in place then never touches the user's
                if freeze:
                    parameter.requires_grad_(False)
            found = Found(model, thorough=thorough) if guarded else None
            if seed is not None:
                seed_everything(seed)
            yield found
            ended = True
            if found is not None and any(change.kind == "weights" for change in found.settle()):
                raise ComponentError("the model's weights were changed by the component that was run on it")
        finally:
            if found is not None and not ended:
                found.settle()
            for module, training in modes:
                module.training = training
            for parameter, requires_grad, grad in parameters:
                if parameter.requires_grad != requires_grad:
                    parameter.requires_grad_(requires_grad)
                parameter.grad = grad


@contextmanager
def keeping_modes(model: nn.Module) -> Iterator[None]:
    """Restores the mode of every submodule on leaving, training or evaluation."""
    modes = tuple(_modes(model))
    try:
        yield
    finally:
        for module, training in modes:
            if module.training is not training:
                module.training = training


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Puts `model` into evaluation mode, and on leaving restores the mode of every submodule, and nothing else."""
    with keeping_modes(model):
        if any(training for _, training in _modes(model)):
            _to_evaluation(model)
        yield


def evaluation_error(
    model: nn.Module,
    x: Float[Tensor, "batch *features"],
    logits: Float[Tensor, "batch classes"],
    *,
    where: Bool[Tensor, " batch"] | None = None,
    neighbours: int = 0,
) -> Float[Tensor, " batch"]:
    """How far each sample's `logits`, the model's on `x`, are from those of real arithmetic.

    The rounding error of the model's own evaluation, measured: where large terms cancel, it is far above the dtype's
    precision times the logits. For float32 and narrower the distance from the same model in float64; for float64 that
    from the same model in float32, times the ratio of both precisions, which is its size and not itself. Zero for
    models that cannot be run in another dtype, and, with `where`, for the samples that it leaves out.

    At a single point rounding errors may cancel by luck. `neighbours` says at how many points more, a few units in
    the last place away from `x`, it is measured; the largest counts.
    """
    generator = torch.Generator().manual_seed(0)
    precision = torch.finfo(torch.float32 if x.dtype == torch.float64 else x.dtype).eps
    off = torch.zeros_like(logits[:, 0])
    some = where is not None and not bool(where.all())
    if some and where is not None and not bool(where.any()):
        return off
    steps = [torch.randint(-4, 5, x.shape, generator=generator).to(x) for _ in range(neighbours)]
    points = [x, *(x * (1 + precision * step) for step in steps)]
    for rows in ([where] if some else []) + [slice(None)]:  # some models run with one batch size alone
        try:
            with torch.no_grad():
                found = [_distance(model, point[rows], logits[rows] if point is x else None) for point in points]
        except (
            Exception
        ):  # constants of a fixed dtype, TorchScript, a device without float64: what the model is made of
            continue
        off[rows] = torch.stack(found).amax(0).to(x.dtype)
        break
    return off


def _distance(model: nn.Module, x: Tensor, logits: Tensor | None) -> Tensor:
    """How far the logits at these points, the model's unless given, are from those of the other precision."""
    dtype, ratio = other_precision(x.dtype)
    other: Tensor = called(model, in_precision(model, dtype), x.to(dtype))
    own: Tensor = model(x) if logits is None else logits
    distance = (other.double() - own.double()).abs().amax(1)
    # The narrower range of float32 may overflow, which tells nothing.
    return ratio * distance.nan_to_num(nan=0.0, posinf=0.0) if dtype == torch.float32 else distance


def fresh_seed() -> int:
    """A seed drawn from the operating system, valid for torch, numpy and python: 32 bits."""
    return secrets.randbits(32)


def checked_seed(seed: int | None) -> int:
    """`seed`, or a fresh one for None. Raises ArgumentError for what is no integer, or one that torch does not take."""
    if seed is None:
        return fresh_seed()
    try:
        number = operator.index(seed)
        fits = -(2**63) <= number < 2**64
    except TypeError:
        fits = False
    if not fits:
        raise ArgumentError(
            "seed", repr(seed), accepted="an integer of at most 64 bits", hint="Take 0, or None for one that is drawn."
        )
    return number


def seed_everything(seed: int) -> None:
    """Seeds the global generators of torch (all devices), numpy (if imported) and python.

    Raises ArgumentError for what is no integer, or one that torch does not take.
    """
    seed = checked_seed(seed)
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:  # that would record, with a stack trace each, what to do should a device turn up: it takes half a millisecond
        torch.default_generator.manual_seed(seed)
    random.seed(seed)
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(seed % 2**32)


def synchronize(x: Tensor) -> None:
    """Waits for the device of `x`, so that a clock read next to it measures work and not its launch."""
    if x.device.type != "cpu":
        torch.accelerator.synchronize(x.device)


def _modes(model: nn.Module) -> Iterator[tuple[nn.Module, bool]]:
    # Frozen TorchScript modules are in evaluation mode and have no flag for it.
    return ((module, module.training) for module in model.modules() if hasattr(module, "training"))


def _to_evaluation(model: nn.Module) -> None:
    try:
        model.eval()
    except NotImplementedError:  # modules from torch.export forbid eval()
        for module in model.modules():
            module.training = False


@contextmanager
def torch_random_states() -> Iterator[None]:
    """Puts torch's random states back, of the CPU and of all initialised devices."""
    before = torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        torch.set_rng_state(before)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


@contextmanager
def _random_states() -> Iterator[None]:
    """Puts those of numpy and python back as well, which takes a hundred times as long."""
    numpy = sys.modules.get("numpy")
    before = random.getstate(), numpy.random.get_state() if numpy else None
    try:
        with torch_random_states():
            yield
    finally:
        random.setstate(before[0])
        if numpy and before[1] is not None:
            numpy.random.set_state(before[1])
