"""The interface of attacks on decisions: a final public call over one small abstract method.

The public call never trusts a backend. It checks its arguments, runs the model in evaluation mode and restores
everything afterwards, and states only what it has recomputed itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, ClassVar, Literal, cast, final, overload

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer, Shaped
from torch import Tensor, nn

from robust_plugins.balls import Ball
from robust_plugins.decisions.results import AttackResult
from robust_plugins.errors import ArgumentError, ComponentError, UnsupportedModelError
from robust_plugins.harness.arguments import as_labels, decided, first_decided, logits_of
from robust_plugins.harness.batches import Inputs, Labels, as_batch, as_numbers
from robust_plugins.harness.call import Call, calling, ordinary
from robust_plugins.harness.component import Component, chunks
from robust_plugins.harness.evaluation import checked_seed
from robust_plugins.harness.guard import TOLERATED
from robust_plugins.harness.wrappers import QUANTISED, Landed, Model, is_quantised

Target = Shaped[Tensor, "batch *columns"] | np.ndarray | list[Any] | Literal["random", "least_likely"]

EVALUATIONS = 32
"""So many times the model has to confirm a success, where it answers one input in different ways."""

ITSELF = "the input itself"
"""Who found a success that needed no attack."""


@dataclass(frozen=True, eq=False)
class Found:
    """A search of the ball found these candidates; the rest is what the result is to tell about them.

    - `candidates`: one for each input, the worst that was found; the public call projects and judges them.
    - `by`: which attack found each sample's candidate, empty for none; None where one attack found all.
    - `notes`: for `AttackResult.notes`.
    """

    candidates: Float[Tensor, "batch *features"]
    by: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Attack(Component, ABC):
    """Searches the ball around each sample for an input on which the model fails: a lower bound on the damage.

    To write one, implement `perturb`, and freeze it as a dataclass whose fields are its parameters.

    - `batch_size`: how many samples are handed to the backend at a time; None lets the component choose.
    """

    black_box: ClassVar[bool] = False
    """Whether the attack asks for the model's outputs alone, and for no gradients."""
    nearest: ClassVar[bool] = False
    """Whether the attack looks for the nearest example, of which the ball's radius is no more than the largest."""

    @abstractmethod
    def perturb(
        self,
        model: nn.Module,
        x: Float[Tensor, "batch *features"],
        y: Integer[Tensor, " batch"],
        ball: Ball,
        *,
        targeted: bool,
    ) -> Float[Tensor, "batch *features"]:
        """Candidates for adversarial examples, shaped like `x`, inside the ball up to rounding.

        The caller projects them in any case, but a candidate that needs it is weaker than it could be, and the
        conformance checks refuse it. `y` are labels to leave, or with `targeted` classes to reach. `model` is in
        evaluation mode with weight gradients off; the global generators of torch, numpy and python are seeded, so
        draw from them. Raise ArgumentError for a ball or a target that the attack cannot handle.
        """

    def find(
        self,
        model: nn.Module,
        x: Float[Tensor, "batch *features"],
        y: Integer[Tensor, " batch"],
        ball: Ball,
        *,
        targeted: bool,
    ) -> Found:
        """The candidates of `perturb`, with what is to be said of them.

        Override it for an attack that is made of others, or that has something to tell about its search.
        """
        return Found(self.perturb(model, x, y, ball, targeted=targeted))

    @overload
    def __call__(
        self, model: Model, x: Inputs, y: Labels | None, ball: Ball, *,
        target: Target | None = ..., seed: int | None = ..., eps: None = ...,
    ) -> AttackResult: ...  # fmt: skip

    @overload
    def __call__(
        self, model: Model, x: Inputs, y: Labels | None, ball: Ball, *,
        target: Target | None = ..., seed: int | None = ..., eps: Sequence[float],
    ) -> list[AttackResult]: ...  # fmt: skip

    @final
    def __call__(
        self,
        model: Model,
        x: Inputs,
        y: Labels | None,
        ball: Ball,
        *,
        target: Target | None = None,
        seed: int | None = None,
        eps: Sequence[float] | None = None,
    ) -> AttackResult | list[AttackResult]:
        """Attacks `model` (any batch to logits of shape (batch, classes)) at `x`, in evaluation mode.

        At most `batch_size` samples go through the model at a time.

        - `x`: floating-point numbers, shape (batch, *features): a tensor, or a numpy array, which comes in the dtype
          and on the device of the model's parameters. Or a TensorDataset or a DataLoader of pairs, read once, whole,
          and `y` None. The result holds tensors in any case.
        - `y`: the true classes, shape (batch,), integers of any type: a tensor, an array or a list. Success means a
          decision other than `y`.
        - `target`: None for an untargeted attack; classes to reach instead, given as `y` is; `"random"`, one uniformly
          random wrong class per sample (the average case); `"least_likely"`, the wrong class with the smallest clean
          logit.
        - `seed`: makes the call reproducible; None draws one, which the result states.
        - `eps`: several radii instead of the ball's, one result for each.

        The candidates are projected onto the ball and its clip range, the logits recomputed, and the better of
        candidate and `x` kept (success first, then loss). `model`, the random states and `x` are left as found. A model
        of one output z has the logits (-z/2, z/2); a softmax or log-softmax at its end, which changes no decision, is
        left out of logits and loss.
        Of a model that answers the same input in different ways, which is looked for at a few candidates, only those
        successes count that 32 more evaluations confirm; the logits are then those that serve the attack least, and
        the notes of the result say so.
        Raises ArgumentError for unusable arguments and ComponentError where the attack breaks its contract.
        """
        samples, labels = as_batch(x, y, model)
        if eps is not None:
            if not isinstance(eps, Iterable):
                raise ArgumentError(
                    "eps",
                    repr(eps),
                    accepted="several radii in a list",
                    hint=f"Give [{eps!r}], or that radius to the ball.",
                )
            return [self(model, samples, labels, replace(ball, eps=e), target=target, seed=seed) for e in eps]
        seed = checked_seed(seed)
        with calling(model, samples, ball, seed=seed, freeze=True) as call:
            x = call.x.detach()
            with torch.no_grad():
                model, clean = decided(call.model, x, size=self.batch_size)
            y = as_labels(ordinary(labels), x, clean.shape[1])
            goal = None if target is None else _resolve_target(target, y, clean)
            found = self._candidates(call, model, x, y if goal is None else goal, ball, targeted=goal is not None)
            candidate, notes = found.candidates, found.notes
            with torch.no_grad():
                reached = logits_of(model, candidate, size=self.batch_size)
                again = _again(model, candidate, reached, self.batch_size)
                if again is Again.OTHERWISE:
                    clean = _confirmed(model, x, clean, y, goal, self.batch_size)
                    reached = _confirmed(model, candidate, reached, y, goal, self.batch_size)
                    notes = (RANDOM, *notes)
                take, x_adv, logits, success, loss = _better(x, clean, candidate, reached, y, goal)
                if again is Again.TOGETHER and not take.all() and take.any():  # the result is another batch
                    logits = logits_of(model, x_adv, size=self.batch_size)
                    success, loss = _judged(logits, y, goal)
                    notes = (DEPENDENT, *notes)
                distance = ball.distance(x_adv, x)
        by = found.by
        if by is not None:
            flags = zip(by, success.tolist(), take.tolist(), strict=True)
            by = tuple((name if took and name else ITSELF) if won else "" for name, won, took in flags)
        return AttackResult(x_adv, success, logits, distance, loss, call.seconds, seed, goal, by, notes)

    @final
    def search(
        self,
        model: Model,
        x: Float[Tensor, "batch *features"],
        y: Integer[Tensor, " batch"],
        ball: Ball,
        *,
        seed: int | None = None,
    ) -> Float[Tensor, "batch *features"]:
        """Returns what the attack found, projected onto the ball and not compared with `x`: for training.

        The arguments are those of the call, and `model` is left as found too. Two passes of the model less than the
        call, whose result this is except where `x` itself is worse.
        """
        seed = checked_seed(seed)
        with calling(model, x, ball, seed=seed, freeze=True, thorough=False) as call:
            x = call.x.detach()
            with torch.no_grad():
                model, classes = first_decided(call.model, x, size=self.batch_size)
            y = as_labels(ordinary(y), x, classes)
            return self._candidates(call, model, x, y, ball, targeted=False).candidates

    @final
    def _candidates(self, call: Call, model: nn.Module, x: Tensor, y: Tensor, ball: Ball, *, targeted: bool) -> Found:
        parts = [x[:0]]
        by: list[str] = []
        notes: dict[str, None] = {}  # each once, in order
        named = True
        seen = model if ball.relaxed is ball else Landed(model, ball)
        for part in chunks(len(x), self.batch_size):
            with torch.enable_grad(), _recurrent_gradients(model):
                try:
                    # Copies: what a plugin does to its arguments must not reach the user's, nor our judgement.
                    given = x[part].clone(memory_format=torch.contiguous_format)  # some view it as rows
                    told = self.find(seen, given, y[part].clone(), ball[part].relaxed, targeted=targeted)
                except RuntimeError as error:  # an attack that needs no gradients is free to succeed
                    if is_quantised(model):
                        raise UnsupportedModelError(QUANTISED) from error
                    if not self.black_box and not model(x[part].clone().requires_grad_()).requires_grad:
                        raise undifferentiable() from error
                    raise
            if not isinstance(told, Found) or (told.by is not None and len(told.by) != len(x[part])):
                raise ComponentError(f"{self}: find returned {told!r:.200}; expected a Found with a name per sample")
            found = told.candidates
            if not isinstance(found, Tensor) or found.shape != x[part].shape:
                shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
                raise ComponentError(f"{self}: perturb returned {shape}; expected a tensor of {tuple(x[part].shape)}")
            found = found.detach().to(x)
            least, greatest = torch.aminmax(found.flatten(1), dim=1)  # NaN, too, where there is one
            valid = (least.isfinite() & greatest.isfinite()).view(-1, *[1] * (x.dim() - 1))
            if not bool(valid.all()):
                found = torch.where(valid, found, x[part])
            parts.append(ball[part].project(found, x[part]))
            notes |= dict.fromkeys(told.notes)
            named &= told.by is not None
            by += told.by or ()
        # Candidates are judged on the model as it was, whatever hooks and flags the attack has left on it.
        call.check(self, tolerated=TOLERATED)
        return Found(torch.cat(parts), tuple(by) if named and len(x) else None, tuple(notes))


