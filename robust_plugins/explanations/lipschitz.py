"""`local_lipschitz`: the largest change of an explanation for each distance that the input moves, with both ends."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from robust_plugins.balls import Ball, Linf
from robust_plugins.errors import ArgumentError
from robust_plugins.explanations.attack import ExplanationAttack
from robust_plugins.explanations.attributions import Saliency, Target, classes_of
from robust_plugins.explanations.certificate import euclidean, upward
from robust_plugins.explanations.certifier import ExplanationCertifier
from robust_plugins.explanations.explained import explained_by
from robust_plugins.explanations.score_runs import CERTIFIER, Explaining, Run, Score, explanation_of
from robust_plugins.explanations.shells import proved_constant
from robust_plugins.harness.bracket import Bracket
from robust_plugins.harness.call import calling, ordinary

DEVIATIONS = 3.0
"""The radius of the ball where none is given, in standard deviations of the noise."""


def local_lipschitz(
    explain_func: Explaining,
    inputs: Float[Tensor, "batch *features"],
    nr_samples: int = 200,
    perturb_std: float = 0.1,
    *,
    target: Target,
    radius: float | None = None,
    clip: tuple[float, float] | None = None,
    refinements: int = 12,
    certifier: str | ExplanationCertifier = CERTIFIER,
    attack: str | ExplanationAttack = "gradient:corner-pgd",
    seed: int | None = None,
) -> Score:
    """The local Lipschitz constant of explanations: Quantus's LocalLipschitzEstimate, with a proof.

    `|Phi(x') - Phi(x)| / |x' - x|` in Euclidean norms, the largest over all other x' with `|x' - x|_inf <= radius`.
    Quantus reports the largest one among `nr_samples` points with Gaussian noise of `perturb_std`. Explanations are not
    normalised (its `normalise=False`). Alvarez-Melis and Jaakkola 2018, "On the robustness of interpretability
    methods", equation 2.

    - `explain_func`: `rp.explain.Saliency(model)`, or its `attribute`; of others the constant is not proved.
    - `radius`: None for three times `perturb_std`; noise beyond it is cut off, so that all points lie in the ball.
    - `refinements`: the set is cut into shells of Euclidean distances from x, first where their bound is largest, this
      often. In a shell from a to b the change is at most that of all points up to b, and the distance at least a; and
      on the way there the explanation changes no faster than the Hessian's norms in the shells that are passed.
    - The other arguments, and what is raised, are as for `sensitivity_max`.

    What is proved is infinite where the explanation may jump as near to x as the smallest shell, as for ReLU
    networks with x at a kink; and for layers such as max-pooling, and inputs of more than 2048 features, whose Hessian
    is not bounded.
    """
    explanation = explanation_of("explain_func", explain_func)
    if not isinstance(explanation, Saliency):
        raise ArgumentError(
            "explain_func",
            type(explanation).__name__,
            accepted="rp.explain.Saliency, with abs=True or False",
            hint="How fast other explanations change next to x is not bounded.",
        )
    for name, value, least in (("nr_samples", nr_samples, 1), ("refinements", refinements, 0)):
        if not isinstance(value, int) or value < least:
            raise ArgumentError(name, repr(value), accepted=f"an integer of at least {least}", hint="It counts.")
    if not (isinstance(perturb_std, int | float) and 0 < perturb_std < float("inf")):
        raise ArgumentError(
            "perturb_std", repr(perturb_std), accepted="a finite number above 0", hint="It is that of the noise."
        )
    if not (radius is None or isinstance(radius, int | float)):
        raise ArgumentError(
            "radius", type(radius).__name__, accepted="one number for all samples, or None", hint="Or call it for each."
        )
    ball = Linf(eps=DEVIATIONS * perturb_std if radius is None else radius, clip=clip)
    run = Run(explanation, inputs, target, certifier, attack, seed)
    proved = upward(proved_constant(run, ball, refinements), run.value.dtype)
    _, _, x_adv = run.found(ball, 1)
    sampled, found, x_adv = _found(run, ball, nr_samples, perturb_std, x_adv)
    halves = [t.to(run.value.dtype) for t in (sampled, found)]
    soundness = f"{run.certifier.soundness}; second derivatives in real arithmetic, evaluated without outward rounding"
    return Score(halves[0], Bracket(halves[1], proved), x_adv, soundness, run.seed)


def _found(
    run: Run, ball: Ball, samples: int, std: float, x_adv: Tensor
) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"], Tensor]:
    """The largest quotients among noise, and among all that is tried, in float64; and where the latter is."""
    off = run.farthest(ball.scaled(0.0))
    with calling(run.explanation.model, run.inputs, ball, seed=run.seed, freeze=True) as call:
        x = call.x.detach()
        model, explained = explained_by(call.model, x, ordinary(classes_of(run.inputs, run.target)), "logit")
        search = _Search(run, x)

        def change(z: Tensor) -> Tensor:
            value = explained.gradient(model, z)
            return (value.abs() if run.explanation.abs else value) - run.value  # type: ignore[attr-defined]

        for _ in range(samples):
            z = ball.project(x + std * torch.randn_like(x), x)
            search.offer(z, change(z), 0.0)
        sampled, noise = search.best, search.where
        sign = run.value.new_ones(()) if not run.explanation.abs else explained.gradient(model, x).sign()  # type: ignore[attr-defined]
        for start in (x_adv, noise):
            z = start
            for _ in range(POWERS):  # of the Hessian: symmetric, and its rows turned by the signs of an absolute value
                direction = sign * change(z)
                size = direction.flatten(1).abs().amax(1).clamp(min=torch.finfo(x.dtype).tiny)
                step = 0.1 * ball.eps_for(x).flatten() / size
                z = ball.project(x + direction * step.view(-1, *[1] * (x.dim() - 1)), x)
                search.offer(z, change(z), off)
            for end in (start, search.where):
                for k in range(1, SHORTER + 1):
                    z = x + 0.7**k * (end - x)
                    search.offer(z, change(z), off)
    return sampled, search.best, search.where


POWERS = 8
"""Steps of the power method."""
SHORTER = 16
"""Points on the way from a point to x: nearer to it, the same change counts for more."""


class _Search:
    """The best quotient so far."""

    def __init__(self, run: Run, x: Tensor) -> None:
        self.x, self.where = x, x
        self.best = torch.zeros(len(x), dtype=torch.float64, device=x.device)

    def offer(self, z: Tensor, change: Tensor, off: Tensor | float) -> None:
        """Keeps z where its change, less what rounding may be of it, is the largest for its distance."""
        distance = euclidean(z.double() - self.x.double())
        length = (euclidean(change.double()) - off).clamp(min=0)
        quotient = torch.where(distance > 0, length / distance, 0.0).nan_to_num(nan=0.0)
        better = quotient > self.best
        self.best = torch.where(better, quotient, self.best)
        self.where = torch.where(better.view(-1, *[1] * (z.dim() - 1)), z, self.where)
