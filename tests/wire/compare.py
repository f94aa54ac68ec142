"""Compares what servers answer to the wire corpus.

    python tests/wire/compare.py [--only NAME] [--details]

The table counts the correct and wrong answers of each server: Tenantry's worker, gunicorn's gthread
worker with the same limits, and, for information, nginx in front of Tenantry's worker. Below the
table is each case that gthread answers correctly and Tenantry's worker answers wrongly. The exit
code is 1 if the list of these cases is not empty.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from case import Case
from cases import CASES
from exchange import Outcome, play_all, problems
from wire_servers import NGINX, OURS, STOCK, is_installed, serving

Wrong = dict[str, list[str]]
"""The problems of each case that a side answers wrong, by the name of the case."""

_AT_ONCE = 6
"""Number of parallel connections. A half-sent head holds a thread of gthread, which has eight."""
_DEADLINE_S = 5.0


def _outcomes(side: str, cases: list[Case]) -> dict[str, Outcome]:
    with tempfile.TemporaryDirectory() as folder, serving(side, Path(folder)) as addresses:
        return play_all(cases, addresses, at_once=_AT_ONCE, deadline_s=_DEADLINE_S)


def _wrong(cases: list[Case], outcomes: dict[str, Outcome]) -> Wrong:
    known = [case for case in cases if case.name in outcomes]
    found = {case.name: problems(case, outcomes[case.name]) for case in known}
    return {name: what for name, what in found.items() if what}


def _print_table(outcomes: dict[str, dict[str, Outcome]], wrong: dict[str, Wrong]) -> None:
    print(f"{'server':8} {'cases':>6} {'right':>6} {'wrong':>6}")
    for side, found in outcomes.items():
        right = len(found) - len(wrong[side])
        print(f"{side:8} {len(found):6} {right:6} {len(wrong[side]):6}")


def _print_details(cases: list[Case], wrong: dict[str, Wrong]) -> None:
    for case in cases:
        for side, found in wrong.items():
            if case.name in found:
                print(f"{side:6} {case.name} ({case.spec}): {'; '.join(found[case.name])}")


def main() -> int:
    """Print the comparison, and return the exit code."""
    parser = argparse.ArgumentParser(description="Compares what servers answer to the wire corpus.")
    parser.add_argument("--only", default="", help="cases with this text in their name")
    parser.add_argument("--details", action="store_true", help="print why each answer is wrong")
    options = parser.parse_args()
    cases = [case for case in CASES if options.only in case.name]
    sides = [side for side in (OURS, STOCK, NGINX) if is_installed(side)]
    outcomes = {side: _outcomes(side, cases) for side in sides}
    wrong = {side: _wrong(cases, outcomes[side]) for side in sides}
    _print_table(outcomes, wrong)
    if options.details:
        _print_details(cases, wrong)
    worse = [name for name in wrong[OURS] if name not in wrong[STOCK]]
    print(f"{len(worse)} cases are right in gthread and wrong in Tenantry's worker:")
    for name in worse:
        print(f"  {name}: {'; '.join(wrong[OURS][name])}")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
