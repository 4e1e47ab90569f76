"""The audit of records: what cannot be true at once."""

from robust_plugins.benchmark.auditing.audit import audit
from robust_plugins.benchmark.auditing.findings import Finding, Findings, Rule, Severity

__all__ = ["Finding", "Findings", "Rule", "Severity", "audit"]
