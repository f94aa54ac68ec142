"""The host finds changes in a tenants folder. These tests control the time."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tenantry.tenants import folder as folder_module
from tenantry.tenants.file import list_tenant_files, read_content
from tenantry.tenants.folder import (
    RECENT_S,
    REMOVAL_S,
    WRITER_PATIENCE_S,
    FolderChanges,
    TenantsFolder,
)
from tenantry.tenants.round_robin import RoundRobin

SETTLE_S = folder_module.SETTLE_S + 0.01
"""A little longer than the settle time, because sums of floats are not exact."""

GOOD = b"SECRET_KEY = 1\n"
Write = Callable[[str, bytes], Path]


class Clock:
    """A clock that a test can set."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        """Return the time that the test has set."""
        return self.now_s


class Followed:
    """A tenants folder that a test scans step by step."""

    def __init__(self, path: Path, *, is_old: bool = False, share: float = 1.0) -> None:
        self.path = path
        self.share = share
        self.clock = Clock()
        age_s = 3600.0 if is_old else 0.0
        self.folder = TenantsFolder(path, clock=self.clock, wall_clock=lambda: time.time() + age_s)

    def write(self, name: str, source: bytes) -> Path:
        """Write a file in place."""
        path = self.path / name
        path.write_bytes(source)
        return path

    def look(self, after_s: float = 0.0) -> FolderChanges:
        """Scan the folder once, `after_s` seconds after the last scan."""
        self.clock.now_s += after_s
        return self.folder.look(self.share)

    def reported(self, after_s: float = 0.0) -> list[tuple[str, bytes]]:
        """Return the name and content of each file that one scan reports as changed."""
        return [(one.path.stem, one.source) for one in self.look(after_s).changed]

    def settle(self) -> "Followed":
        """Scan until all files are reported and no time stamp is recent."""
        for _ in range(3):
            self.look(RECENT_S)
        return self


@pytest.fixture(name="followed", params=[1.0, 0.01], ids=["all", "round robin"])
def _followed(tenants_dir: Path, request: pytest.FixtureRequest) -> Followed:
    """Return an empty tenants folder. Each scan reads all files, or one file."""
    return Followed(tenants_dir, share=request.param)


def test_a_new_file_is_reported_when_it_is_stable(followed: Followed) -> None:
    """A new tenant file is reported immediately, and read as soon as it is stable."""
    followed.write("acme.py", GOOD)

    first, early, settled, after = [followed.look(s) for s in (0, SETTLE_S / 2, SETTLE_S, SETTLE_S)]

    assert (["acme"], [], False) == (first.appeared, first.changed, first.is_settled)
    assert ([], [], False) == (early.appeared, early.changed, early.is_settled)
    assert ["acme"] == [one.path.stem for one in settled.changed]
    assert ([], True) == (after.changed, after.is_settled)


def test_at_start_an_old_file_is_reported_unread(tenants_dir: Path) -> None:
    """At the start of a host, an old tenant file is reported without being read."""
    followed = Followed(tenants_dir, is_old=True)
    followed.write("acme.py", GOOD)

    reported = followed.reported()

    assert [("acme", b"")] == reported


def test_a_file_reported_unread_is_reported_again_only_when_its_content_changes(
    tenants_dir: Path,
) -> None:
    """A tenant file with known content is reported again only if its content changes."""
    followed = Followed(tenants_dir, is_old=True)
    path = followed.write("acme.py", GOOD)
    followed.look()
    followed.folder.note_digest("acme", read_content(path).digest, is_readable=True)
    path.touch()

    reported = [followed.reported(SETTLE_S) for _ in range(3)]

    assert [[], [], []] == reported


def test_a_file_that_changes_before_its_digest_is_noted_is_reported(tenants_dir: Path) -> None:
    """If a tenant file changes while its old content is being read, the change is reported."""
    followed = Followed(tenants_dir, is_old=True)
    path = followed.write("acme.py", GOOD)
    followed.look()
    digest = read_content(path).digest
    followed.write("acme.py", b"X = 2\n")
    reported = [followed.reported()]

    followed.folder.note_digest("acme", digest, is_readable=True)

    reported += [followed.reported(SETTLE_S) for _ in range(3)]
    assert [[], [("acme", b"X = 2\n")], [], []] == reported


def test_a_name_that_is_gone_does_not_appear_again(tenants_dir: Path) -> None:
    """A removed tenant file is not reported as new by a later partial scan."""
    followed = Followed(tenants_dir)
    paths = [followed.write(f"t{number}.py", GOOD) for number in range(6)]
    followed.settle().share = 0.2
    followed.look(RECENT_S)
    for path in paths:
        path.unlink()

    looks = [followed.look(REMOVAL_S) for _ in range(9)]

    assert 6 == sum(len(one.removed) for one in looks)
    assert [] == [name for one in looks for name in one.appeared]


def test_after_the_start_no_time_stamp_makes_a_file_old(tenants_dir: Path) -> None:
    """After the start of a host, a new tenant file must be stable, whatever its time stamp.

    A file server's clock may be wrong.
    """
    followed = Followed(tenants_dir, is_old=True)
    followed.look()
    followed.write("acme.py", GOOD)

    reported = [followed.reported(), followed.reported(SETTLE_S)]

    assert [[], [("acme", GOOD)]] == reported


def test_a_half_written_file_is_never_reported(followed: Followed) -> None:
    """A tenant file that grows between scans is reported only when it is complete."""
    reported = []
    for end in range(1, len(GOOD) + 1):
        followed.write("acme.py", GOOD[:end])
        reported += followed.reported(SETTLE_S)

    reported += followed.reported(SETTLE_S)

    assert [("acme", GOOD)] == reported


def test_a_changed_file_is_reported(followed: Followed) -> None:
    """Changed content of a tenant file is reported once."""
    followed.write("acme.py", GOOD)
    followed.settle().write("acme.py", b"OTHER = 22\n")

    reported = [followed.reported(SETTLE_S) for _ in range(3)]

    assert [[], [("acme", b"OTHER = 22\n")], []] == reported


def test_a_second_change_within_one_time_stamp_is_reported(followed: Followed) -> None:
    """A change to a recent tenant file is found, even if the size and time stamps stay the same."""
    path = followed.write("acme.py", b"X = 1\n")
    followed.settle()
    stamp = path.stat().st_mtime_ns
    real_stat = os.stat_result(path.stat())
    path.write_bytes(b"X = 2\n")
    os.utime(path, ns=(stamp, stamp))
    reported = [followed.reported(SETTLE_S), followed.reported(SETTLE_S)]
    signature = followed.folder._files["acme"].signature
    path.write_bytes(b"X = 3\n")
    os.utime(path, ns=(stamp, stamp))

    # A program cannot set a file's change time, so the test edits the recorded value.
    followed.folder._files["acme"].signature = _signature_of(path)
    reported += [followed.reported(SETTLE_S), followed.reported(SETTLE_S)]

    assert signature
    assert real_stat.st_size == path.stat().st_size
    assert [[], [("acme", b"X = 2\n")], [], [("acme", b"X = 3\n")]] == reported


def _signature_of(path: Path) -> int:
    info = path.stat()
    facts = (info.st_mtime_ns, info.st_ctime_ns, info.st_size, info.st_ino, info.st_mode)
    return hash(facts)


def test_a_quiet_file_is_not_read_again(
    followed: Followed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scan reads only the status, and not the content, of an old tenant file."""
    followed.write("acme.py", GOOD)
    followed.settle()
    read: list[Path] = []
    monkeypatch.setattr("tenantry.tenants.folder.read_content", read.append)

    followed.look(RECENT_S)

    assert [] == read


