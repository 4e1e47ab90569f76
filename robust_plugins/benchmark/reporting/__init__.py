"""The report of a study: numbers, pictures, page and markdown."""

from robust_plugins.benchmark.reporting.page import write_study_report

__all__ = ["write_study_report"]
