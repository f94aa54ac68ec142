"""Records what the application does to files, servers and programs, and keeps real files unchanged.

Python reports each such operation to its audit hooks (PEP 578). An operation that would change a
file outside of the throw-away folder fails, as on a read-only file system. C code that opens files
or connections without Python, such as a database driver, is not recorded.
"""

import errno
import os
import socket
import sqlite3
import sys
import threading
from collections.abc import Callable
from pathlib import Path, PurePath
from urllib.parse import parse_qs, unquote

from tenantry.adoption.fact import Fact, FactKind
from tenantry.adoption.origin import find_origin
from tenantry.private_code.names import tenant_of

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

_CHANGES = {
    "os.chmod": ((0, 2),), "os.chown": ((0, 3),), "os.link": ((1, 3),), "os.mkdir": ((0, 2),),
    "os.remove": ((0, 1),), "os.rename": ((0, 2), (1, 3)), "os.rmdir": ((0, 1),),
    "os.symlink": ((1, 2),), "os.truncate": ((0, None),), "os.utime": ((0, 3),),
}  # fmt: skip
"""Maps each event that changes a file or folder to the indices of paths in its arguments. Each path
can be relative to a folder, whose file descriptor has the second index."""

_CONNECTIONS: dict[str, FactKind] = {"socket.connect": "connection", "socket.bind": "listener"}

_STORES = ("memcache", "pymemcache", "pymongo", "redis", "valkey")
"""Libraries of stores whose keys belong to all clients of a database."""

_PROGRAMS = {"subprocess.Popen": 1, "os.system": 0, "os.posix_spawn": 1, "os.exec": 1}
"""Maps each event that starts a program to the index of the command in its arguments."""

_FORKS = ("os.fork", "os.forkpty")

_EVENTS = {"open", *_FORKS, "sqlite3.connect", *_CHANGES, *_CONNECTIONS, *_PROGRAMS}

_CONNECTING = (__name__, "socket")
"""The modules between a library that connects to a server and the recording."""

_DEVICES = ("/dev/", "/proc/")

_MEMORY = ("", ":memory:")
"""Names of SQLite databases in memory, or in a temporary file."""


class Watch:
    """Records operations of this process, and prevents changes of files outside of a folder.

    After `begin`, it works until the process ends, because Python cannot remove an audit hook.

    Args:
        folder: the throw-away folder, which the application may change.
        root: the folder that paths in facts are relative to.
        write: receives the facts.
    """

    def __init__(self, folder: Path, root: Path, write: Callable[[Fact], None]) -> None:
        self._folder = f"{os.path.realpath(folder)}/"
        self._root = root
        self._write = write
        self._state = threading.local()  # keeps the hook from recording its own operations

    def begin(self) -> None:
        """Start to record."""
        sys.addaudithook(self._handle)

    def _handle(self, event: str, args: tuple[object, ...]) -> None:
        if event not in _EVENTS or getattr(self._state, "is_busy", False):
            return
        self._state.is_busy = True
        try:
            if event == "open" and _is_opened_for_writing(args):
                self._keep("file", args[0])
            elif event == "sqlite3.connect":
                self._keep_database(args[0])
            elif event in _CHANGES:
                for path, folder in _CHANGES[event]:
                    changed = _path_in(args[path], -1 if folder is None else args[folder])
                    self._keep("folder" if event == "os.mkdir" else "file", changed)
            elif event in _CONNECTIONS:
                kind: FactKind = "store" if self._is_own_store() else _CONNECTIONS[event]
                self._note(kind, _address(args[0], args[1]))
            elif event in _FORKS:
                self._note("fork", event)
            elif event in _PROGRAMS:
                self._note("program", _program(args[_PROGRAMS[event]]))
        finally:
            self._state.is_busy = False

    def _keep(self, kind: FactKind, value: object) -> None:
        path = _text(value)
        if path and not self._is_own(path):
            path = os.path.realpath(path)
            self._note(kind, self._shown(path), path)
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)

    def _keep_database(self, value: object) -> None:
        path = _text(value)
        if path.startswith("file:"):  # SQLite's URI
            name, _, query = path.removeprefix("file:").partition("?")
            options = parse_qs(query)
            if options.get("mode") in (["ro"], ["memory"]) or "immutable" in options:
                return
            path = unquote(name)
        if path not in _MEMORY and not self._is_own(path):
            path = os.path.realpath(path)
            self._note("database", self._shown(path), path)
            raise sqlite3.OperationalError("unable to open database file")

    def _is_own_store(self) -> bool:
        """Whether the application's own code, and not an extension, connects to a store."""
        library = find_origin(self._root, _CONNECTING).caller.partition(".")[0]
        caller = find_origin(self._root, (*_CONNECTING, *_STORES)).caller
        return library in _STORES and bool(tenant_of(caller))

    def _is_own(self, path: str) -> bool:
        return f"{os.path.realpath(path)}/".startswith((self._folder, *_DEVICES))

    def _shown(self, path: str) -> str:
        return os.path.relpath(path, self._root) if path.startswith(f"{self._root}/") else path

    def _note(self, kind: FactKind, subject: str, detail: str = "") -> None:
        origin = find_origin(self._root)
        is_known = bool(origin.place) or kind not in ("fork", "program")  # Tenantry starts some
        if subject and is_known and not origin.is_library_import:
            self._write(Fact(kind, subject, detail, origin.place))


def _is_opened_for_writing(args: tuple[object, ...]) -> bool:
    _, mode, flags = args
    if isinstance(mode, str):
        return not {*"wax+"}.isdisjoint(mode)
    return isinstance(flags, int) and bool(flags & _WRITING)


def _text(value: object) -> str:
    """Return a path as text; "" for a file descriptor."""
    return os.fsdecode(value) if isinstance(value, str | bytes | PurePath) else ""


def _path_in(value: object, folder: object) -> str:
    """Return a path that is relative to a file descriptor, or to the current folder."""
    is_given = isinstance(folder, int) and folder >= 0
    return str(Path(f"/proc/self/fd/{folder}", _text(value))) if is_given else _text(value)


def _address(opened: object, address: object) -> str:
    """Return the address of a server, or "" for sockets without connections."""
    if getattr(opened, "type", None) != socket.SOCK_STREAM:
        return ""
    if isinstance(address, tuple) and len(address) > 1:
        return f"{address[0]}:{address[1]}"
    return _text(address)


def _program(command: object) -> str:
    """Return the name of a program, without its arguments, which can contain secrets."""
    words = command if isinstance(command, list | tuple) else _text(command).split()
    return _text(words[0]) if words else ""
