"""Comparisons of attacks and certifiers on the same model and inputs."""

from robust_plugins.benchmark.compare import Comparison, Crossing, Row, compare
from robust_plugins.benchmark.report import write_report

__all__ = ["Comparison", "Crossing", "Row", "compare", "write_report"]
