"""Copies of folders with private code, so that a change on disk does not reach serving processes.

A process builds some tenants long after its start, and a process that replaces another one starts
long after the others. Therefore, all processes of a host read Python files from the same copies
(`generations`). The rest of the import system sees only the original paths: `__file__`, `__path__`
and tracebacks. Templates, static files and data files are not copied, but read from disk when used.

In a process without a snapshot, such as a command, all functions read the files on disk.
"""

import errno
import importlib.machinery
import io
import linecache
import os
import pkgutil
import shutil
import tempfile
import threading
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cache, wraps
from hashlib import blake2b
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import decode_source
from pathlib import Path
from typing import Any

from tenantry.private_code.copying import CodeCopyError, copy_code, may_hold_code

_DIGEST_CHARS = 16
"""Length of the name of a copy."""

_OWN = os.path.dirname(os.path.dirname(__file__))
"""The folder of Tenantry's own code, which belongs to the process like any library."""

_COMPILED = (
    (importlib.machinery.ExtensionFileLoader, importlib.machinery.EXTENSION_SUFFIXES),
    (importlib.machinery.SourcelessFileLoader, importlib.machinery.BYTECODE_SUFFIXES),
)
"""Modules without source code are never copied."""

_used: "CodeSnapshot | None" = None
"""The snapshot of this process."""


class CodeSnapshot:
    """The copies of all folders with private code, as the folders were when first needed.

    Thread-safe. Several processes can use the same snapshot. A folder is copied as a whole, and the
    copy appears at once.

    Args:
        folder: the folder that holds the copies.
        excluded: folders that hold no code, such as the data folder.
    """

    def __init__(self, folder: Path, excluded: Collection[str] = ()) -> None:
        self.folder = folder
        self.excluded = frozenset(excluded)
        self._lock = threading.Lock()  # held while a folder is copied
        # Entries are only added, and no code iterates, so that readers take no lock.
        self._copies: dict[str, str] = {}
        self._originals: dict[str, str] = {}

    def find(self, name: str, folders: Sequence[str]) -> ModuleSpec | None:
        """Return the spec of a module in folders, with original paths."""
        found = PathFinder.find_spec(name, [self._copy_with(name, folder) for folder in folders])
        if found is not None and found.loader is not None:
            return self._with_original_paths(found)
        for folder in folders:
            compiled = _finder_of_compiled(folder).find_spec(name)
            if compiled is not None and compiled.loader is not None:
                return compiled
        return None if found is None else self._with_original_paths(found)

    def _copy_with(self, name: str, folder: str) -> str:
        """Return the copy of a folder, which is made only if the folder has a module `name`."""
        known = self._known(folder) or self._adopt(folder)
        if known is not None or PathFinder.find_spec(name, [folder]) is None:
            return known or folder
        return self.copy_of(folder)

    def existing_copy_of(self, folder: str) -> str:
        """Return the copy of a folder, or the folder itself if it has no copy."""
        return self._known(folder) or folder

    def copy_of(self, folder: str) -> str:
        """Return the copy of a folder. If no process has copied the folder, copy it.

        Without a copy, the result is the folder itself: a folder that does not exist, an archive,
        or Tenantry's own code.

        Raises:
            CodeCopyError: the folder cannot be copied.
        """
        known = self._known(folder) or self._adopt(folder)
        if known is not None:
            return known
        if not os.path.isdir(folder) or _is_inside(folder, _OWN):
            return folder
        with self._lock:  # another thread or process may have made the copy in the meantime
            known = self._known(folder) or self._adopt(folder)
            if known is None:
                self._copy(folder)
                known = self._adopt(folder)
        if known is None:
            raise CodeCopyError(f"the copy of {folder} has been removed; run: tenantry restart.")
        return known

    def _adopt(self, folder: str) -> str | None:
        """Return the copy of a folder if a process has made one, and remember the copy."""
        copy = str(self._path_of_copy(folder))
        if not os.path.isdir(copy):
            return None
        self._originals[copy] = folder
        self._copies[folder] = copy
        return copy

    def _path_of_copy(self, folder: str) -> Path:
        return self.folder / blake2b(os.fsencode(folder), digest_size=8).hexdigest()

    def _known(self, path: str) -> str | None:
        """Return the copy of a folder that is in the innermost copied folder."""
        folder, parts = path, [""]
        while folder not in self._copies:
            folder, _, name = folder.rpartition(os.sep)
            if not folder or not may_hold_code(name):
                return None
            parts.insert(1, name)
        for excluded in self.excluded:
            if excluded != folder and _is_inside(excluded, folder) and _is_inside(path, excluded):
                return None
        return self._copies[folder] + os.sep.join(parts)

    def _copy(self, folder: str) -> None:
        """Copy a folder, unless another process makes the copy at the same time."""
        try:
            temporary = Path(tempfile.mkdtemp(dir=self.folder, prefix="new-"))
            try:
                copy_code(folder, temporary, self.excluded)
                _rename(temporary, self._path_of_copy(folder))
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        except OSError as error:
            raise CodeCopyError(
                f"cannot copy the Python files of {folder} to {self.folder}: {error.strerror}."
            ) from error

    def _with_original_paths(self, found: ModuleSpec) -> ModuleSpec:
        """Return the spec of a module in a copy, with the paths of the module's original."""
        locations = found.submodule_search_locations
        loader: Any = found.loader
        origin = found.origin
        if origin is not None and loader is not None:
            origin = self._original_of(origin)
            loader = type(loader)(found.name, origin)
        spec = ModuleSpec(found.name, loader, origin=origin)
        spec.has_location = origin is not None
        if locations is not None:
            spec.submodule_search_locations = [self._original_of(one) for one in locations]
        return spec

    def _original_of(self, path: str) -> str:
        length = len(str(self.folder)) + 1 + _DIGEST_CHARS
        copy, rest = path[:length], path[length:]
        return self._originals[copy] + rest if copy in self._originals else path


