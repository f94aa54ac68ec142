"""From a path to plain data, or to the reasons why not: reads a tenant file and has it run.

No code of a tenant file runs in this process. The file's bytes go to the loader process
(`loader_child.py`), which runs them in a fork of its own; what comes back is plain data.
"""

import hashlib
import json
import os
import select
import shlex
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

from tenantry.errors import Problem, TenantFileError, TenantFileTimeoutError
from tenantry.observability.redaction import redact_credentials
from tenantry.python_process import library_path, python_executable
from tenantry.tenants.loader_child import read_frame, write_frame

FILE_LIMIT_BYTES = 1 << 20
"""A tenant file is settings: 1 MiB is a thousand times a usual one, and read in a millisecond."""

RUN_TIMEOUT_S = 5.0
"""How long a file may run. A usual one takes 1 ms; imports of a large library take under 2 s."""

RUN_MEMORY_BYTES = 512 << 20
"""Address space of a file's process: room for imports, too little to hurt the machine."""

ANSWER_GRACE_S = 5.0
"""How much longer the loader process may take than the file: it starts and forks in 0.1 s."""

MESSAGE_LIMIT = 1000
"""Characters of a file's own exception: a list of places fits, a dump of data does not."""

_CHILD = Path(__file__).with_name("loader_child.py")


@dataclass(frozen=True)
class LoadedFile:
    """What a tenant file says: its upper-case names, not validated yet."""

    name: str
    file: str
    """Its path, as messages show it."""
    digest: str
    """SHA-256 of the bytes that were run, in hexadecimal."""
    values: dict[str, Any] = field(repr=False)  # secrets are among them
    problems: tuple[Problem, ...] = ()
    """Values that are no plain data, and what the file did to its process."""
    secrets: tuple[str, ...] = field(default=(), repr=False)
    """What `secret(…)` returned to it, wherever its values have that now."""