def test_a_touch_is_not_a_change(followed: Followed) -> None:
    """A new time stamp or file mode without new content is not reported as a change."""
    path = followed.write("acme.py", GOOD)
    followed.settle()
    path.touch()
    path.chmod(0o600)

    looks = [followed.look(SETTLE_S) for _ in range(3)]

    assert [([], [], True)] * 3 == [(one.changed, one.removed, one.is_settled) for one in looks]


def test_a_removed_file_is_reported_after_a_while(followed: Followed) -> None:
    """The removal of a tenant file is reported once, after `REMOVAL_S`."""
    path = followed.write("acme.py", GOOD)
    followed.settle()
    path.unlink()

    removed = [followed.look(s).removed for s in (0, REMOVAL_S / 2, REMOVAL_S, REMOVAL_S)]

    assert [[], [], ["acme"], []] == removed


def test_delete_and_rewrite_is_not_a_removal(followed: Followed) -> None:
    """If an editor deletes and rewrites a tenant file, that is a change and not a removal."""
    path = followed.write("acme.py", GOOD)
    followed.settle()
    path.unlink()
    looks = [followed.look(), followed.look(REMOVAL_S / 2)]
    followed.write("acme.py", b"X = 2\n")

    looks += [followed.look(SETTLE_S) for _ in range(8)]

    assert [[], []] == [[name for one in looks for name in one.removed], looks[0].changed]
    assert [b"X = 2\n"] == [each.source for one in looks for each in one.changed]


