"""Terms of a training loss, and how strong they are in the course of training."""

from robust_plugins.losses.gradient_cert import GradientCertLoss
from robust_plugins.losses.gradient_penalties import HessianPenalty, L2Penalty
from robust_plugins.losses.ramp import Ramp

__all__ = ["GradientCertLoss", "HessianPenalty", "L2Penalty", "Ramp"]