class Loader:
    """The loader process, from its first file to `close()`; whoever makes it closes it.

    One loader serves any number of files, one at a time: use it from one thread. A file that
    kills or hangs its process is to blame; the next file finds a new one.
    """

    def __init__(self, *, timeout_s: float = RUN_TIMEOUT_S, data_dir: Path | None = None) -> None:
        self._timeout_s = timeout_s
        self._data_dir = data_dir
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the loader process. Idempotent; a later `load` starts a new one."""
        process, self._process = self._process, None
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        process.kill()
        process.wait()

    def load(
        self, path: Path, source: bytes | None = None, timeout_s: float | None = None
    ) -> LoadedFile:
        """Run the tenant file at `path`, reading it if its content is not given.

        `timeout_s` is how long it may run, if not as long as this loader's files may.

        Raises:
            TenantFileTimeoutError: it did not finish in time.
            TenantFileError: it cannot be read, may be written by others, or did not run to its
                end. What else is wrong with it is among the result's problems.
        """
        name, file = path.stem, display_path(path)
        if source is None:
            source = read_tenant_file(path)
        timeout_s = timeout_s or self._timeout_s
        answer = self._ask({"name": name, "file": file, "timeout_s": timeout_s}, source)
        try:
            failure = _failure(file, answer, timeout_s)
            values, problems, secrets = ({}, (), ()) if failure else _content(file, answer)
        except Exception:  # noqa: BLE001 - the file wrote an answer of its own: it may be anything
            failure = Problem(file, _ending({}, timeout_s))
        if failure is not None:
            raise (
                TenantFileTimeoutError([failure])
                if "hung" in answer
                else TenantFileError([failure])
            )
        digest = sys.intern(hashlib.sha256(source).hexdigest())  # as `folder` does
        return LoadedFile(name, file, digest, values, problems, secrets)

    def _ask(self, request: dict[str, Any], source: bytes) -> dict[str, Any]:
        head = request | {"memory_bytes": RUN_MEMORY_BYTES}
        process = self._process = self._process or self._start()
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("the loader process has no pipes")
        try:
            write_frame(process.stdin.fileno(), json.dumps(head).encode())
            write_frame(process.stdin.fileno(), source)
            payload = self._answer(process.stdout.fileno(), request["timeout_s"])
        except BrokenPipeError:
            payload = None
        except BaseException:
            self.close()  # interrupted in between: its next answer would be to this question
            raise
        if payload is None:
            self.close()
            return {"killed": True}
        try:
            answer = json.loads(payload)
        except (ValueError, RecursionError):
            answer = None
        return answer if isinstance(answer, dict) else {"garbage": True}

    def _answer(self, fd: int, timeout_s: float) -> bytes | None:
        """Return the next frame; None if the loader died, or was stopped by the file it ran."""
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        is_there = poll.poll((timeout_s + ANSWER_GRACE_S) * 1000)
        return read_frame(fd) if is_there else None

    def _start(self) -> subprocess.Popen[bytes]:
        environ = dict(os.environ)
        if self._data_dir is not None:
            environ["TENANTRY_DATA_DIR"] = str(self._data_dir.absolute())
        process = subprocess.Popen(  # noqa: S603 - our own file
            [python_executable(), "-I", "-B", str(_CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=environ,
            start_new_session=True,  # Ctrl-C on a terminal is for the host alone
        )
        if process.stdin is None:
            raise RuntimeError("the loader process has no pipes")
        path = [*library_path(), str(Path(__file__).parents[2])]
        write_frame(process.stdin.fileno(), json.dumps({"sys_path": path}).encode())
        return process


def describe_exit(code: int) -> str:
    """Return how a process ended: `SIGKILL`, or `exit code 3`."""
    if code >= 0:
        return f"exit code {code}"
    is_named = -code in {*signal.Signals}
    return signal.Signals(-code).name if is_named else f"signal {-code}"


def display_path(path: Path) -> str:
    """Return `path` as an operator would type it: relative where it is below this folder."""
    is_below = path.absolute().is_relative_to(Path.cwd())
    return printable(os.path.relpath(path) if is_below else str(path))


def printable(text: str) -> str:
    """Return `text` on one line that every terminal takes: a file's name may hold any byte."""
    return text if text.isprintable() else ascii(text)[1:-1]


def read_tenant_file(path: Path) -> bytes:
    """Return the bytes of a tenant file; never blocks on a FIFO or a device.

    Raises:
        TenantFileError: it is no ordinary file inside its folder, over 1 MiB, unreadable, or it
            or its folder may be written by others.
    """
    try:
        if not Path(os.path.realpath(path, strict=True)).is_relative_to(path.parent.resolve()):
            _refuse(path, "is a link that leaves the tenants folder; put the file itself here.")
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        what = "is a link that cannot be followed" if path.is_symlink() else "cannot be read"
        _refuse(path, f"{what}: {error.strerror}; mend or remove it.")
    try:
        info = os.fstat(fd)
        _check_kind_and_mode(path, info)
        with os.fdopen(fd, "rb", closefd=False) as file:
            source = file.read(FILE_LIMIT_BYTES + 1)
    except OSError as error:
        _refuse(path, f"cannot be read: {error.strerror}; mend or remove it.")
    finally:
        os.close(fd)
    if len(source) > FILE_LIMIT_BYTES:
        _refuse(path, f"is over 1 MiB ({info.st_size:,} bytes); a tenant file only sets names.")
    return source


def _check_kind_and_mode(path: Path, info: os.stat_result) -> None:
    if not stat.S_ISREG(info.st_mode):
        _refuse(path, "is no ordinary file; remove it.")
    if info.st_mode & stat.S_IWOTH:
        command = f"chmod o-w {shlex.quote(display_path(path))}"
        _refuse(path, f"may be written by every user; run: {command}")
    if path.parent.stat().st_mode & stat.S_IWOTH and not _is_read_only(path.parent):
        command = f"chmod o-w {shlex.quote(display_path(path.parent))}"
        _refuse(path, f"its folder may be written by every user; run: {command}")