def test_a_removed_file_that_comes_back_appears_again(followed: Followed) -> None:
    """A tenant file that returns after its removal is reported, even with the same content."""
    path = followed.write("acme.py", GOOD)
    followed.settle()
    path.unlink()
    followed.look()
    removed = followed.look(REMOVAL_S).removed
    followed.write("acme.py", GOOD)

    looks = [followed.look(SETTLE_S), followed.look(SETTLE_S)]

    assert (["acme"], ["acme"]) == (removed, looks[0].appeared)
    assert [GOOD] == [one.source for one in looks[1].changed]


def test_a_rename_adds_a_file_and_later_removes_one(followed: Followed) -> None:
    """After a tenant file is renamed, the new name is reported first, and then the removal."""
    path = followed.write("acme.py", GOOD)
    followed.settle()
    path.rename(path.with_name("globex.py"))

    looks = [followed.look(s) for s in (0, SETTLE_S, REMOVAL_S)]

    assert [["globex"], [], []] == [one.appeared for one in looks]
    assert [[], ["globex"], []] == [[each.path.stem for each in one.changed] for one in looks]
    assert [[], [], ["acme"]] == [one.removed for one in looks]


def test_a_folder_that_vanishes_removes_nothing(followed: Followed) -> None:
    """While the tenants folder is missing, a scan raises and removes no tenant."""
    followed.write("acme.py", GOOD)
    followed.write("globex.py", GOOD)
    followed.settle()
    away = followed.path.with_name("away")
    followed.path.rename(away)
    for _ in range(3):
        with pytest.raises(FileNotFoundError):
            followed.look(REMOVAL_S)
    away.rename(followed.path)
    followed.write("globex.py", b"X = 2\n")

    looks = [followed.look(SETTLE_S) for _ in range(3)]

    assert [("globex", b"X = 2\n")] == [
        (each.path.stem, each.source) for one in looks for each in one.changed
    ]
    assert [[]] * 3 == [one.removed for one in looks]


def test_only_named_files_are_followed(tenants_dir: Path) -> None:
    """With `--only`, other tenant files are not reported."""
    followed = Followed(tenants_dir)
    followed.folder = TenantsFolder(tenants_dir, ["acme"], clock=followed.clock)
    for name in ("acme.py", "globex.py"):
        followed.write(name, GOOD)

    looks = [followed.look(RECENT_S) for _ in range(2)]

    assert ["acme"] == [name for one in looks for name in one.appeared]
    assert ["acme"] == [each.path.stem for one in looks for each in one.changed]


def test_an_empty_folder_in_its_place_removes_nothing(followed: Followed) -> None:
    """If the volume of the tenants folder is unmounted, the empty mount point removes no tenant."""
    followed.write("acme.py", GOOD)
    followed.settle()
    away = followed.path.with_name("away")
    followed.path.rename(away)
    followed.path.mkdir()
    for _ in range(3):
        with pytest.raises(OSError, match="not mounted"):
            followed.look(REMOVAL_S)
    followed.path.rmdir()
    away.rename(followed.path)
    followed.write("globex.py", GOOD)

    looks = [followed.look(REMOVAL_S) for _ in range(3)]

    assert ["globex"] == [each.path.stem for one in looks for each in one.changed]
    assert [[]] * 3 == [one.removed for one in looks]


def test_another_folder_counts_once_it_has_files(followed: Followed) -> None:
    """A folder that replaces the tenants folder is used as soon as it contains a tenant file."""
    followed.write("acme.py", GOOD)
    followed.settle()
    followed.path.rename(followed.path.with_name("away"))
    followed.path.mkdir()
    followed.write("globex.py", GOOD)

    looks = [followed.look(REMOVAL_S) for _ in range(3)]

    assert ["acme"] == [name for one in looks for name in one.removed]


