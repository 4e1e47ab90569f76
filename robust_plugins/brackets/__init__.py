"""Attacks and certificates of one question held together: comparisons, tables, pictures, pages."""

from robust_plugins.brackets.balls_comparison import BallsComparison
from robust_plugins.brackets.comparing import compare
from robust_plugins.brackets.comparison import Comparison, Row
from robust_plugins.brackets.crossing import Crossing
from robust_plugins.brackets.decision_page import write_report
from robust_plugins.brackets.error_comparison import ErrorComparison, ErrorRow
from robust_plugins.brackets.explanation_comparison import ExplanationComparison
from robust_plugins.brackets.explanation_page import write_explanation_report
from robust_plugins.brackets.explanation_row import ExplanationRow
from robust_plugins.brackets.explanations import compare_explanations
from robust_plugins.brackets.labels import LabelsComparison
from robust_plugins.brackets.poisoned_learning import PoisonedLearning, poison_and_train
from robust_plugins.brackets.poisoning import poisoning_bracket
from robust_plugins.brackets.poisoning_comparison import PoisoningBracket
from robust_plugins.brackets.radii import CriticalRadius, RadiusRow
from robust_plugins.brackets.radius_search import critical_radius

__all__ = [
    "BallsComparison",
    "Comparison",
    "CriticalRadius",
    "Crossing",
    "ErrorComparison",
    "ErrorRow",
    "ExplanationComparison",
    "ExplanationRow",
    "LabelsComparison",
    "PoisonedLearning",
    "PoisoningBracket",
    "RadiusRow",
    "Row",
    "compare",
    "compare_explanations",
    "critical_radius",
    "poison_and_train",
    "poisoning_bracket",
    "write_explanation_report",
    "write_report",
]