def _recurrent_gradients(model: nn.Module) -> AbstractContextManager[None]:
    # cuDNN refuses the backward pass of recurrent layers in evaluation mode; torch's own kernels do not.
    if any(isinstance(module, nn.RNNBase) for module in model.modules()):
        return cast("AbstractContextManager[None]", torch.backends.cudnn.flags(enabled=False))
    return nullcontext()


def undifferentiable() -> ArgumentError:
    """The refusal of a model without gradients by an attack that needs them."""
    return ArgumentError(
        "model", "not differentiable in its input", accepted="a model through which gradients flow",
        hint="Remove detach() and no_grad() from its forward, or use an attack without gradients.",
    )  # fmt: skip


def _resolve_target(target: Target, y: Tensor, clean: Tensor) -> Tensor:
    if isinstance(target, Tensor | np.ndarray | list):
        target = as_labels(ordinary(as_numbers(target, clean, name="target")), clean, clean.shape[1], name="target")
        if bool((target == y).any()):
            raise ArgumentError(
                "target", "equal to y for some sample", accepted="a wrong class", hint="Choose target != y everywhere."
            )
        return target
    if target == "random":
        # A step of 1 to classes - 1 away from y is uniform over the wrong classes.
        step = torch.randint(1, clean.shape[1], y.shape, dtype=y.dtype).to(y.device)
        return (y + step) % clean.shape[1]
    if target == "least_likely":
        return clean.scatter(1, y.unsqueeze(1), torch.inf).argmin(1)
    raise ArgumentError(
        "target",
        repr(target),
        accepted="None, one class per sample as a tensor, an array or a list, 'random' or 'least_likely'",
        hint="Leave it out for an untargeted attack; one class for all is [k] * len(x).",
    )