def test_an_emptied_folder_has_no_tenants(followed: Followed) -> None:
    """If all files in the tenants folder are deleted, all tenants are removed."""
    paths = [followed.write(name, GOOD) for name in ("acme.py", "globex.py")]
    followed.settle()
    for path in paths:
        path.unlink()

    removed = [name for _ in range(2) for name in followed.look(REMOVAL_S).removed]

    assert ["acme", "globex"] == sorted(removed)


def test_a_file_counts_when_its_writer_has_closed_it(followed: Followed) -> None:
    """A tenant file is read only when the program that writes it has closed the file."""
    path = followed.write("acme.py", GOOD)
    followed.settle()
    with path.open("wb", buffering=0) as file:
        file.write(b"X = 2\n")
        while_open = [each for _ in range(3) for each in followed.reported(1.0)]
        file.write(b"Y = 3\n")

    reported = [each for _ in range(2) for each in followed.reported(SETTLE_S)]

    assert ([], [("acme", b"X = 2\nY = 3\n")]) == (while_open, reported)


def test_a_file_that_is_never_closed_counts_after_a_while(followed: Followed) -> None:
    """A tenant file that a program keeps open for writing is read after `WRITER_PATIENCE_S`."""
    with (followed.path / "acme.py").open("wb", buffering=0) as file:
        file.write(GOOD)
        followed.look()
        early = followed.reported(WRITER_PATIENCE_S - 0.1)
        late = followed.reported(0.2)

    assert ([], [("acme", GOOD)]) == (early, late)


def test_the_swap_of_a_config_map_is_a_change(followed: Followed) -> None:
    """When Kubernetes updates a ConfigMap, the tenant files in it count as changed."""
    for version, source in (("..1", b"X = 1\n"), ("..2", b"X = 2\n")):
        (followed.path / version).mkdir()
        (followed.path / version / "acme.py").write_bytes(source)
    (followed.path / "..data").symlink_to("..1")
    (followed.path / "acme.py").symlink_to("..data/acme.py")
    first = [one.source for _ in range(2) for one in followed.look(SETTLE_S).changed]
    followed.settle()
    (followed.path / "..new").symlink_to("..2")

    (followed.path / "..new").replace(followed.path / "..data")

    looks = [followed.look(SETTLE_S) for _ in range(3)]
    changed = [one.source for look in looks for one in look.changed]
    assert ([b"X = 1\n"], [b"X = 2\n"]) == (first, changed)
    assert [[]] * 3 == [one.removed for one in looks]


def _directory(path: Path) -> None:
    path.mkdir()


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def _huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(50 << 20)


def _writable_by_all(path: Path) -> None:
    path.write_bytes(GOOD)
    path.chmod(0o666)


@pytest.mark.parametrize("make", [_directory, _fifo, _dangling, _huge, _writable_by_all])
def test_an_unreadable_file_is_reported_with_its_error(
    followed: Followed, make: Callable[[Path], None]
) -> None:
    """An unreadable tenant file is reported once, and again when it can be read."""
    path = followed.path / "acme.py"
    make(path)
    reported = [one for _ in range(5) for one in followed.look(RECENT_S).changed]
    path.rmdir() if make is _directory else path.unlink()
    path.write_bytes(GOOD)

    fixed = [one for _ in range(3) for one in followed.look(SETTLE_S).changed]

    assert ([False], b"") == ([one.error is None for one in reported], reported[0].source)
    assert [(None, GOOD)] == [(one.error, one.source) for one in fixed]


def test_a_file_is_reported_when_its_folder_becomes_safe(
    followed: Followed,
) -> None:
    """When the mode of the tenants folder becomes safe, its files are reported.

    The files themselves do not change, so each scan reads them.
    """
    followed.path.chmod(0o777)
    followed.write("acme.py", GOOD)
    refused = [one.error for _ in range(5) for one in followed.look(RECENT_S).changed]
    followed.path.chmod(0o755)

    fixed = [one.source for _ in range(2) for one in followed.look(SETTLE_S).changed]

    assert (1, [GOOD]) == (len(refused), fixed)


