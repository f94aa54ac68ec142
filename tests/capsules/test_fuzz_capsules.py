"""Mutated backup files do no harm. The test runs a hundredth of the fuzzer's usual mutants."""

from pathlib import Path

import pytest
from fuzz_capsules import fuzz

COUNT = 200


def test_mutated_capsules_do_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A restore of a mutated backup file raises nothing, and writes no file in a wrong place."""
    for name in ("TENANTRY_TENANTS_DIR", "TENANTRY_DATA_DIR"):
        monkeypatch.setenv(name, "replaced by the fuzzer")

    report = fuzz(tmp_path, COUNT)

    assert [] == report.failures
    assert COUNT == report.mutants
    assert {0, 1} == set(report.codes)
