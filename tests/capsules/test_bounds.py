"""A small backup file that expands to fill memory or the disk is rejected."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from capsule_files import Members, archive, headers, quiet, sealed, tree
from shops import WriteShop, environment, first, write_shop_fixture
from tenantry.capsules import read_capsule, restore
from tenantry.capsules.archive import CapsuleError
from tenantry.capsules.capsule import ROW_CHUNK_BYTES, ROW_LIMIT_BYTES
from tenantry.capsules.json_values import STRUCTURE_LIMIT_BYTES
from tenantry.capsules.restore import restore_capsule
from tenantry.capsules.staging import RestoreStaging
from tenantry.settings import HostSettings

pytestmark = pytest.mark.live

__all__ = ["write_shop_fixture"]

_PRINT_PEAK_MEMORY = """\
import sys
from pathlib import Path
from tenantry.cli import main
try:
    main()
finally:
    peak = Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]
    print(int(peak) << 10)
"""

TABLES = [{"name": "goods", "columns": ["id"]}]


def rows(content: bytes) -> Members:
    """Return the members of a backup file with the given rows."""
    first_members = headers(tables=TABLES, revisions={"corp.shop": ["shop_1"]})
    return [*first_members, ("tables/goods/000001.jsonl", content)]


BOMBS: dict[str, tuple[Callable[[], Members], str]] = {
    "a row of lists": (
        lambda: rows(b"[" + b"[]," * (ROW_LIMIT_BYTES // 3 - 9) + b"1]\n"),
        "more than 1 MiB outside of strings",
    ),
    "a row of wide characters": (
        lambda: rows(b'["\\ud83d\\ude00' + b"x" * (ROW_LIMIT_BYTES - 99) + b'"]\n'),
        "table 'goods': ",
    ),
    "a row over the limit": (
        lambda: rows(b'["' + b"x" * (ROW_LIMIT_BYTES + ROW_CHUNK_BYTES // 2) + b'"]\n'),
        "a row exceeds 64 MiB",
    ),
    "many rows in a chunk": (lambda: rows(b"[1]\n" * (16 << 20)), "UNIQUE constraint failed"),
    "many keys": (lambda: headers(**{f"k{n}": 1 for n in range(150_000)}), "'k0': Extra inputs"),
    "many lists in the configuration": (
        lambda: headers(b'{"dict":[["A",[' + b"[]," * (STRUCTURE_LIMIT_BYTES // 3 - 9) + b"1]]]}"),
        "'BLUEPRINTS': is missing",
    ),
}


@pytest.mark.parametrize(("members", "reason"), BOMBS.values(), ids=BOMBS)
def test_memory_does_not_grow_with_the_unpacked_size(
    settings: HostSettings,
    write_shop: WriteShop,
    tmp_path: Path,
    members: Callable[[], Members],
    reason: str,
) -> None:
    """A restore needs memory for only a few rows, no matter how large the backup file's data is."""
    write_shop(first())
    path = tmp_path / "a"
    path.write_bytes(sealed(archive(members())))
    assert path.stat().st_size < 100_000

    done = subprocess.run(
        [sys.executable, "-c", _PRINT_PEAK_MEMORY, "restore", "a", "--as", "globex"],
        cwd=tmp_path,
        env=environment(settings),
        capture_output=True,
        text=True,
        check=False,
    )

    errors = [line for line in done.stderr.splitlines() if line.startswith("tenantry: ")]
    assert (1, 1, True) == (done.returncode, len(errors), reason in errors[0]), done
    assert int(done.stdout) < 10 * ROW_LIMIT_BYTES
    assert {} == tree(settings.data_dir)
    assert {} == tree(settings.tenants_dir)


@pytest.mark.parametrize(
    "free", [(8191,), (1 << 20, 1 << 20, 2999)], ids=["at the start", "on the way"]
)
def test_a_disk_is_not_filled(
    settings: HostSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: tuple[int, ...]
) -> None:
    """If the disk is too small or fills up, a restore fails and leaves nothing behind."""
    path = tmp_path / "a"
    path.write_bytes(sealed(archive([*headers(), ("files/a", b"1"), ("files/b", b"1" * 3000)])))
    capsule = read_capsule(path, quiet)
    answers = iter(free[:-1])
    monkeypatch.setattr(restore, "_free_bytes", lambda _: next(answers, free[-1]))

    with (
        pytest.raises(CapsuleError, match=r" free; free some space\."),
        RestoreStaging(settings.data_dir, "globex") as staging,
        restore_capsule(capsule, staging, None, quiet),
    ):
        pass

    assert {} == tree(settings.data_dir)
