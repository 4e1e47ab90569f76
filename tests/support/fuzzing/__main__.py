"""`python -m support.fuzzing --minutes 60 --seed 0`: fuzzes for a time, prints what was tried and every violation."""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from itertools import count

from support.fuzzing.components import certifiers, explanation_certifiers
from support.fuzzing.running import Finding, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m support.fuzzing", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0, help="of the first model; the next ones follow")
    parser.add_argument("--models", type=int, default=None, help="how many, instead of a time")
    parser.add_argument("--balls", type=int, default=2, help="for each model")
    parser.add_argument("--only", default="", help="components whose names contain this")
    parser.add_argument("--likely", default="", help="steps that should come often, as name=factor,...")
    parser.add_argument("--rare", action="store_true", help="models of all steps, also of those that few accept")
    parser.add_argument("--kinds", action="store_true", help="show each kind of violation of a component once")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    shown: set[tuple[str, str]] = set()

    def report(finding: Finding) -> None:
        kind = (finding.violation.component, finding.violation.kind)
        if not (arguments.kinds and kind in shown):
            print(f"{finding}\n", flush=True)
        shown.add(kind)

    chosen = {name: c for name, c in certifiers().items() if arguments.only in name}
    explained = {name: c for name, c in explanation_certifiers().items() if arguments.only in f"explanation {name}"}
    likely = {name: float(factor) for name, factor in (part.split("=") for part in arguments.likely.split(",") if part)}
    seeds = range(arguments.seed, arguments.seed + arguments.models) if arguments.models else count(arguments.seed)
    end = float("inf") if arguments.models else time.monotonic() + 60 * arguments.minutes
    tally = run(
        seeds, chosen, explained, balls=arguments.balls, likely=likely, until=end, report=report, rare=arguments.rare
    )
    print(tally)
    return 1 if tally.findings else 0


if __name__ == "__main__":
    sys.exit(main())
