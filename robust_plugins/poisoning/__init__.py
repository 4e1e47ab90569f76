"""Certificates against poisoned training data: abstract gradient training, attacks, and the bracket of both."""

from robust_plugins.poisoning.attacks import (
    CoordinatePoisoning,
    GradientAlignment,
    LossAscent,
    PoisonedTrainings,
    PoisoningAttack,
    RandomPoisoning,
    poisoned_trainings,
)
from robust_plugins.poisoning.bracket import PoisoningBracket, poisoning_bracket
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
    "CoordinatePoisoning",
    "GradientAlignment",
    "LossAscent",
    "NormClip",
    "PoisonedTrainings",
    "PoisoningAttack",
    "PoisoningBracket",
    "PoisoningBudget",
    "PoisoningEpoch",
    "PoisoningRun",
    "PrivatePrediction",
    "RandomPoisoning",
    "abstract_gradient_training",
    "poisoned_trainings",
    "poisoning_bracket",
]
