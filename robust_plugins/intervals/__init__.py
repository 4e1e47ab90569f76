"""Interval arithmetic on tensors: the abstract value of every bound of the package."""

from robust_plugins.intervals.interval import Interval

__all__ = ["Interval"]
