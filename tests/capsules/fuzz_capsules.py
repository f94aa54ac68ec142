"""Restores mutated capsules.

    python tests/capsules/fuzz_capsules.py [COUNT] [--seed N] [--first NUMBER]

Most mutants have correct hashes, so that the mutation also reaches the code after the hash checks.
The fuzzer fails if one of these happens:

- `tenantry restore` raises an exception, or exits with a code other than 0 or 1.
- A file other than the tenant file, the tenant's secrets and the files in the tenant's folder
  appears or changes.
- A restore that fails leaves a file behind.
- The tenant file of a restore that succeeds is not a valid tenant file.

To repeat one mutant, pass its number and the seed: `fuzz_capsules.py 1 --seed 7 --first 1234`.
"""

import argparse
import contextlib
import io
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from capsule_mutants import make_mutant

from capsule_files import tree
from tenantry.cli import tenantry
from tenantry.errors import TenantryError
from tenantry.settings import HostSettings
from tenantry.tenants.file import read_content
from tenantry.tenants.loader import Loader
from tenantry.tenants.model import Tenant
from tenantry.tenants.secrets import SecretError
from tenantry.tenants.validation import DisabledTenant, RejectedTenant, validate_file

MAX_FAILURES = 50
"""Number of failures after which the fuzzer stops."""


@dataclass
class Report:
    """The results of a run of the fuzzer."""

    mutants: int = 0
    seconds: float = 0.0
    codes: Counter[int] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


class Site:
    """The folders of a host that restores one mutant after another."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tenants, self.data = folder / "tenants", folder / "instance"
        self.tenants.mkdir()
        (folder / "outside").mkdir()
        (folder / "outside/kept").write_text("kept")
        self._loader = Loader(data_dir=self.data)

    def close(self) -> None:
        """End the loader process."""
        self._loader.close()

    def restore(self, capsule: bytes) -> tuple[int, str]:
        """Restore a mutant, and return the exit code and the problem."""
        path = self.folder / "mutant"
        path.write_bytes(capsule)
        is_restored = False
        output = io.StringIO()
        words = ["restore", str(path), "--as", "fuzz", "--with-templates"]
        try:
            with contextlib.redirect_stderr(output), contextlib.redirect_stdout(output):
                tenantry.main(words, standalone_mode=False)
            code, problem = 70, "the command did not exit"
        except SystemExit as ended:  # a restore that loses a table exits with 1
            is_restored = True
            code, problem = int(ended.code or 0), self._find_invalid_tenant()
        except (TenantryError, SecretError):
            code, problem = 1, ""
        except Exception as error:  # noqa: BLE001 - the fuzzer looks for any exception
            code, problem = 70, f"{type(error).__name__}: {error}"
        return code, problem or self._find_stray_files(is_restored=is_restored)

    def _find_invalid_tenant(self) -> str:
        path = self.tenants / "fuzz.py"
        found = validate_file(read_content(path), HostSettings(data_dir=self.data), self._loader)
        if isinstance(found, Tenant | DisabledTenant):
            return ""
        assert isinstance(found, RejectedTenant)
        return f"the tenant file is rejected: {found.reason}"

    def _find_stray_files(self, *, is_restored: bool) -> str:
        """Return which files are in the wrong place, and remove what the restore created."""
        found = set(tree(self.folder)) - {"mutant", "outside/kept"}
        if is_restored:
            own = {"tenants/fuzz.py", "instance/secrets/FUZZ_SECRET_KEY"}
            found = {name for name in found - own if not name.startswith("instance/fuzz/")}
        links = [path for path in self.folder.rglob("*") if path.is_symlink()]
        shutil.rmtree(self.data, ignore_errors=True)
        (self.tenants / "fuzz.py").unlink(missing_ok=True)
        return f"stray files: {sorted(found)[:5]} {links[:5]}" if found or links else ""


def fuzz(folder: Path, count: int, seed: int = 1, first: int = 0) -> Report:
    """Restore `count` mutants, beginning with the number `first`."""
    report, started_at = Report(), time.monotonic()
    os.environ |= {
        "TENANTRY_TENANTS_DIR": str(folder / "tenants"),
        "TENANTRY_DATA_DIR": str(folder / "instance"),
    }
    site = Site(folder)
    try:
        for number in range(first, first + count):
            code, problem = site.restore(make_mutant(seed, number))
            report.mutants += 1
            report.codes[code] += 1
            if problem:
                report.failures.append(f"mutant {number}: exit code {code}: {problem}")
            if len(report.failures) >= MAX_FAILURES:
                break
    finally:
        site.close()
    report.seconds = time.monotonic() - started_at
    return report


def main() -> None:
    """Run the fuzzer, and print its report."""
    parser = argparse.ArgumentParser(description="Restores mutated capsules.")
    parser.add_argument("count", type=int, nargs="?", default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = fuzz(Path(folder), wanted.count, wanted.seed, wanted.first)
    for failure in report.failures:
        print(failure)
    codes = ", ".join(f"{count:,} with exit code {code}" for code, count in report.codes.items())
    print(f"{report.mutants:,} mutants in {report.seconds:.0f} s: {codes}")
    print(f"{len(report.failures)} failures")
    sys.exit(1 if report.failures else 0)


if __name__ == "__main__":
    main()
