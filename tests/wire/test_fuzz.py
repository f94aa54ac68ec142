"""Mutated requests do not harm Tenantry's worker: one hundredth of the fuzzer's usual run."""

from pathlib import Path

import pytest
from fuzz import fuzz

pytestmark = pytest.mark.live

COUNT = 10_000


def test_mutated_requests_do_no_harm(tmp_path: Path) -> None:
    """The worker survives, and no response is malformed, missing or mixed up."""
    report = fuzz(tmp_path, COUNT)

    assert [] == report.failures
    assert COUNT == report.mutants
