"""Comparisons of attacks and certifiers on the same model and inputs."""

from robust_plugins.benchmark.compare import Comparison, Crossing, Row, compare
from robust_plugins.benchmark.explanation_report import write_explanation_report
from robust_plugins.benchmark.explanations import (
    ExplanationComparison,
    ExplanationCrossing,
    ExplanationRow,
    compare_explanations,
)
from robust_plugins.benchmark.report import write_report

__all__ = [
    "Comparison",
    "Crossing",
    "ExplanationComparison",
    "ExplanationCrossing",
    "ExplanationRow",
    "Row",
    "compare",
    "compare_explanations",
    "write_explanation_report",
    "write_report",
]
