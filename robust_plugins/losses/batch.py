"""`Batch`: one batch on its way through a loss. What several terms need is computed once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from robust_plugins.balls import Ball
from robust_plugins.decisions.attack import Attack
from robust_plugins.errors import ArgumentError
from robust_plugins.harness.arguments import check_labels
from robust_plugins.harness.wrappers import TwoLogits, unwrapped
from robust_plugins.losses.refused import refused_inputs
from robust_plugins.losses.statistics import recorded, replayed, standing_in


class Batch:
    """A model, inputs, labels and the ball of the moment; `clean` is there, all else is computed when asked for.

    - `model`: what attacks and certifiers are given: logits of two or more classes, or two or more numbers.
    - `clean`: its outputs at `x` in its own mode, through the module that was given (DistributedDataParallel
      synchronises in its forward), with gradients only where `clean_counts`.
    - `factor`: how far the ramp has come, from 0 to 1; `epoch` where training is.
    - `pair`: the wrapper of the batch before, for a model of one output: graphs are traced once per module.
    - `continuous`: whether the labels are numbers, so that the loss is the mean squared error.
    """

    def __init__(
        self, model: nn.Module, x: Tensor, y: Tensor, ball: Ball | None, *,
        factor: float = 1.0, epoch: float = 0.0, clean_counts: bool = True, pair: TwoLogits | None = None,
    ) -> None:  # fmt: skip
        if not isinstance(model, nn.Module):
            raise ArgumentError(
                "model", type(model).__name__, accepted="a torch.nn.Module", hint="Wrap a function in an nn.Module."
            )
        self._inner, parallel = unwrapped(model), isinstance(model, DistributedDataParallel)
        if not isinstance(y, Tensor):
            raise ArgumentError("y", type(y).__name__, accepted="a torch.Tensor", hint="Use torch.as_tensor(y).")
        self.x, self.factor, self.epoch = x, factor, epoch
        self.continuous = y.is_floating_point()
        with (
            recorded(self._inner) as self._statistics,
            torch.set_grad_enabled(torch.is_grad_enabled() and (clean_counts or parallel or self._normalises())),
        ):
            try:
                out = model(x)
            except Exception as error:
                if (refused := refused_inputs(error, model, x)) is None:
                    raise
                raise refused from error
        if not isinstance(out, Tensor) or out.dim() != 2 or len(out) != len(x):
            shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ArgumentError(
                "model", f"returning {shape}", accepted="outputs of shape (batch, classes)",
                hint="For one output, return the shape (batch, 1).",
            )  # fmt: skip
        self.single = out.shape[1] == 1
        self.model = self._inner
        if self.single:
            self.model = pair if pair is not None and pair.model is self._inner else TwoLogits(self._inner)
        self.clean: Tensor = torch.cat((-out, out), 1) / 2 if self.single and not self.continuous else out
        self.y = self._labels(y)
        self._ball = ball if ball is None or factor == 1.0 else ball.scaled(factor)
        self._seen: dict[object, Tensor] = {}

    @property
    def ball(self) -> Ball:
        """The ball, its radius scaled by the ramp. Raises ArgumentError where the loss has none."""
        if self._ball is None:
            raise ArgumentError("ball", None, accepted="rp.Linf, rp.L2 or rp.L1", hint="The worst case needs one.")
        return self._ball

    def loss(self, out: Tensor) -> Tensor:
        """The loss of outputs: cross-entropy, or for continuous labels the mean squared error. A scalar."""
        return F.mse_loss(out, self.y) if self.continuous else F.cross_entropy(out, self.y)

    def attacked(self, attack: Attack) -> Tensor:
        """Adversarial examples, found in evaluation mode; reproducible from torch's random state."""
        key = ("inputs", attack)
        if key not in self._seen:
            if self.continuous:
                raise ArgumentError(
                    "y", f"of {self.y.dtype}, with an attack", accepted="classes", hint="Use a certifier for numbers."
                )
            seed = int(torch.randint(2**31, ()))
            self._seen[key] = attack.search(self.model, self.x, self.y, self.ball, seed=seed)
        return self._seen[key]

    def adversarial(self, attack: Attack) -> Tensor:
        """The outputs on adversarial examples."""
        key = ("outputs", attack)
        if key not in self._seen:
            self._seen[key] = self.at(self.attacked(attack))
        return self._seen[key]

    def at(self, x: Tensor) -> Tensor:
        """The model's outputs at other inputs, in its own mode, normalised by the clean batch's statistics."""
        with replayed(self._statistics):
            out: Tensor = self.model(x)
        return out

    def bounding(self, *, history: bool) -> AbstractContextManager[None]:
        """Within it, the running statistics of batch normalisation are those of the clean batch.

        With their `history`, for bounds that do not run torch's own layers, gradients flow through them.
        """
        return standing_in(self._statistics, history=history)

    def worst(self, source: WorstCase) -> Tensor:
        """The worst outputs according to `source`."""
        if source not in self._seen:
            self._seen[source] = source.outputs(self)
        return self._seen[source]

    @cached_property
    def wrong(self) -> Tensor:
        """Which entries of the logits belong to wrong classes: shape (batch, classes)."""
        return torch.arange(self.clean.shape[1], device=self.y.device) != self.y.unsqueeze(1)

    def _normalises(self) -> bool:
        """Whether the statistics of the clean inputs take part in other terms, and so in their gradients."""
        return any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in self._inner.modules())

    def _labels(self, y: Tensor) -> Tensor:
        if self.continuous:
            y = y.unsqueeze(1) if y.dim() == 1 else y
            if y.shape != self.clean.shape:
                raise ArgumentError(
                    "y", f"of shape {tuple(y.shape)}", accepted=f"numbers of shape {tuple(self.clean.shape)}",
                    hint="Give classes as integers, for example y.long().",
                )  # fmt: skip
            return y
        y = y.squeeze(1) if y.dim() == 2 and y.shape[1] == 1 else y
        y = y.long()  # bool, too: classes 0 and 1
        check_labels(y, self.x, self.clean.shape[1])
        return y


@dataclass(frozen=True, kw_only=True)
class WorstCase(ABC):
    """A source of worst outputs over the ball, differentiable in the model's parameters."""

    @property
    def certified(self) -> bool:
        """Whether it comes from bounds, with which training collapses unless they are ramped."""
        return False

    @abstractmethod
    def outputs(self, batch: Batch) -> Tensor:
        """Worst logits, shape (batch, classes), or for continuous labels the worst numbers, of the labels' shape."""
