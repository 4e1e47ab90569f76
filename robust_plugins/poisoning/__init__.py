"""Certificates against poisoned training data: abstract gradient training, and attacks inside the same budget."""

from robust_plugins.poisoning.abstract.privacy import PrivatePrediction
from robust_plugins.poisoning.abstract.run import PoisoningEpoch, PoisoningRun
from robust_plugins.poisoning.abstract.training import abstract_gradient_training
from robust_plugins.poisoning.attacks.builtin import CoordinatePoisoning, GradientAlignment, LossAscent, RandomPoisoning
from robust_plugins.poisoning.attacks.interface import PoisonedTrainings, PoisoningAttack, poisoned_trainings
from robust_plugins.poisoning.attacks.registered import poisoning_attack, poisoning_attacks
from robust_plugins.poisoning.budget import PoisoningBudget
from robust_plugins.poisoning.concrete.clipping import Clip, NormClip
from robust_plugins.poisoning.concrete.optimizers import SGD, Adam, AdamW
from robust_plugins.poisoning.partitions.ensemble import (
    PartitionCertificate,
    PartitionEnsemble,
    partition_aggregation,
)

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Clip",
    "CoordinatePoisoning",
    "GradientAlignment",
    "LossAscent",
    "NormClip",
    "PartitionCertificate",
    "PartitionEnsemble",
    "PoisonedTrainings",
    "PoisoningAttack",
    "PoisoningBudget",
    "PoisoningEpoch",
    "PoisoningRun",
    "PrivatePrediction",
    "RandomPoisoning",
    "abstract_gradient_training",
    "partition_aggregation",
    "poisoned_trainings",
    "poisoning_attack",
    "poisoning_attacks",
]