def test_a_file_that_goes_between_list_and_read_is_only_missing(
    tenants_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tenant file that vanishes during a scan is not an error, and is not removed immediately."""
    followed = Followed(tenants_dir)
    path = followed.write("acme.py", GOOD)
    followed.settle()
    names = {"acme"}
    path.unlink()
    with monkeypatch.context() as listed:
        listed.setattr(followed.folder, "_names", lambda: names)
        looks = [followed.look(SETTLE_S)]

    looks += [followed.look(s) for s in (SETTLE_S, REMOVAL_S)]

    assert [[], [], []] == [one.changed for one in looks]
    assert [[], [], ["acme"]] == [one.removed for one in looks]


def test_a_file_that_changes_between_list_and_read_is_reported_whole(
    followed: Followed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a tenant file changes while it is read, only its final content is reported."""
    path = followed.write("acme.py", GOOD)
    followed.settle()
    read = folder_module.read_content

    def late(at: Path) -> object:
        path.write_bytes(b"X = 3\n")
        return read(at)

    path.write_bytes(b"X = 2\n")
    with monkeypatch.context() as changing:
        changing.setattr("tenantry.tenants.folder.read_content", late)
        reported = followed.reported(SETTLE_S)

    reported += [each for _ in range(3) for each in followed.reported(SETTLE_S)]

    assert [("acme", b"X = 3\n")] == reported


@pytest.mark.parametrize("name", [".acme.py", "_acme.py", "acme.pyc", "acme.py~", "acme", ".py"])
def test_other_files_are_not_tenants(followed: Followed, name: str) -> None:
    """A file whose name begins with `_` or `.`, or does not end in `.py`, is not a tenant file."""
    followed.write(name, GOOD)

    look = followed.look()

    assert ([], []) == (look.appeared, list_tenant_files(followed.path))


def test_files_are_listed_by_name(followed: Followed) -> None:
    """Tenant files are sorted by tenant name, so `globex` comes before `globex-2`."""
    for name in ("globex-2.py", "globex.py", "acme.py"):
        followed.write(name, GOOD)

    names = [path.stem for path in list_tenant_files(followed.path)]

    assert ["acme", "globex", "globex-2"] == names


def test_a_file_written_in_place_is_reported_within_one_round(tenants_dir: Path) -> None:
    """A tenant file written in place is found when one of the partial scans reaches the file."""
    followed = Followed(tenants_dir, share=0.25)
    for name in "abcd":
        followed.write(f"{name}.py", GOOD)
    followed.settle()
    followed.write("b.py", b"X = 2\n")

    reported = [followed.reported(SETTLE_S) for _ in range(4 + 1)]

    assert [("b", b"X = 2\n")] == [one for look in reported for one in look]


def test_a_replaced_file_is_reported_at_once(tenants_dir: Path) -> None:
    """A replaced tenant file is found immediately, even by a partial scan."""
    followed = Followed(tenants_dir, share=0.25)
    for name in "abcd":
        followed.write(f"{name}.py", GOOD)
    followed.settle()
    for name in "bc":
        followed.write(f".{name}.new", b"X = 2\n").replace(tenants_dir / f"{name}.py")

    reported = [followed.reported(SETTLE_S) for _ in range(2)]

    assert [[], ["b", "c"]] == [sorted(name for name, _ in look) for look in reported]


@pytest.mark.parametrize(("link", "expected"), [(None, False), (os.symlink, True), (os.link, True)])
def test_a_file_with_another_name_is_noticed(
    followed: Followed, link: Callable[[Path, Path], None] | None, *, expected: bool
) -> None:
    """The folder reports links to tenant files, because file events miss changes through links."""
    target = followed.write("_settings.py", GOOD)
    followed.write("acme.py", GOOD)
    if link is not None:
        link(target, followed.path / "globex.py")

    followed.settle()

    assert expected == followed.folder.has_links


@pytest.mark.parametrize("share", [1.0, 0.5, 0.3, 0.01])
def test_each_name_has_its_turn_once_in_a_round(share: float) -> None:
    """Partial scans read each tenant file exactly once per round."""
    names, turns = [f"t{number}" for number in range(10)], RoundRobin()

    taken: list[str] = []
    while len(taken) < 10:
        taken += turns.take(names, share)

    assert names == sorted(taken)


def test_a_new_name_waits_for_the_next_round() -> None:
    """A tenant file that is new during a round of partial scans is read in the next round."""
    turns = RoundRobin()
    first = turns.take(["a", "b"], 0.5)
    rest = turns.take([*first, "c"], 0.5)
    later = turns.take(["c", "d"], 0.5) + turns.take(["c", "d"], 0.5)

    assert (1, [], ["c", "d"]) == (len(first), rest, sorted(later))
