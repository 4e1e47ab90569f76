"""`rp.explain`: explanations that are computed from gradients, with proved bounds, and proved scores of them.

saliency = rp.explain.Saliency(model)
saliency.attribute(inputs, target=y)                                      # the attribution, with Captum's value
saliency.certify(inputs, target=y, ball=rp.Linf(eps=0.01, clip=(0, 1)))   # its interval over the ball
rp.explain.sensitivity_max(saliency, inputs, target=y).bracket            # what is found, and what is proved
"""

from __future__ import annotations

from robust_plugins.explanations.attributions import (
    Attribution,
    InputXGradient,
    IntegratedGradients,
    Saliency,
    SmoothGrad,
)
from robust_plugins.explanations.lipschitz import local_lipschitz
from robust_plugins.explanations.score_runs import Score
from robust_plugins.explanations.scores import max_sensitivity, sensitivity_max

__all__ = [
    "Attribution",
    "InputXGradient",
    "IntegratedGradients",
    "Saliency",
    "Score",
    "SmoothGrad",
    "local_lipschitz",
    "max_sensitivity",
    "sensitivity_max",
]
