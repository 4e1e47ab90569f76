"""Losses for robust training, the terms they mix, and penalties to add to others."""

from robust_plugins.losses.batch import WorstCase
from robust_plugins.losses.combiners import MART, TRADES, Combined, Combiner, MixedMargins, Powers, ThreeTerm, Worst
from robust_plugins.losses.divergence import Diverging
from robust_plugins.losses.gradient_cert import GradientCertLoss
from robust_plugins.losses.gradient_penalties import HessianPenalty, L2Penalty
from robust_plugins.losses.mixed import MixedLoss, Terms
from robust_plugins.losses.ramp import Ramp
from robust_plugins.losses.recipes import recipe, recipes
from robust_plugins.losses.regularisers import L1Penalty, Regulariser, WarmUp, ibp_initialisation
from robust_plugins.losses.worst import Attacked, Blended, Certified, SmallBox

__all__ = [
    "MART",
    "TRADES",
    "Attacked",
    "Blended",
    "Certified",
    "Combined",
    "Combiner",
    "Diverging",
    "GradientCertLoss",
    "HessianPenalty",
    "L1Penalty",
    "L2Penalty",
    "MixedLoss",
    "MixedMargins",
    "Powers",
    "Ramp",
    "Regulariser",
    "SmallBox",
    "Terms",
    "ThreeTerm",
    "WarmUp",
    "Worst",
    "WorstCase",
    "ibp_initialisation",
    "recipe",
    "recipes",
]
