"""`audit`: every contradiction among the records of one or more stores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from robust_plugins.benchmark.auditing.brackets import bracket_findings
from robust_plugins.benchmark.auditing.decisions import decision_findings
from robust_plugins.benchmark.auditing.findings import Findings, Rule, Severity
from robust_plugins.benchmark.auditing.repeats import repeat_findings
from robust_plugins.benchmark.columns import Columns, joined, read_columns


def audit(stores: Columns | str | Path | Sequence[str | Path]) -> Findings:
    """Holds all records against each other and returns what does not fit, worst first.

    `stores`: one store, or several, whose records are held together as one: the same study from two machines or in
    batches of two sizes; or records already read.

    - violations: one of two records is wrong. An attack, a witness or the input itself is decided wrongly inside a
      ball that a certifier certified, of the same radius or a larger one, of the same norm or of another whose ball
      holds that point; a margin was reached below the proved one; an example lies outside its ball; an attack fails
      where the input is decided wrongly already; brackets of explanations or trainings cross; answers differ between
      batches or machines by more than rounding
    - near: the difference is one that rounding can account for
    - weak: a component missed what its own answer at another radius implies

    Nothing is computed again. Raises ArgumentError for a file that is no store.
    """
    if isinstance(stores, Columns):
        columns = stores
    else:
        columns = joined([read_columns(path) for path in ([stores] if isinstance(stores, str | Path) else stores)])
    findings = [*decision_findings(columns), *bracket_findings(columns), *repeat_findings(columns)]
    severities, rules = list(Severity), list(Rule)
    return Findings(columns, sorted(findings, key=lambda f: (severities.index(f.severity), rules.index(f.rule))))
