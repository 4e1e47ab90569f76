"""Scores of explanations that are maxima over a ball, with both ends: what is found of them, and what is proved."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from robust_plugins.balls import Linf
from robust_plugins.explanations.attack import ExplanationAttack
from robust_plugins.explanations.attributions import Target
from robust_plugins.explanations.certifier import ExplanationCertifier
from robust_plugins.explanations.score_runs import CERTIFIER, Explaining, Run, Score, explanation_of


def sensitivity_max(
    explanation_func: Explaining,
    inputs: Float[Tensor, "batch *features"],
    perturb_radius: float = 0.02,
    n_perturb_samples: int = 10,
    *,
    target: Target,
    clip: tuple[float, float] | None = None,
    certifier: str | ExplanationCertifier = CERTIFIER,
    attack: str | ExplanationAttack = "gradient:corner-pgd",
    seed: int | None = None,
) -> Score:
    """The largest relative change of explanations over the L-infinity ball: Captum's score of this name, with a proof.

    `|Phi(x') - Phi(x)| / |Phi(x)|` in Euclidean norms, or its numerator where Phi(x) is 0, over all x' with
    `|x' - x|_inf <= perturb_radius`. Captum reports the largest one among `n_perturb_samples` uniform samples. Yeh et
    al. 2019, "On the (in)fidelity and sensitivity of explanations", definition 3.2.

    - `explanation_func`: an explanation such as `rp.explain.Saliency(model)`, or its `attribute`.
    - `inputs`, `target`: as for its `attribute`.
    - `clip`: the valid range of inputs, which samples, attack and proof then keep to. Captum's samples leave it.
    - `certifier`, `attack`: what bounds the gradients, and what searches the ball, by name or themselves; unless told
      otherwise `interval:relaxed` with `effort=1`, and `gradient:corner-pgd`.
    - `seed`: makes samples and attack reproducible; None draws one.

    Raises ArgumentError for unusable arguments, UnsupportedModelError for a model that cannot be bounded.
    """
    ball = Linf(eps=perturb_radius, clip=clip)
    run = Run(explanation_of("explanation_func", explanation_func), inputs, target, certifier, attack, seed)

    def divisor(own: Tensor, inputs: Tensor) -> Tensor:
        return torch.where(run.value.flatten(1).eq(0).all(1), 1.0, own)

    return run.score(ball, n_perturb_samples, "n_perturb_samples", divisor)


def max_sensitivity(
    explain_func: Explaining,
    inputs: Float[Tensor, "batch *features"],
    lower_bound: float = 0.2,
    nr_samples: int = 200,
    *,
    target: Target,
    clip: tuple[float, float] | None = None,
    certifier: str | ExplanationCertifier = CERTIFIER,
    attack: str | ExplanationAttack = "gradient:corner-pgd",
    seed: int | None = None,
) -> Score:
    """The largest change of explanations per size of the input: Quantus's MaxSensitivity, with a proof.

    `|Phi(x') - Phi(x)| / |x|` in Euclidean (Frobenius) norms over all x' with `|x' - x|_inf <= lower_bound`; infinite
    where x is 0. Quantus reports the largest one among `nr_samples` uniform samples; its `lower_bound` is the noise's
    radius. Explanations are not normalised, as by its default. Arguments and errors are as for `sensitivity_max`.
    """
    ball = Linf(eps=lower_bound, clip=clip)
    run = Run(explanation_of("explain_func", explain_func), inputs, target, certifier, attack, seed)
    return run.score(ball, nr_samples, "nr_samples", lambda own, inputs: inputs)