def use_snapshot(snapshot: CodeSnapshot | None) -> None:
    """Let this process read private code from a snapshot; None for the files on disk."""
    global _used  # noqa: PLW0603 - like `sys.path`, the source of code belongs to the process
    _used = snapshot
    if snapshot is not None:
        _list_modules_of_copies()


def used_snapshot() -> CodeSnapshot | None:
    """Return the snapshot from which this process reads private code, if any."""
    return _used


def copy_of(folder: str) -> str:
    """Return the folder from which this process reads the Python files of a folder."""
    return folder if _used is None else _used.copy_of(folder)


def read_code(path: str) -> bytes:
    """Return the content of a Python file, from the snapshot if there is one.

    Tracebacks and debuggers then show the lines of the copy, even if the file on disk has changed.

    Raises:
        OSError: the file cannot be read.
    """
    folder, name = os.path.split(path)
    source = os.path.join(copy_of(folder), name)
    with open(source, "rb") as file:
        data = file.read()
    if source != path:
        with suppress(SyntaxError, UnicodeDecodeError):  # the compiler reports the error
            lines = io.StringIO(decode_source(data)).readlines()
            linecache.cache[path] = (len(data), None, lines, path)
    return data


@cache
def _list_modules_of_copies() -> None:
    """Let `pkgutil.iter_modules` list the modules that an import finds, once in each process."""
    iter_modules = pkgutil.iter_modules

    @wraps(iter_modules)
    def iter_modules_of_copies(
        path: Iterable[str] | None = None, prefix: str = ""
    ) -> Iterator[pkgutil.ModuleInfo]:
        if _used is not None and path is not None and not isinstance(path, str):
            path = [_used.existing_copy_of(str(folder)) for folder in path]
        return iter_modules(path, prefix)

    pkgutil.iter_modules = iter_modules_of_copies  # type: ignore[assignment]


def _is_inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}{os.sep}")


def _rename(source: Path, target: Path) -> None:
    """Rename a folder, unless another process has made the target before."""
    try:
        source.rename(target)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise


@cache
def _finder_of_compiled(folder: str) -> importlib.machinery.FileFinder:
    return importlib.machinery.FileFinder(folder, *_COMPILED)
