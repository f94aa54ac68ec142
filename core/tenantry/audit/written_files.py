"""Records which files the apps write, and finds files that two tenants write.

Python reports each opened file to its audit hooks (PEP 578). The audit records the files that are
opened for writing, and the folders that are created, while a tenant's app is built and handles the
requests of the audit. Files in the tenant's own folder are its own.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from urllib.parse import unquote

from tenantry.audit.finding import AuditedTenant, Finding, finding_id, join_names
from tenantry.audit.process_snapshot import library_folders
from tenantry.audit.raw_access import is_a
from tenantry.audit.reference_path import relative_path

MAX_FILES = 10_000
"""Maximum number of records, so that a loop in an app does not fill the memory."""

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_SYSTEM = ("/dev/", "/proc/", "/sys/")


class WrittenFiles:
    """The files that apps have written while `of` was active.

    Python cannot remove an audit hook, so the hook stays in the process, but records nothing after
    the last `with` block.
    """

    def __init__(self) -> None:
        self._tenant = ""
        self._records: list[tuple[str, object]] = []
        sys.addaudithook(self._note)

    @contextmanager
    def of(self, tenant: str) -> Iterator[None]:
        """Record the files that are written in the `with` block, in any thread, for a tenant."""
        self._tenant = tenant
        try:
            yield
        finally:
            self._tenant = ""

    def _note(self, event: str, args: tuple[object, ...]) -> None:
        # An exception in this function would be raised in the code that opens the file.
        if not self._tenant or event not in _EVENTS or len(self._records) >= MAX_FILES:
            return
        index, is_write = _EVENTS[event]
        if is_write(args):
            self._records.append((self._tenant, args[index]))

    def paths(self) -> dict[str, list[str]]:
        """Return the real path of each written file, with the tenants that wrote the file."""
        found: dict[str, list[str]] = {}
        for tenant, value in self._records:
            path = _path_of(value)
            if path and tenant not in found.setdefault(path, []):
                found[path].append(tenant)
        return found


def _is_opened_for_writing(args: tuple[object, ...]) -> bool:
    _, mode, flags = args
    if type(mode) is str:
        return not {*"wax+"}.isdisjoint(mode)
    return type(flags) is int and bool(flags & _WRITING)


def _always(_: tuple[object, ...]) -> bool:
    return True


_EVENTS = {
    "open": (0, _is_opened_for_writing),
    "os.mkdir": (0, _always),
    "os.rename": (1, _always),
    "sqlite3.connect": (0, _always),
}
"""Maps each event to the index of the path in its arguments, and to a test for a write."""


def _path_of(value: object) -> str:
    """Return the real path of a file; "" for a file descriptor or a database in memory."""
    if not is_a(value, str, bytes, PurePath):
        return ""
    text = os.fsdecode(value)  # type: ignore[arg-type]
    if text.startswith("file:"):  # SQLite's URI
        text = unquote(text.removeprefix("file:").partition("?")[0])
    return "" if text in ("", ":memory:") or "\0" in text else os.path.realpath(text)


def shared_files(
    files: WrittenFiles, tenants: Sequence[AuditedTenant], data_dir: Path
) -> Iterator[Finding]:
    """Yield a finding for each file or folder that two tenants write outside of their folders."""
    own = {one.name: os.path.realpath(data_dir / one.name) for one in tenants}
    places = {one.name: one.tenant.file for one in tenants}
    host = os.path.realpath(data_dir)
    reported: list[str] = []
    for path, names in sorted(files.paths().items()):
        folders = {path, *map(str, PurePath(path).parents)}
        built = own.keys() & names  # a tenant that cannot be built also writes files
        outside = [name for name in built if own[name] not in folders]
        owner = next((name for name, folder in own.items() if folder in folders), "")
        is_shared = bool(owner and outside) or (len(outside) > 1 and not _is_own(path, host))
        if is_shared and folders.isdisjoint(reported):
            reported.append(path)
            yield _finding(path, sorted({*outside, owner} - {""}), owner, places)


def _is_own(path: str, host: str) -> bool:
    """Whether a path belongs to the host, the system or a library."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    is_hosts = path.startswith((f"{host}/.", f"{host}/secrets/")) or path == host
    return (
        is_hosts
        or path.startswith((*_SYSTEM, *library_folders(), f"{cache}/"))
        or "/__pycache__/" in path
    )


def _finding(path: str, names: Sequence[str], owner: str, places: dict[str, str]) -> Finding:
    shown = relative_path(path)
    text = f"{join_names(names)} write to the same path, {shown}"
    if owner:
        text = f"{join_names([name for name in names if name != owner])} writes to {shown}, which "
        text += f"is in the folder of {owner}"
    return Finding(
        id=finding_id("shared-file", shown),
        tenants=tuple(names),
        text=text,
        remedy="write to the tenant's own folder: Path(current_app.instance_path) / "
        f"{Path(path).name!r}",
        paths=tuple(f"{name}: writes {path}" for name in names[:2]),
        place=places[names[-1]],
    )