RANDOM = (
    f"the model draws at random: only successes that {EVALUATIONS} more evaluations confirmed are counted; rp:auto and "
    "rp.averaged follow gradients averaged over draws"
)


DEPENDENT = "the model answers an input otherwise in another batch: judged on the batch of the result, as a whole"


class Again(Enum):
    """How a model answers what it has answered before, by more than rounding."""

    ALIKE = "as before"
    TOGETHER = "as before, where all samples are the same: rows depend on one another, or on how many there are"
    OTHERWISE = "otherwise: it draws at random"


def _again(model: nn.Module, z: Tensor, logits: Tensor, size: int | None) -> Again:
    """Whether the model answers `z` with `logits` again: a few samples are tried first, then all as they were."""

    def same(again: Tensor) -> bool:
        before = logits[: len(again)]
        return torch.allclose(again, before, rtol=1e-3, atol=1e-4 * max(1.0, _size(before)), equal_nan=True)

    try:
        if same(logits_of(model, z[:4])):
            return Again.ALIKE
    except Exception:  # a model that runs with one batch size alone
        pass
    return Again.TOGETHER if same(logits_of(model, z, size=size)) else Again.OTHERWISE


def _size(logits: Tensor) -> float:
    return float(logits.abs().nan_to_num(posinf=0.0).max()) if logits.numel() else 0.0


