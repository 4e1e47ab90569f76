"""`Batch`: one batch on its way through a loss. What several terms need is computed once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from robust_plugins.balls import Ball
from robust_plugins.decisions.attack import Attack
from robust_plugins.errors import ArgumentError
from robust_plugins.harness.call import ordinary
from robust_plugins.harness.wrappers import Logits, TwoLogits, logits_in, same_wrapping, unwrapped
from robust_plugins.losses.labels import Task, labels_of
from robust_plugins.losses.refused import refused_inputs
from robust_plugins.losses.statistics import recorded, replayed, standing_in


class Batch:
    """A model, inputs, labels and the ball of the moment; `clean` is there, all else is computed when asked for.

    - `model`: what attacks and certifiers are given: logits of two or more classes, or two or more numbers.
    - `clean`: its outputs at `x` in its own mode, through the module that was given (DistributedDataParallel
      synchronises in its forward), with gradients only where `clean_counts`.
    - `y`, `shares`: classes, and the shares of all of them where samples are not of one class alone; or numbers in `y`.
    - `factor`: how far the ramp has come, from 0 to 1; `epoch` where training is.
    - `earlier_model`: `model` of the batch before, which is kept where it wraps the same: graphs are traced once per
      module.
    - `task`: what the labels are, None to infer it, `earlier` what it was inferred to be before; see `labels_of`.
    """

    def __init__(
        self, model: nn.Module, x: Shaped[Tensor, "batch *features"], y: Shaped[Tensor, "batch *outputs"],
        ball: Ball | None, *,
        factor: float = 1.0, epoch: float = 0.0, clean_counts: bool = True, earlier_model: nn.Module | None = None,
        task: Task | None = None, earlier: Task | None = None,
    ) -> None:  # fmt: skip
        if not isinstance(model, nn.Module):
            raise ArgumentError(
                "model", type(model).__name__, accepted="a torch.nn.Module", hint="Wrap a function in an nn.Module."
            )
        self._inner, parallel = unwrapped(model), isinstance(model, DistributedDataParallel)
        self.x, self.factor, self.epoch = ordinary(x), factor, epoch
        with (
            recorded(self._inner) as self._statistics,
            torch.set_grad_enabled(torch.is_grad_enabled() and (clean_counts or parallel or self._normalises())),
        ):
            try:
                given = model(self.x.clone())  # whose first layer may work in place
            except Exception as error:
                if (refused := refused_inputs(error, model, x)) is None:
                    raise
                raise refused from error
        out = logits_in(given)
        record = out is not given
        flat = isinstance(out, Tensor) and out.shape == (len(x),)
        if not isinstance(out, Tensor) or not (flat or out.dim() == 2) or len(out) != len(x):
            shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ArgumentError(
                "model", f"returning {shape}", accepted="outputs of shape (batch, classes), or one per sample",
                hint="Wrap it so that forward returns one row, or one number, for each sample.",
            )  # fmt: skip
        out = out.unsqueeze(1) if flat else out
        self.single = out.shape[1] == 1
        plain = Logits(self._inner) if record else self._inner
        wrapped = TwoLogits(plain, flat=flat) if self.single else plain
        self.model = earlier_model if earlier_model is not None and same_wrapping(earlier_model, wrapped) else wrapped
        self.labels = labels_of(ordinary(y) if isinstance(y, Tensor) else y, out, task, earlier)
        self.continuous = self.labels.task == "regression"
        self.clean: Tensor = torch.cat((-out, out), 1) / 2 if self.single and not self.continuous else out
        found = self.labels.numbers if self.continuous else self.labels.classes
        assert found is not None  # one of the two is there
        self.y: Tensor = found
        self.shares = self.labels.shares
        self._ball = ball if ball is None or factor == 1.0 else ball.scaled(factor)
        self._seen: dict[object, Tensor] = {}

    @property
    def ball(self) -> Ball:
        """The ball, its radius scaled by the ramp. Raises ArgumentError where the loss has none."""
        if self._ball is None:
            raise ArgumentError("ball", None, accepted="rp.Linf, rp.L2 or rp.L1", hint="The worst case needs one.")
        return self._ball

    def loss(self, out: Float[Tensor, "batch outputs"]) -> Float[Tensor, ""]:
        """The loss of outputs: cross-entropy, or for continuous labels the mean squared error. A scalar.

        For `shares` q the outputs may have one column more, t in the place of `q . z`: log sum exp(z) - t, as worst
        cases do (see `WorstCase.outputs`).
        """
        if self.continuous:
            return F.mse_loss(out, self.y)
        if self.shares is None:
            return F.cross_entropy(out, self.y)
        if out.shape[1] == self.shares.shape[1] + 1:
            return (out[:, :-1].logsumexp(1) - out[:, -1]).mean()
        return F.cross_entropy(out, self.shares.to(out.dtype))

    def mixable(self, out: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch outputs"]:
        """Logits less that of the label, with the column that worst cases have for `shares`: what may be added to them.

        Zero at the label. Numbers are returned as they are.
        """
        if self.continuous:
            return out
        if self.shares is not None:
            out = torch.cat((out, (self.shares * out).sum(1, keepdim=True)), 1)
        return out - out.gather(1, self.y.unsqueeze(1))

    def attacked(self, attack: Attack) -> Float[Tensor, "batch *features"]:
        """Adversarial examples, found in evaluation mode; reproducible from torch's random state.

        For shares of classes, they are those of the class with the largest.
        """
        key = ("inputs", attack)
        if key not in self._seen:
            if self.continuous:
                raise ArgumentError(
                    "y", f"of {self.y.dtype}, with an attack", accepted="classes", hint="Use a certifier for numbers."
                )
            seed = int(torch.randint(2**31, ()))
            self._seen[key] = attack.search(self.model, self.x, self.y, self.ball, seed=seed)
        return self._seen[key]

    def adversarial(self, attack: Attack) -> Float[Tensor, "batch outputs"]:
        """The outputs on adversarial examples."""
        key = ("outputs", attack)
        if key not in self._seen:
            self._seen[key] = self.at(self.attacked(attack))
        return self._seen[key]

    def at(self, x: Float[Tensor, "batch *features"]) -> Float[Tensor, "batch outputs"]:
        """The model's outputs at other inputs, in its own mode, normalised by the clean batch's statistics."""
        with self.replaying():
            out: Tensor = self.model(x.clone())
        return out.unsqueeze(1) if out.dim() == 1 else out

    def replaying(self) -> AbstractContextManager[None]:
        """Within it, the model in its own mode is normalised by the clean batch's statistics, and moves none."""
        return replayed(self._statistics)

    def bounding(self, *, history: bool) -> AbstractContextManager[None]:
        """Within it, the running statistics of batch normalisation are those of the clean batch.

        With their `history`, for bounds that do not run torch's own layers, gradients flow through them.
        """
        return standing_in(self._statistics, history=history)

    def worst(self, source: WorstCase) -> Float[Tensor, "batch outputs"]:
        """The worst outputs according to `source`."""
        if source not in self._seen:
            self._seen[source] = source.outputs(self)
        return self._seen[source]

    @cached_property
    def wrong(self) -> Bool[Tensor, "batch classes"]:
        """Which entries of the logits belong to wrong classes: shape (batch, classes)."""
        return torch.arange(self.clean.shape[1], device=self.y.device) != self.y.unsqueeze(1)

    def _normalises(self) -> bool:
        """Whether the statistics of the clean inputs take part in other terms, and so in their gradients."""
        return any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in self._inner.modules())


@dataclass(frozen=True, kw_only=True)
class WorstCase(ABC):
    """A source of worst outputs over the ball, differentiable in the model's parameters."""

    @property
    def certified(self) -> bool:
        """Whether it comes from bounds, with which training collapses unless they are ramped."""
        return False

    @abstractmethod
    def outputs(self, batch: Batch) -> Float[Tensor, "batch outputs"]:
        """Worst logits, shape (batch, classes), or for continuous labels the worst numbers, of the labels' shape.

        For shares q of classes, logits, or (z, t) of shape (batch, classes + 1) for which log sum exp(z) - t is at
        least the cross-entropy everywhere in the ball: no single logits need be as bad as that.
        """
