"""Attacks and certificates of one question held together: comparisons, tables, pictures, pages."""

from robust_plugins.brackets.decision_page import write_report
from robust_plugins.brackets.decisions import Comparison, Crossing, Row, compare
from robust_plugins.brackets.explanation_page import write_explanation_report
from robust_plugins.brackets.explanations import (
    ExplanationComparison,
    ExplanationCrossing,
    ExplanationRow,
    compare_explanations,
)
from robust_plugins.brackets.poisoning import PoisoningBracket, poisoning_bracket

__all__ = [
    "Comparison",
    "Crossing",
    "ExplanationComparison",
    "ExplanationCrossing",
    "ExplanationRow",
    "PoisoningBracket",
    "Row",
    "compare",
    "compare_explanations",
    "poisoning_bracket",
    "write_explanation_report",
    "write_report",
]
