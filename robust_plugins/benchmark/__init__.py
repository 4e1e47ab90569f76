"""Comparisons of attacks and certifiers on the same model and inputs."""

from robust_plugins.benchmark.compare import Comparison, Crossing, Row, compare

__all__ = ["Comparison", "Crossing", "Row", "compare"]
