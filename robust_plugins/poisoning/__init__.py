"""Certificates against poisoned training data: abstract gradient training, attacks, and the bracket of both."""

from robust_plugins.poisoning.budget import PoisoningBudget
from robust_plugins.poisoning.clipping import Clip, NormClip
from robust_plugins.poisoning.optimizers import SGD, Adam, AdamW
from robust_plugins.poisoning.privacy import PrivatePrediction
from robust_plugins.poisoning.run import PoisoningEpoch, PoisoningRun
from robust_plugins.poisoning.training import abstract_gradient_training

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Clip",
    "NormClip",
    "PoisoningBudget",
    "PoisoningEpoch",
    "PoisoningRun",
    "PrivatePrediction",
    "abstract_gradient_training",
]