def _confirmed(model: nn.Module, z: Tensor, logits: Tensor, y: Tensor, goal: Tensor | None, size: int | None) -> Tensor:
    """For each sample, of `logits` and those of more evaluations the ones that serve the attack least."""
    chosen = (y if goal is None else goal).unsqueeze(1)

    def gain(logits: Tensor) -> Tensor:
        lead = (logits.gather(1, chosen) - logits.scatter(1, chosen, -torch.inf).amax(1, keepdim=True)).squeeze(1)
        return -lead if goal is None else lead

    for _ in range(EVALUATIONS):
        again = logits_of(model, z, size=size)
        logits = torch.where((gain(again) >= gain(logits)).unsqueeze(1), logits, again)
    return logits


def _better(
    x: Tensor, clean: Tensor, candidate: Tensor, logits: Tensor, y: Tensor, goal: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The better of `x` and `candidate` for each sample: which of them, inputs, logits, success and loss."""
    (won, loss), (won_clean, loss_clean) = _judged(logits, y, goal), _judged(clean, y, goal)
    worse = loss >= loss_clean if goal is None else loss <= loss_clean
    take = (won & ~won_clean) | ((won == won_clean) & worse)
    x_adv = torch.where(take.view(-1, *[1] * (x.dim() - 1)), candidate, x)
    return (
        take,
        x_adv,
        torch.where(take.unsqueeze(1), logits, clean),
        torch.where(take, won, won_clean),
        torch.where(take, loss, loss_clean),
    )


def _judged(logits: Tensor, y: Tensor, goal: Tensor | None) -> tuple[Tensor, Tensor]:
    """Success, and the loss."""
    decision = logits.argmax(1)
    success = decision != y if goal is None else decision == goal
    success &= ~logits.isnan().any(1)  # no decision at all is no success
    return success, F.cross_entropy(logits, y if goal is None else goal, reduction="none")
