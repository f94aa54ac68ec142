"""The wire corpus as data: the cases are complete and distinct."""

import re
from collections import Counter

from cases import CASES


def test_the_corpus_has_hundreds_of_cases() -> None:
    """The corpus has at least 250 cases."""
    assert len(CASES) >= 250


def test_no_two_cases_are_equal() -> None:
    """No two cases have the same name, or send the same bytes to the same listener."""
    names = Counter(case.name for case in CASES)
    sent = Counter((case.sent, case.listener) for case in CASES)

    assert [] == [key for key, count in (*names.items(), *sent.items()) if count > 1]


def test_each_case_names_its_specification() -> None:
    """Each case names a section, or the limits of the contract, and has a correct answer."""
    spec = re.compile(r"(RFC \d{4}|PROXY protocol) §[\d.]+|Limits of the contract")

    assert [] == [case.name for case in CASES if not spec.fullmatch(case.spec) or not case.answers]
