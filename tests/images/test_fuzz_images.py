"""Mutated images do not harm a tenant.

The test runs one hundredth of the fuzzer's usual mutants.
"""

from pathlib import Path

from fuzz_images import fuzz

COUNT = 1_000


def test_mutated_images_do_no_harm(tmp_path: Path) -> None:
    """No mutated image ends the process, gets 500, or changes a file of another tenant."""
    report = fuzz(tmp_path, COUNT)

    assert [] == report.failures
    assert COUNT == report.mutants
    assert report.statuses[201] > COUNT // 20
    assert report.statuses[422] > COUNT // 20
