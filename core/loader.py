"""From a path to plain data, or to the reasons why not: reads a tenant file and has it run.

No code of a tenant file runs in this process. The file's bytes go to the loader process
(`loader_process.py`), which runs them in a fork of its own; what comes back is plain data.
"""

import hashlib
import json
import os
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from core.errors import Problem, TenantFileError
from core.loader_process import read_frame, write_frame

FILE_LIMIT_BYTES = 1 << 20
"""A tenant file is settings: 1 MiB is a thousand times a usual one, and read in a millisecond."""

RUN_TIMEOUT_S = 5.0
"""How long a file may run. A usual one takes 1 ms; imports of a large library take under 2 s."""

RUN_MEMORY_BYTES = 512 << 20
"""Address space of a file's process: room for imports, too little to hurt the machine."""

_CHILD = Path(__file__).with_name("loader_process.py")


@dataclass(frozen=True)
class LoadedFile:
    """What a tenant file says: its upper-case names, not validated yet."""

    name: str
    file: str
    """Its path, as messages show it."""
    digest: str
    """SHA-256 of the bytes that were run, in hexadecimal."""
    values: dict[str, Any]


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

    def load(self, path: Path) -> LoadedFile:
        """Read and run the tenant file at `path`.

        Raises:
            TenantFileError: it cannot be read, may be written by others, or did not run to its
                end, or it handed back what is no plain data.
        """
        name, file = path.stem, display_path(path)
        source = read_tenant_file(path)
        answer = self._ask({"name": name, "file": file}, source)
        problems = list(_problems(file, answer, self._timeout_s))
        if problems:
            raise TenantFileError(problems)
        values = {key: _untag(value) for key, value in answer["values"].items()}
        return LoadedFile(name, file, hashlib.sha256(source).hexdigest(), values)

    def _ask(self, request: dict[str, Any], source: bytes) -> dict[str, Any]:
        head = request | {"timeout_s": self._timeout_s, "memory_bytes": RUN_MEMORY_BYTES}
        process = self._process = self._process or self._start()
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("the loader process has no pipes")
        try:
            write_frame(process.stdin.fileno(), json.dumps(head).encode())
            write_frame(process.stdin.fileno(), source)
            payload = read_frame(process.stdout.fileno())
        except BrokenPipeError:
            payload = None
        if payload is None:
            self.close()
            return {"killed": True}
        try:
            answer = json.loads(payload)
        except ValueError:
            answer = None
        return answer if isinstance(answer, dict) else {"garbage": True}

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
        here = str(Path(__file__).parent.parent)
        search = [entry or str(Path.cwd()) for entry in sys.path]
        write_frame(
            process.stdin.fileno(),
            json.dumps({"sys_path": search if here in search else [*search, here]}).encode(),
        )
        return process


def display_path(path: Path) -> str:
    """Return `path` as an operator would type it: relative where it is below this folder."""
    return os.path.relpath(path) if path.absolute().is_relative_to(Path.cwd()) else str(path)


def python_executable() -> str:
    """Return the Python interpreter; under uWSGI `sys.executable` is uWSGI itself."""
    if Path(sys.executable).name.startswith("python"):
        return sys.executable
    scripts = sysconfig.get_path("scripts")
    return str(Path(scripts, "python3"))


def read_tenant_file(path: Path) -> bytes:
    """Return the bytes of a tenant file; never blocks on a FIFO or a device.

    Raises:
        TenantFileError: it is no ordinary file inside its folder, over 1 MiB, unreadable, or it
            or its folder may be written by others.
    """
    try:
        if not path.resolve(strict=True).is_relative_to(path.parent.resolve()):
            _refuse(path, "is a link that leaves the tenants folder; put the file itself here.")
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        _refuse(path, f"cannot be read: {error.strerror}; mend or remove it.")
    with os.fdopen(fd, "rb") as file:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            _refuse(path, "is no ordinary file; remove it.")
        if info.st_mode & stat.S_IWOTH:
            _refuse(path, f"may be written by every user; run: chmod o-w {display_path(path)}")
        if path.parent.stat().st_mode & stat.S_IWOTH:
            folder = display_path(path.parent)
            _refuse(path, f"its folder may be written by every user; run: chmod o-w {folder}")
        source = file.read(FILE_LIMIT_BYTES + 1)
    if len(source) > FILE_LIMIT_BYTES:
        _refuse(path, f"is over 1 MiB ({info.st_size:,} bytes); a tenant file only sets names.")
    return source


def _refuse(path: Path, text: str) -> Any:
    raise TenantFileError([Problem(display_path(path), text)]) from None


def _problems(file: str, answer: dict[str, Any], timeout_s: float) -> list[Problem]:
    """Return why the loader's answer is no set of values; empty when it is one."""
    if "error" in answer:
        kind, message, line = answer["error"]
        return [Problem(file, _one_line(kind, message), line=line)]
    if "values" not in answer:
        return [Problem(file, _ending(answer, timeout_s))]
    refused = [
        Problem(file, f"found {kind}; a tenant file hands back plain data: {_PLAIN}.", key)
        for key, kind in answer["refused"].items()
    ]
    effects = [
        Problem(
            file,
            f"sets up or changes {what} in its process; remove that.",
        )
        for what in answer["effects"]
    ]
    return refused + effects


_PLAIN = (
    "None, bool, int, float, str, bytes, list, tuple, dict, set, timedelta, datetime, Path, Decimal"
)


def _ending(answer: dict[str, Any], timeout_s: float) -> str:
    if "hung" in answer:
        return f"did not finish in {timeout_s:g} s; a tenant file only sets names."
    if "too_large" in answer:
        return "hands back over 16 MiB; a tenant file only sets names."
    if "exit" in answer:
        return f"ends its process (SystemExit {answer['exit']}); remove that."
    if "ended" in answer:
        code = answer["ended"]
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return f"ends its process ({how}); remove that."
    return "killed the loader process, or wrote over its answer; a tenant file only sets names."


def _one_line(kind: str, message: str) -> str:
    text = " ".join(message.split())[:300]
    what = "syntax error" if kind in ("SyntaxError", "IndentationError", "TabError") else kind
    return f"{what}: {text}" if text else f"{what}."


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
