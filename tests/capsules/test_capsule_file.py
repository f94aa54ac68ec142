"""The file of a capsule: whole or refused, written whole or not at all, in nobody's way."""

import errno
import os
import tarfile
from pathlib import Path

import pytest
import zstandard

from capsule_files import archive, parts_of, sealed
from tenantry.capsules.archive import BLOCK, CapsuleError, read_members, verify_trailer
from tenantry.capsules.archive_writer import ArchiveWriter, ChangedFileError

PARTS = [("capsule.json", b"{}"), ("files/a", b"1" * 700), (f"files/{'b' * 200}", b"")]
WHOLE = archive(PARTS)


def read(path: Path) -> list[tuple[str, bytes]]:
    """Return the parts of a capsule, as Tenantry reads it."""
    with path.open("rb") as file:
        seal = verify_trailer(file)
        return [(part.name, part.read(1 << 20)) for part in read_members(file, seal)]


def written(path: Path) -> Path:
    """Write a capsule of some parts."""
    with ArchiveWriter(path) as capsule:
        for name, content in PARTS:
            capsule.add(name, content)
    return path


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    """Parts come back in their order; the archive is one that other programs make, too."""
    path = written(tmp_path / "a")

    assert PARTS == read(path)
    assert [*dict(PARTS), "manifest.jsonl"] == [*parts_of(path)]
    path.write_bytes(sealed(archive(PARTS)))
    assert PARTS == read(path)


def test_a_capsule_cut_between_blocks_is_refused(tmp_path: Path) -> None:
    """Wherever its archive ends too early, at the end of a part as well, with a good hash."""
    path = tmp_path / "a"
    accepted = []

    for end in range(0, len(WHOLE) - 2 * BLOCK, BLOCK):
        for padding in (b"", bytes(2 * BLOCK)):
            path.write_bytes(sealed(WHOLE[:end] + padding))
            try:
                read(path)
                accepted.append((end, padding))
            except CapsuleError:
                pass

    assert [] == accepted


LIES = {
    "empty": (b"", "its end is missing"),
    "no end": (b"x" * 100, "its end is missing"),
    "another hash": (sealed(WHOLE)[:-1] + b"\0", "another SHA-256"),
    "another content": (b"\0" + sealed(WHOLE)[1:], "another SHA-256"),
    "no archive": (sealed(b"no archive" * 100), "damaged one"),
    "no frame after it": (sealed(WHOLE, after=b"no frame"), "damaged one"),
    "nothing in the manifest": (sealed(archive(PARTS, b"")), "not those of its manifest"),
    "another manifest": (sealed(archive(PARTS, b"{}\n")), "not those of its manifest"),
    "another block": (sealed(WHOLE + bytes(BLOCK)), "comes after its manifest"),
    "a byte less": (sealed(WHOLE, len(WHOLE) - 1), "it is cut"),
    "a byte more": (sealed(WHOLE, len(WHOLE) + 1), "comes after its manifest"),
    "a byte after it": (sealed(WHOLE + b"1", len(WHOLE)), "more than it says"),
    "a frame after it": (
        sealed(WHOLE, after=zstandard.ZstdCompressor().compress(b"1")),
        "more than it says",
    ),
}


@pytest.mark.parametrize(("content", "reason"), LIES.values(), ids=LIES)
def test_a_lying_capsule_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    """What its end, its manifest and its archive say must be one."""
    path = tmp_path / "a"
    path.write_bytes(content)

    with pytest.raises(CapsuleError, match=reason):
        read(path)


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.XHDTYPE, tarfile.DIRTYPE, b"S"]
)
def test_only_files_are_taken(tmp_path: Path, kind: bytes) -> None:
    """A link, a folder, or a header that says how to read others ends the reading."""
    info = tarfile.TarInfo("files/a")
    info.type, info.linkname = kind, "/etc"
    path = tmp_path / "a"
    path.write_bytes(sealed(info.tobuf(tarfile.GNU_FORMAT) + bytes(2 * BLOCK)))

    with pytest.raises(CapsuleError, match="which is no file"):
        read(path)


def test_a_long_path_is_kept(tmp_path: Path) -> None:
    """Any name that Linux allows comes back, bytes that are no text included."""
    path, name = tmp_path / "a.capsule", f"files/{'ä' * 120}/{'x' * 255}\udcff"
    with ArchiveWriter(path) as capsule:
        capsule.add(name, b"1")

    assert [(name, b"1")] == read(path)


def test_a_failed_backup_leaves_the_older_one(tmp_path: Path) -> None:
    """What does not come to its end was never there."""
    path = tmp_path / "a.capsule"
    path.write_text("older")

    with pytest.raises(TypeError), ArchiveWriter(path) as capsule:
        capsule.add("files/a", "no bytes")  # type: ignore[arg-type]

    assert [("a.capsule", "older")] == [(one.name, one.read_text()) for one in tmp_path.iterdir()]


def test_an_older_capsule_is_replaced(tmp_path: Path) -> None:
    """A file that was there when the backup began is another one when it ends."""
    path = tmp_path / "a"
    path.write_text("older")

    assert PARTS == read(written(path))


def _no_links(*_: object) -> None:
    raise PermissionError(errno.EPERM, "Operation not permitted")


def test_a_disk_needs_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On vfat, which has none, a capsule is renamed to its name."""
    monkeypatch.setattr(os, "link", _no_links)

    assert PARTS == read(written(tmp_path / "a"))
    assert ["a"] == [one.name for one in tmp_path.iterdir()]


@pytest.mark.parametrize("has_links", [False, True])
@pytest.mark.parametrize("was_there", [False, True])
def test_what_appeared_meanwhile_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, was_there: bool, has_links: bool
) -> None:
    """A file that somebody else has put there since the backup began stays."""
    if not has_links:
        monkeypatch.setattr(os, "link", _no_links)
    path, other = tmp_path / "a", tmp_path / "b"
    other.write_text("other")
    if was_there:
        path.write_text("older")

    with pytest.raises(CapsuleError, match="by somebody else meanwhile"), ArchiveWriter(path):
        other.replace(path)

    assert [("a", "other")] == [(one.name, one.read_text()) for one in tmp_path.iterdir()]


def test_what_killed_backups_left_is_swept(tmp_path: Path) -> None:
    """Unfinished capsules of this name go; those that somebody writes, and other files, stay."""
    names = [".a.0123abcd.new", ".a.b.0123abcd.new", ".b.0123abcd.new", ".a.new", ".a.tmp.new"]
    for name in names:
        (tmp_path / name).touch()

    with ArchiveWriter(tmp_path / "a"):
        written(tmp_path / "a")
        (tmp_path / "a").unlink()

    assert sorted(["a", *names[1:]]) == sorted(one.name for one in tmp_path.iterdir())


def test_a_file_that_becomes_shorter_is_noticed(tmp_path: Path) -> None:
    """A part is as long as its header says, or there is no capsule."""
    path = tmp_path / "a"
    path.write_bytes(b"12345678")

    with path.open("rb") as file, ArchiveWriter(tmp_path / "b") as capsule:
        file.seek(4)  # four bytes less than its size says
        with pytest.raises(ChangedFileError):
            capsule.add_file("files/a", file)
