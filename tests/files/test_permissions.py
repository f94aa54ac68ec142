"""Tenantry finds out which other users of the machine can read or change a file."""

import grp
import os
from pathlib import Path

import pytest

from tenantry.files.permissions import (
    create_private_files,
    describe_writers,
    find_open,
    is_replaceable,
    is_writable_by_all,
)

OWN_GROUP = grp.getgrgid(os.getegid()).gr_name


@pytest.mark.parametrize("mask", [0, 0o022, 0o777])
def test_new_files_are_private_under_any_umask(tmp_path: Path, mask: int) -> None:
    """A process whose files are private gives no rights to others, and keeps other restrictions."""
    os.umask(mask)

    create_private_files()

    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("folder", "file")]
    assert [0o700 & ~mask, 0o600 & ~mask] == modes


@pytest.mark.parametrize(
    ("mode", "is_writable"), [(0o600, False), (0o664, False), (0o666, True), (0o602, True)]
)
def test_a_file_is_writable_by_all(tmp_path: Path, mode: int, *, is_writable: bool) -> None:
    """A file counts as writable by all only if its mode lets every user write to the file."""
    file = tmp_path / "file"
    file.touch()
    file.chmod(mode)

    assert is_writable == is_writable_by_all(file)


@pytest.mark.parametrize(
    ("mode", "writers"),
    [
        (0o644, ""),
        (0o664, f"the group {OWN_GROUP}"),
        (0o755, ""),
        (0o775, f"the group {OWN_GROUP}"),
    ],
)
def test_the_group_can_be_a_writer(tmp_path: Path, mode: int, writers: str) -> None:
    """The group of a group-writable file is reported as a writer."""
    file = tmp_path / "file"
    file.touch()
    file.chmod(mode)

    assert writers == describe_writers(file)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_another_owner_is_a_writer(tmp_path: Path) -> None:
    """If another user owns a file, that user is a writer; an unknown user is shown as a number."""
    file = tmp_path / "file"
    file.touch()
    file.chmod(0o664)
    os.chown(file, 61_234, 61_235)

    assert "its owner 61234 and the group 61235" == describe_writers(file)


@pytest.mark.parametrize(
    ("mode", "is_open"), [(0o755, False), (0o777, True), (0o1777, False), (0o775, False)]
)
def test_a_sticky_folder_protects_what_others_have_in_it(
    tmp_path: Path, mode: int, *, is_open: bool
) -> None:
    """In a world-writable folder without the sticky bit, every user can replace files."""
    folder = tmp_path / "folder"
    folder.mkdir()
    folder.chmod(mode)

    assert is_open == is_replaceable(folder)


def test_every_user_can_be_a_writer(tmp_path: Path) -> None:
    """For a world-writable data folder, every user is reported as a writer."""
    tmp_path.chmod(0o707)

    assert "every user" == describe_writers(tmp_path, with_others=True)


def test_a_missing_file_has_no_writers(tmp_path: Path) -> None:
    """A path that does not exist is neither writable nor readable for other users."""
    assert ("", []) == (describe_writers(tmp_path / "no"), find_open(tmp_path / "no"))


def test_open_names_are_found_in_a_folder_and_not_below(tmp_path: Path) -> None:
    """The list of accessible names has no private file, no link and no file of a subfolder."""
    folder = tmp_path / "acme"
    (folder / "private").mkdir(parents=True, mode=0o700)
    for name, mode in (("a.db", 0o644), ("b.db", 0o600), ("private/c.db", 0o644)):
        (folder / name).touch()
        (folder / name).chmod(mode)
    (folder / "link").symlink_to("a.db")
    folder.chmod(0o710)

    assert [".", "a.db"] == find_open(folder)
