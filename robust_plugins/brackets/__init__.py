"""Attacks and certificates of one question held together: comparisons, tables, pictures, pages."""

from robust_plugins.brackets.comparison import Comparison, Row
from robust_plugins.brackets.crossing import Crossing
from robust_plugins.brackets.decision_page import write_report
from robust_plugins.brackets.decisions import compare
from robust_plugins.brackets.explanation_comparison import ExplanationComparison, ExplanationRow
from robust_plugins.brackets.explanation_page import write_explanation_report
from robust_plugins.brackets.explanations import compare_explanations
from robust_plugins.brackets.poisoning import PoisoningBracket, poisoning_bracket

__all__ = [
    "Comparison",
    "Crossing",
    "ExplanationComparison",
    "ExplanationRow",
    "PoisoningBracket",
    "Row",
    "compare",
    "compare_explanations",
    "poisoning_bracket",
    "write_explanation_report",
    "write_report",
]
