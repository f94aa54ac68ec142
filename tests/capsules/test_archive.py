"""A backup file is read completely or rejected, and written completely or not at all."""

import tarfile
from pathlib import Path

import pytest
import zstandard

from capsule_files import archive, members_of, sealed
from tenantry.capsules.archive import BLOCK_BYTES, CapsuleError, read_members, verify_trailer
from tenantry.capsules.archive_writer import ArchiveWriter

MEMBERS = [("capsule.json", b"{}"), ("files/a", b"1" * 700), (f"files/{'b' * 200}", b"")]
ARCHIVE = archive(MEMBERS)


def read(path: Path) -> list[tuple[str, bytes]]:
    """Return the members of a backup file that Tenantry's own code reads."""
    with path.open("rb") as file:
        trailer = verify_trailer(file)
        return [(member.name, member.read(1 << 20)) for member in read_members(file, trailer)]


def write(path: Path) -> Path:
    """Write a backup file."""
    with ArchiveWriter(path) as capsule:
        for name, content in MEMBERS:
            capsule.add(name, content)
    return path


def test_members_come_back_in_order(tmp_path: Path) -> None:
    """Other programs can read the archives that Tenantry writes, and Tenantry can read theirs."""
    path = write(tmp_path / "a")

    assert MEMBERS == read(path)
    assert [*dict(MEMBERS), "manifest.jsonl"] == [*members_of(path)]
    path.write_bytes(sealed(archive(MEMBERS)))
    assert MEMBERS == read(path)


def test_an_archive_that_ends_too_early_is_rejected(tmp_path: Path) -> None:
    """A truncated backup is rejected, even if its hash is correct and it ends between two files."""
    path = tmp_path / "a"
    accepted = []

    for end in range(0, len(ARCHIVE) - 2 * BLOCK_BYTES, BLOCK_BYTES):
        for padding in (b"", bytes(2 * BLOCK_BYTES)):
            path.write_bytes(sealed(ARCHIVE[:end] + padding))
            try:
                read(path)
                accepted.append((end, padding))
            except CapsuleError:
                pass

    assert [] == accepted


INCONSISTENT = {
    "empty": (b"", "its end is missing"),
    "no trailer": (b"x" * 100, "its end is missing"),
    "another hash": (sealed(ARCHIVE)[:-1] + b"\0", "the SHA-256 differs"),
    "another content": (b"\0" + sealed(ARCHIVE)[1:], "the SHA-256 differs"),
    "no tar archive": (sealed(b"no archive" * 100), "is damaged"),
    "no frame after it": (sealed(ARCHIVE, after=b"no frame"), "is damaged"),
    "empty manifest": (sealed(archive(MEMBERS, b"")), "differ from its manifest"),
    "another manifest": (sealed(archive(MEMBERS, b"{}\n")), "differ from its manifest"),
    "another block": (sealed(ARCHIVE + bytes(BLOCK_BYTES)), "data after its manifest"),
    "a byte less": (sealed(ARCHIVE, len(ARCHIVE) - 1), "ends too early"),
    "a byte more": (sealed(ARCHIVE, len(ARCHIVE) + 1), "data after its manifest"),
    "a byte after it": (sealed(ARCHIVE + b"1", len(ARCHIVE)), "more than its trailer states"),
    "a frame after it": (
        sealed(ARCHIVE, after=zstandard.ZstdCompressor().compress(b"1")),
        "more than its trailer states",
    ),
}


@pytest.mark.parametrize(("content", "reason"), INCONSISTENT.values(), ids=INCONSISTENT)
def test_an_inconsistent_capsule_is_rejected(tmp_path: Path, content: bytes, reason: str) -> None:
    """A backup file is rejected if its trailer, manifest and archive do not agree."""
    path = tmp_path / "a"
    path.write_bytes(content)

    with pytest.raises(CapsuleError, match=reason):
        read(path)


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.XHDTYPE, tarfile.DIRTYPE, b"S"]
)
def test_only_regular_files_are_accepted(tmp_path: Path, kind: bytes) -> None:
    """A backup file that contains a link, a folder or an extended header is rejected."""
    info = tarfile.TarInfo("files/a")
    info.type, info.linkname = kind, "/etc"
    path = tmp_path / "a"
    path.write_bytes(sealed(info.tobuf(tarfile.GNU_FORMAT) + bytes(2 * BLOCK_BYTES)))

    with pytest.raises(CapsuleError, match="not a regular file"):
        read(path)


def test_any_path_of_linux_comes_back(tmp_path: Path) -> None:
    """A backup file keeps long paths, and paths that are not valid UTF-8, unchanged."""
    path, name = tmp_path / "a.capsule", f"files/{'ä' * 120}/{'x' * 255}\udcff"
    with ArchiveWriter(path) as capsule:
        capsule.add(name, b"1")

    assert [(name, b"1")] == read(path)


def test_a_failed_backup_keeps_the_older_capsule(tmp_path: Path) -> None:
    """A backup that fails leaves no file behind, and keeps an existing file of the same name."""
    path = tmp_path / "a.capsule"
    path.write_text("older")

    with pytest.raises(TypeError), ArchiveWriter(path) as capsule:
        capsule.add("files/a", "not bytes")  # type: ignore[arg-type]

    assert [("a.capsule", "older")] == [
        (file.name, file.read_text()) for file in tmp_path.iterdir()
    ]


def test_a_new_capsule_replaces_an_older_one(tmp_path: Path) -> None:
    """A backup to the path of an existing backup file replaces the backup file."""
    path = tmp_path / "a"
    path.write_text("older")

    assert MEMBERS == read(write(path))


def test_a_writer_removes_what_killed_backups_left(tmp_path: Path) -> None:
    """A backup deletes unfinished files that killed backups to the same path left behind."""
    names = [".a.0123abcd.new", ".a.b.0123abcd.new", ".b.0123abcd.new", ".a.new", ".a.tmp.new"]
    for name in names:
        (tmp_path / name).touch()

    with ArchiveWriter(tmp_path / "a"):
        write(tmp_path / "a")
        (tmp_path / "a").unlink()

    assert sorted(["a", *names[1:]]) == sorted(path.name for path in tmp_path.iterdir())


def test_a_file_that_becomes_shorter_ends_the_backup(tmp_path: Path) -> None:
    """If a file shrinks while a backup reads it, the backup fails and writes no backup file."""
    path = tmp_path / "a"
    path.write_bytes(b"12345678")

    with path.open("rb") as file, ArchiveWriter(tmp_path / "b") as capsule:
        file.seek(4)  # the tar header states four bytes more than remain
        with pytest.raises(CapsuleError, match="became shorter"):
            capsule.add_file("files/a", file)
