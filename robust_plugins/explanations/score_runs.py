"""`Run`: one score of explanations while it is computed, sampled, attacked and proved; `Score`, its result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robust_plugins.balls import Ball
from robust_plugins.errors import ArgumentError
from robust_plugins.explanations.attack import ExplanationAttack
from robust_plugins.explanations.attributions import Attribution, Target, classes_of
from robust_plugins.explanations.captum_objects import of_captum
from robust_plugins.explanations.certificate import euclidean, least, most, upward
from robust_plugins.explanations.certifier import ExplanationCertifier
from robust_plugins.explanations.certifiers import Relaxed
from robust_plugins.explanations.explained import Explained, explained_by
from robust_plugins.explanations.registered import explanation_attack, explanation_certifier
from robust_plugins.explanations.task import Task
from robust_plugins.harness.bracket import Bracket
from robust_plugins.harness.call import calling, ordinary
from robust_plugins.harness.component import chunks
from robust_plugins.harness.evaluation import checked_seed
from robust_plugins.harness.guard import TOLERATED

CERTIFIER = Relaxed(effort=1)
"""Bounds the gradients unless told otherwise: of smooth activations, for small balls, much closer than effort 0."""
Explaining = Attribution | Callable[..., Tensor] | Any
"""An explanation of `rp.explain`, or an object of Captum, or the method `attribute` of either."""
Divisor = Callable[[Tensor, Tensor], Tensor]
"""From the norms of the explanations at the inputs, and those of the inputs, to what changes are divided by."""


@dataclass(frozen=True, eq=False)
class Score:
    """A score of the explanations of one batch: the largest change over a ball, of which nobody knows but bounds.

    - `sampled`: the largest value among random samples: what is usually reported.
    - `bracket`: the largest value that was found, by samples or by attack; and what the score is proved not to exceed.
    - `x_adv`: where the attack found the largest change.
    - `soundness`: the assumptions of the proof.
    - `seed`: the seed that reproduces this result, also where none was given.
    """

    sampled: Float[Tensor, " batch"]
    bracket: Bracket[Float[Tensor, " batch"]]
    x_adv: Float[Tensor, "batch *features"]
    soundness: str
    seed: int

    @property
    def missed(self) -> Float[Tensor, " batch"]:
        """The share of the found value that the samples missed: 0 where they found the largest one."""
        found = self.bracket.empirical
        assert found is not None
        return torch.where(found > 0, 1 - self.sampled / found, 0.0)

    def __str__(self) -> str:
        """The medians over the batch in one line."""
        found, proved = self.bracket
        assert found is not None
        assert proved is not None
        parts = (("sampled", self.sampled), ("found", found), ("proved", proved))
        return ", ".join(f"{name} {values.median().item():.4f}" for name, values in parts) + " (medians)"


class Attributed(Explained):
    """An attribution in the place of the gradient that it is computed from, for an attack."""

    explanation: Attribution

    @classmethod
    def of_gradient(cls, explained: Explained, explanation: Attribution) -> Attributed:
        """The attribution in the place of this gradient."""
        found = cls(explained.of, explained.y, explained.coefficients)
        object.__setattr__(found, "explanation", explanation)
        return found

    def __getitem__(self, samples: slice) -> Explained:
        return self.of_gradient(super().__getitem__(samples), self.explanation)

    def repeated(self, times: int) -> Explained:  # noqa: D102 (inherited)
        return self.of_gradient(super().repeated(times), self.explanation)

    def gradient(self, model: Callable[[Tensor], Tensor], x: Tensor, *, create_graph: bool = False) -> Tensor:
        """The attribution at `x`."""

        def gradients(points: Tensor) -> Tensor:
            plain = Explained(self.of, self.y, self.coefficients).repeated(len(points))
            return plain.gradient(model, points.flatten(0, 1), create_graph=create_graph).view_as(points)

        with torch.enable_grad():
            found = self.explanation.value(x if create_graph else x.detach(), gradients)
        return found if create_graph else found.detach()


class Run:
    """One score while it is computed."""

    def __init__(
        self,
        explanation: Attribution,
        inputs: Tensor,
        target: Target,
        certifier: str | ExplanationCertifier,
        attack: str | ExplanationAttack,
        seed: int | None,
    ) -> None:
        self.explanation, self.inputs, self.target = explanation, inputs, target
        self.certifier = explanation_certifier(certifier) if isinstance(certifier, str) else certifier
        self.attack = explanation_attack(attack) if isinstance(attack, str) else attack
        self.seed = checked_seed(seed)
        self.value = explanation.attribute(inputs, target)

    def score(self, ball: Ball, samples: int, name: str, divisor: Divisor) -> Score:
        """The score over `ball`; `name` is that of the argument that says how many samples to draw."""
        if not isinstance(samples, int) or samples < 1:
            raise ArgumentError(name, repr(samples), accepted="an integer of at least 1", hint="It counts samples.")
        proved = self._proved(ball, divisor)  # first: it raises for models that cannot be bounded
        length = divisor(euclidean(self.value.double()), euclidean(self.inputs.detach().double()))
        sampled, found, x_adv = self.found(ball, samples)
        halves = []
        for change in (sampled, torch.maximum(sampled, found)):
            ratio = torch.where(change == 0, 0.0, change / length)
            halves.append(ratio.to(self.value.dtype))
        return Score(halves[0], Bracket(halves[1], proved), x_adv, self.certifier.soundness, self.seed)

    def _proved(self, ball: Ball, divisor: Divisor) -> Tensor:
        """The largest change over the ball, divided: no more than this, whatever was rounded."""
        worst, off = self.farthest(ball), self.farthest(ball.scaled(0.0))
        # The explanation at x may itself be off by rounding, by as much as its bounds over a single point say.
        own = least(euclidean(self.value.double()), self.value.double()) - off
        x = self.inputs.detach().double()
        length = divisor(own, least(euclidean(x), x))
        ratio = torch.where(length > 0, (worst + off) / length, torch.inf)
        return upward(torch.where(worst == 0, 0.0, most(ratio, self.value.double())), self.value.dtype)

    def farthest(self, ball: Ball) -> Tensor:
        """The largest Euclidean distance from the explanation at x that the bounds over the ball allow, in float64."""
        bounds = self.explanation.certify(self.inputs, self.target, ball=ball, certifier=self.certifier)
        value = self.value.double()
        far = torch.maximum(bounds.upper.double() - value, value - bounds.lower.double()).flatten(1)
        return most(euclidean(far), far)

    def found(self, ball: Ball, samples: int) -> tuple[Tensor, Tensor, Tensor]:
        """The largest changes among samples and by attack, Euclidean norms in float64, and where the attack's are."""
        with calling(self.explanation.model, self.inputs, ball, seed=self.seed, freeze=True) as call:
            x = call.x.detach()
            model, explained = explained_by(call.model, x, ordinary(classes_of(self.inputs, self.target)), "logit")
            attributed = Attributed.of_gradient(explained, self.explanation)
            drawn = torch.zeros(len(x), dtype=torch.float64, device=x.device)
            for _ in range(samples):
                z = ball.sample(x, 1)[0]
                drawn = torch.maximum(drawn, self._change(attributed.gradient(model, z)))
            best = []
            for part in chunks(len(x), self.attack.batch_size):
                task = self._task(model, x[part], ball[part], attributed[part])
                with torch.enable_grad():
                    self.attack.search(task)
                # Scored again by a task that the attack never had, on the model as it was.
                call.check(self.attack, tolerated=TOLERATED)
                judged = self._task(model, x[part], ball[part], attributed[part])
                judged.offer(task.best)
                best.append((judged.best, judged.best_gradient))
            x_adv = torch.cat([x[:0], *(z for z, _ in best)])
            change = self._change(torch.cat([x[:0], *(v for _, v in best)]))
        return drawn, change, x_adv

    def _task(self, model: nn.Module, x: Tensor, ball: Ball, explained: Explained) -> Task:
        return Task(model, x.clone(), ball, explained, "deviation", k=1, target=None, radius=0.0)

    def _change(self, explanations: Tensor) -> Tensor:
        return euclidean(explanations.double() - self.value.double())


def explanation_of(name: str, given: Explaining) -> Attribution:
    """The explanation itself, for one that was given as it or its `attribute`; `name` is the argument's."""
    if (theirs := of_captum(name, given)) is not None:
        return theirs
    found = getattr(given, "__self__", given)
    if not isinstance(found, Attribution):
        raise ArgumentError(
            name,
            type(found).__name__,
            accepted="an explanation of rp.explain or of Captum, or its attribute",
            hint="For example rp.explain.Saliency(model): of others nothing can be proved.",
        )
    return found
