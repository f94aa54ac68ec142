"""Small capsules that would fill memory or a disk: refused in one line, and nothing is left."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from capsule_files import Parts, archive, heads, quiet, sealed, tree
from shops import WriteShop, environment, first, write_shop_fixture
from tenantry.capsules import RestoreStaging, read_capsule, restore, restore_capsule
from tenantry.capsules.archive import CapsuleError
from tenantry.capsules.capsule import PART_BYTES, ROW_LIMIT_BYTES
from tenantry.capsules.json_values import FORM_LIMIT_BYTES
from tenantry.settings import HostSettings

pytestmark = pytest.mark.live

__all__ = ["write_shop_fixture"]

_TELLS_ITS_PEAK = """\
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


def rows(content: bytes) -> Parts:
    """Return the parts of a capsule with some rows."""
    begins = heads(tables=TABLES, revisions={"corp.shop": ["shop_1"]})
    return [*begins, ("tables/goods/000001.jsonl", content)]


BOMBS: dict[str, tuple[Callable[[], Parts], str]] = {
    "a row of lists": (
        lambda: rows(b"[" + b"[]," * (ROW_LIMIT_BYTES // 3 - 9) + b"1]\n"),
        "1 MiB of it are no texts",
    ),
    "a row of wide characters": (
        lambda: rows(b'["\\ud83d\\ude00' + b"x" * (ROW_LIMIT_BYTES - 99) + b'"]\n'),
        "table 'goods': ",
    ),
    "a row over the limit": (
        lambda: rows(b'["' + b"x" * (ROW_LIMIT_BYTES + PART_BYTES // 2) + b'"]\n'),
        "a row is larger than any that Tenantry writes",
    ),
    "many rows in a part": (lambda: rows(b"[1]\n" * (16 << 20)), "UNIQUE constraint failed"),
    "many keys": (lambda: heads(**{f"k{n}": 1 for n in range(150_000)}), "'k0': Extra inputs"),
    "many lists in the configuration": (
        lambda: heads(b'{"dict":[["A",[' + b"[]," * (FORM_LIMIT_BYTES // 3 - 9) + b"1]]]}"),
        "'BLUEPRINTS': is missing",
    ),
}


@pytest.mark.parametrize(("parts", "reason"), BOMBS.values(), ids=BOMBS)
def test_memory_does_not_grow_with_what_a_capsule_unpacks_to(
    settings: HostSettings,
    write_shop: WriteShop,
    tmp_path: Path,
    parts: Callable[[], Parts],
    reason: str,
) -> None:
    """A restore takes a few times the largest row there may be, whatever some kilobytes hold."""
    write_shop(first())
    path = tmp_path / "a"
    path.write_bytes(sealed(archive(parts())))
    assert path.stat().st_size < 100_000

    done = subprocess.run(
        [sys.executable, "-c", _TELLS_ITS_PEAK, "restore", "a", "--as", "globex"],
        cwd=tmp_path,
        env=environment(settings),
        capture_output=True,
        text=True,
        check=False,
    )

    told = [line for line in done.stderr.splitlines() if line.startswith("tenantry: ")]
    assert (1, 1, True) == (done.returncode, len(told), reason in told[0]), done
    assert int(done.stdout) < 10 * ROW_LIMIT_BYTES
    assert {} == tree(settings.data_dir)
    assert {} == tree(settings.tenants_dir)


def small_disk(monkeypatch: pytest.MonkeyPatch, *left: int) -> None:
    """Have the disk say that this many bytes are to spare; the last one again and again."""
    answers = iter(left[:-1])
    monkeypatch.setattr(restore, "_free", lambda _: next(answers, left[-1]))


@pytest.mark.parametrize("left", [(8191,), (1 << 20, 1 << 20, 2999)], ids=["before", "on the way"])
def test_a_disk_is_not_filled(
    settings: HostSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: tuple[int, ...]
) -> None:
    """What does not fit is refused before anything is made, or as soon as others have taken it."""
    path = tmp_path / "a"
    path.write_bytes(sealed(archive([*heads(), ("files/a", b"1"), ("files/b", b"1" * 3000)])))
    capsule = read_capsule(path, quiet)
    small_disk(monkeypatch, *left)

    with (
        pytest.raises(CapsuleError, match=r"to spare; make room\."),
        RestoreStaging(settings.data_dir, "globex") as place,
        restore_capsule(capsule, place, None, quiet),
    ):
        pass

    assert {} == tree(settings.data_dir)


def test_a_disk_has_room_for_so_many_files(
    settings: HostSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files without a byte take room as well: a disk can hold so many names."""
    path = tmp_path / "a"
    path.write_bytes(sealed(archive([*heads(), *((f"files/{n}/a", b"") for n in range(5))])))
    small_disk(monkeypatch, 1 << 20)
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_files=100, f_favail=9))

    with (
        pytest.raises(CapsuleError, match=r"holds 10 files and folders, and .* can take 9 more"),
        RestoreStaging(settings.data_dir, "globex") as place,
        restore_capsule(read_capsule(path, quiet), place, None, quiet),
    ):
        pass
