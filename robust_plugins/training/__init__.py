"""Loops for robust training that resume, their records and curves."""

from robust_plugins.training.fit import fit
from robust_plugins.training.record import EpochRecord, TrainingRecord
from robust_plugins.training.scores import Scores

__all__ = ["EpochRecord", "Scores", "TrainingRecord", "fit"]