def _is_read_only(folder: Path) -> bool:
    """Whether it is mounted so; Kubernetes mounts a ConfigMap with mode 0777, but read-only."""
    return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)


def _refuse(path: Path, text: str) -> NoReturn:
    raise TenantFileError([Problem(display_path(path), text)]) from None


def _failure(file: str, answer: dict[str, Any], timeout_s: float) -> Problem | None:
    """Return why the loader's answer is no set of values; None when it is one."""
    if "error" in answer:
        kind, message, line = answer["error"]
        return Problem(file, _raised(kind, message), line=line)
    if "exit" in answer:
        code, line = answer["exit"]
        how = _one_line(f"SystemExit {code}")
        text = f"ends its process ({how}); a tenant file only sets names."
        return Problem(file, text, line=line)
    return None if "values" in answer else Problem(file, _ending(answer, timeout_s))


def _content(
    file: str, answer: dict[str, Any]
) -> tuple[dict[str, Any], tuple[Problem, ...], tuple[str, ...]]:
    """Return the values of the loader's answer, what is wrong with them, and their secrets."""
    refused = [
        Problem(file, f"found {_one_line(kind)}; write plain data: {_PLAIN}.", key)
        for key, kind in answer["refused"].items()
    ]
    effects = [
        Problem(file, f"sets up or changes {what} in its process; remove that.")
        for what in answer["effects"]
    ]
    values = {key: _untag(value) for key, value in answer["values"].items()}
    secrets = tuple(dict.fromkeys(str(value) for value in answer["secrets"]))
    return values, (*refused, *effects), secrets


_PLAIN = (
    "None, bool, int, float, str, bytes, list, tuple, dict, set, timedelta, datetime, Path, Decimal"
)


def _ending(answer: dict[str, Any], timeout_s: float) -> str:
    if "hung" in answer:
        return f"did not finish in {timeout_s:g} s; a tenant file only sets names."
    if "too_large" in answer:
        return "hands back over 16 MiB; a tenant file only sets names."
    if "ended" in answer:
        return (
            f"ends its process ({describe_exit(answer['ended'])}); a tenant file only sets names."
        )
    return (
        "killed or stopped the loader process, or wrote over its answer; "
        "a tenant file only sets names."
    )


def _raised(kind: str, message: str) -> str:
    text = _one_line(message)
    if kind == "SecretError":
        return text  # ours: it has its own remedy
    if kind == "MemoryError":
        return f"needs over {RUN_MEMORY_BYTES >> 20} MiB; a tenant file only sets names."
    if kind in ("SyntaxError", "IndentationError", "TabError"):
        remedy = "save the file as UTF-8" if "codec can't decode" in text else "mend it"
        return f"syntax error: {text}; {remedy}."
    return f"{_one_line(kind)}{': ' * bool(text)}{text}; mend it."


def _one_line(text: str) -> str:
    line = printable(redact_credentials(" ".join(text.split())))
    return line if len(line) <= MESSAGE_LIMIT else f"{line[:MESSAGE_LIMIT]}…"


def _untag(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    tag, content = value
    return _FROM_TAG[tag](content)


_FROM_TAG: dict[str, Callable[[Any], Any]] = {
    "int": lambda text: int(text, 16),
    "bytes": bytes.fromhex,
    "list": lambda items: [_untag(item) for item in items],
    "tuple": lambda items: tuple(_untag(item) for item in items),
    "set": lambda items: {_untag(item) for item in items},
    "dict": lambda pairs: {_untag(key): _untag(item) for key, item in pairs},
    "timedelta": lambda parts: timedelta(*parts),
    "datetime": datetime.fromisoformat,
    "Decimal": Decimal,
    "Path": Path,
}
