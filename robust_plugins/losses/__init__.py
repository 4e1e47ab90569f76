"""Losses for robust training, terms to add to others, and how strong they are in the course of training."""

from robust_plugins.losses.combiners import MART, TRADES, Combined, Combiner, MixedMargins, Powers, ThreeTerm, Worst
from robust_plugins.losses.divergence import Diverging
from robust_plugins.losses.fit import fit
from robust_plugins.losses.gradient_cert import GradientCertLoss
from robust_plugins.losses.gradient_penalties import HessianPenalty, L2Penalty
from robust_plugins.losses.mixed import MixedLoss, Terms
from robust_plugins.losses.ramp import Ramp
from robust_plugins.losses.recipes import recipe, recipes
from robust_plugins.losses.record import EpochRecord, TrainingRecord
from robust_plugins.losses.regularisers import L1, Regulariser, WarmUp, ibp_initialisation
from robust_plugins.losses.scores import Scores
from robust_plugins.losses.worst import Attacked, Blended, Certified, SmallBox, WorstCase

__all__ = [
    "L1",
    "MART",
    "TRADES",
    "Attacked",
    "Blended",
    "Certified",
    "Combined",
    "Combiner",
    "Diverging",
    "EpochRecord",
    "GradientCertLoss",
    "HessianPenalty",
    "L2Penalty",
    "MixedLoss",
    "MixedMargins",
    "Powers",
    "Ramp",
    "Regulariser",
    "Scores",
    "SmallBox",
    "Terms",
    "ThreeTerm",
    "TrainingRecord",
    "WarmUp",
    "Worst",
    "WorstCase",
    "fit",
    "ibp_initialisation",
    "recipe",
    "recipes",
]
