"""Models with gradients that a search can follow, in the place of models that have none or draw at random."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from robust_plugins.errors import ArgumentError
from robust_plugins.harness.wrappers import as_module

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)

_ROUNDING = {
    getattr(where, name)
    for where in (torch, Tensor)
    for name in ("round", "floor", "ceil", "trunc", "fix", "sign", "sgn")
}
_IN_PLACE = {
    getattr(Tensor, name + "_"): getattr(torch, name) for name in ("round", "floor", "ceil", "trunc", "fix", "sign")
}
_DIVISIONS = {torch.floor_divide, Tensor.floor_divide, Tensor.__floordiv__, torch.div, Tensor.div}
_CASTS = {Tensor.to, Tensor.type, Tensor.byte, Tensor.char, Tensor.short, Tensor.int, Tensor.long}


def straight_through(model: nn.Module) -> nn.Module:
    """A model that computes what `model` computes, and whose steps have the gradient of what they round.

    Roundings (`round`, `floor`, `ceil`, `trunc`), signs, floor divisions and casts of floating-point numbers to
    integers are passed as if they were the identity, or the division: the straight-through estimator of Bengio et al.
    2013, "Estimating or propagating gradients through stochastic neurons". Outputs are equal to those of `model` to the
    bit, so an attack on one is an attack on the other. Comparisons, TorchScript and autograd functions of one's own
    keep the gradients that they have; a cast whose result is an index fails.

    Example: `rp.attack("rp:margin-pgd")(rp.straight_through(model), x, y, ball)`.
    """
    return _StraightThrough(as_module(model, None))


def averaged(model: nn.Module, *, draws: int = 16, seed: int | None = None) -> nn.Module:
    """The model whose logits are the mean of `draws` evaluations of `model`, which draws at random.

    Gradients of it are those of expectation over transformation (Athalye et al. 2018, "Obfuscated gradients give a
    false sense of security"). With `seed` the draws are the same at every call, so that claims can be repeated, for
    draws from torch's generators; otherwise they are fresh. Raises ArgumentError for draws < 1.
    """
    return _Averaged(as_module(model, None), draws, seed)


class _Averaged(nn.Module):
    def __init__(self, model: nn.Module, draws: int, seed: int | None) -> None:
        super().__init__()
        if not isinstance(draws, int) or isinstance(draws, bool) or draws < 1:
            raise ArgumentError("draws", repr(draws), accepted="an integer of at least 1", hint="16 is the default.")
        self.model, self.draws, self.seed = model, draws, seed

    def forward(self, x: Float[Tensor, "batch *features"]) -> Float[Tensor, "batch classes"]:
        """The mean of the logits."""
        with torch.random.fork_rng() if self.seed is not None else nullcontext():
            if self.seed is not None:
                torch.manual_seed(self.seed)
            # One after the other: a draw may be shared by the whole batch.
            total: Tensor = sum((self.model(x) for _ in range(1, self.draws)), self.model(x))
        return total / self.draws


class _StraightThrough(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Float[Tensor, "batch *features"]) -> Float[Tensor, "batch classes"]:
        """The model's output."""
        if not torch.is_grad_enabled():
            return self.model(x)  # type: ignore[no-any-return]
        with _Passing():
            return self.model(x)  # type: ignore[no-any-return]


class _Passing(TorchFunctionMode):
    """Gives steps the gradient of their argument."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        x = args[0] if args else None
        if not isinstance(x, Tensor) or not x.is_floating_point() or not x.requires_grad:
            return func(*args, **kwargs)
        if func in _IN_PLACE:
            return x.copy_(_passed(x.clone(), _IN_PLACE[func](x.detach(), *args[1:], **kwargs)))
        if func in _ROUNDING:
            smooth = x.clamp(-1, 1) if func.__name__ in ("sign", "sgn") else x  # flat where a step is far
            return _passed(smooth, func(*args, **kwargs))
        if func in _DIVISIONS:
            mode = kwargs.get("rounding_mode")
            if mode is None and func.__name__ in ("div", "true_divide"):
                return func(*args, **kwargs)
            return _passed(torch.true_divide(x, args[1] if len(args) > 1 else kwargs["other"]), func(*args, **kwargs))
        if func in _CASTS:
            out = func(*args, **kwargs)
            return _passed(x, out.to(x)) if isinstance(out, Tensor) and out.dtype in INTEGERS else out
        return func(*args, **kwargs)


class _Passed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, smooth: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0], None


def _passed(smooth: Tensor, value: Tensor) -> Tensor:
    """`value`, with the gradient of `smooth`."""
    passed: Tensor = _Passed.apply(smooth, value.detach())
    return passed
