"""Runs tenant files in a separate process, and returns the values that the files set.

No code of a tenant file runs in a process that serves requests. The loader process
(`loader_child.py`) receives the file's bytes, runs them in a new fork and returns plain data.
"""

import json
import os
import select
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tenantry.errors import Problem, TenantFileError, TenantFileTimeoutError
from tenantry.observability.redaction import redact_credentials
from tenantry.python_process import describe_exit, library_path, python_executable
from tenantry.tenants.file import content_digest, display_path, printable, read_tenant_file
from tenantry.tenants.loader_child import read_frame, write_frame
from tenantry.tenants.plain_data import untag
from tenantry.tenants.secrets import INVENT_MISSING, NEW_SECRET_BYTES, THROW_AWAY

RUN_TIMEOUT_S = 5.0
"""Time limit in seconds for running a tenant file. A typical file takes 1 ms. Importing a large
library takes up to 2 s."""

RUN_MEMORY_BYTES = 512 << 20
"""Maximum address space in bytes of the process that runs a tenant file. The limit is enough for
imports, but too small to exhaust the machine's memory."""

ANSWER_GRACE_S = 5.0
"""Seconds that the loader process itself may take, in addition to the tenant file. Starting and
forking take 0.1 s."""

MESSAGE_LIMIT_CHARS = 1000
"""Maximum length of the message of an exception that a tenant file raises. The message can be a
list of problems."""

_SETTINGS_ONLY = "a tenant file must only set names."

_PLAIN_TYPES = (
    "None, bool, int, float, str, bytes, list, tuple, dict, set, timedelta, datetime, Path, Decimal"
)

_CHILD = Path(__file__).with_name("loader_child.py")


@dataclass(frozen=True)
class LoadedFile:
    """The upper-case names that a tenant file sets, before validation."""

    name: str
    file: str
    """The file's path in messages."""
    digest: str
    """SHA-256 of the bytes that were run, in hexadecimal."""
    values: dict[str, Any] = field(repr=False)  # contains secrets
    problems: tuple[Problem, ...] = ()
    """One problem for each value that is not plain data, and for each change to the process."""
    secrets: tuple[str, ...] = field(default=(), repr=False)
    """The secrets that `secret(…)` returned to the file, which no message may show."""


class Loader:
    """Owns the loader process, from the first `load` to `close`. Not thread-safe.

    The loader process can run any number of tenant files, one after another. A file that kills or
    blocks the loader process is rejected, and the next file gets a new loader process.

    Args:
        timeout_s: maximum seconds that a file can run.
        data_dir: the host's data folder, which contains secrets.
        creates_secrets: whether `secret("…", create=True)` creates a missing secret. Otherwise, the
            file gets a value that is not stored, because commands that inspect change nothing.
        invents_secrets: whether a file also gets such a value for every other missing secret.
    """

    def __init__(
        self,
        *,
        timeout_s: float = RUN_TIMEOUT_S,
        data_dir: Path | None = None,
        creates_secrets: bool = False,
        invents_secrets: bool = False,
    ) -> None:
        self._creates_secrets = creates_secrets
        self._invents_secrets = invents_secrets
        self._timeout_s = timeout_s
        self._data_dir = data_dir
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the loader process. Idempotent; a later `load` starts a new loader process."""
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
        """Run the tenant file at `path`, and return the names and values that it sets.

        Args:
            path: the tenant file.
            source: the file's content; None to read the file.
            timeout_s: maximum seconds that the file can run; None to use the loader's time limit.

        Raises:
            TenantFileTimeoutError: the file did not finish in time.
            TenantFileError: the file cannot be read, every user can write to it, or it did not run
                to its end. All other problems are in the result's `problems`.
        """
        file = display_path(path)
        if source is None:
            source = read_tenant_file(path)
        timeout_s = timeout_s or self._timeout_s
        answer = self._ask({"name": path.stem, "file": file, "timeout_s": timeout_s}, source)
        if "timed_out" in answer:
            text = f"did not finish in {timeout_s:g} s; {_SETTINGS_ONLY}"
            raise TenantFileTimeoutError([Problem(file, text)])
        try:
            failure = _failure(file, answer)
            if failure is None:
                return _loaded_file(path.stem, file, content_digest(source), answer)
        except Exception:  # noqa: BLE001 - a tenant file can write a forged answer
            failure = Problem(file, _LOADER_BROKEN)
        raise TenantFileError([failure])

    def _ask(self, request: dict[str, Any], source: bytes) -> dict[str, Any]:
        head = request | {"memory_bytes": RUN_MEMORY_BYTES}
        process = self._process = self._process or self._start()
        requests, answers = _pipes(process)
        try:
            write_frame(requests, json.dumps(head).encode())
            write_frame(requests, source)
            payload = _read_answer(answers, request["timeout_s"] + ANSWER_GRACE_S)
        except BrokenPipeError:
            payload = None
        except BaseException:
            # If the loader process stayed alive, it would answer the next request with the result
            # of this request.
            self.close()
            raise
        if payload is None:
            self.close()
            return {}
        try:
            answer = json.loads(payload)
        except (ValueError, RecursionError):
            return {}
        return answer if isinstance(answer, dict) else {}

    def _start(self) -> subprocess.Popen[bytes]:
        environ = dict(os.environ)
        if self._data_dir is not None:
            environ["TENANTRY_DATA_DIR"] = str(self._data_dir.absolute())
        if not self._creates_secrets:
            environ[THROW_AWAY] = os.urandom(NEW_SECRET_BYTES).hex()
        if self._invents_secrets:
            environ[INVENT_MISSING] = "1"
        process = subprocess.Popen(  # noqa: S603 - runs a file of Tenantry
            [python_executable(), "-I", "-B", str(_CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=environ,
            start_new_session=True,  # Ctrl-C in a terminal reaches only the host
        )
        path = [*library_path(), str(Path(__file__).parents[2])]
        write_frame(_pipes(process)[0], json.dumps({"sys_path": path}).encode())
        return process


def _pipes(process: subprocess.Popen[bytes]) -> tuple[int, int]:
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("the loader process has no pipes")
    return process.stdin.fileno(), process.stdout.fileno()


def _read_answer(fd: int, timeout_s: float) -> bytes | None:
    """Return the next frame, or None if the tenant file killed or stopped the loader process."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return read_frame(fd) if poll.poll(timeout_s * 1000) else None


def _loaded_file(name: str, file: str, digest: str, answer: dict[str, Any]) -> LoadedFile:
    problems = [
        Problem(file, f"found {_one_line(kind)}; write plain data: {_PLAIN_TYPES}.", key)
        for key, kind in answer["rejected"].items()
    ]
    problems += [
        Problem(file, f"{effect} in its process; remove that.") for effect in answer["effects"]
    ]
    return LoadedFile(
        name=name,
        file=file,
        digest=digest,
        values={key: untag(value) for key, value in answer["values"].items()},
        problems=tuple(problems),
        secrets=tuple(dict.fromkeys(str(value) for value in answer["secrets"])),
    )


_LOADER_BROKEN = (
    "killed or stopped the loader process, or overwrote its answer; a tenant file must only set "
    "names."
)


def _failure(file: str, answer: dict[str, Any]) -> Problem | None:
    """Return why the tenant file did not run to its end, or None if it did."""
    if "values" in answer:
        return None
    if "error" in answer:
        kind, message, line = answer["error"]
        return Problem(file, _exception_text(kind, message), line=line)
    if "system_exit" in answer:
        code, line = answer["system_exit"]
        how = _one_line(f"SystemExit {code}")
        return Problem(file, f"ends its process ({how}); {_SETTINGS_ONLY}", line=line)
    if "too_large" in answer:
        return Problem(file, f"its values are larger than 16 MiB; {_SETTINGS_ONLY}")
    if "ended" in answer:
        how = describe_exit(answer["ended"])
        return Problem(file, f"ends its process ({how}); {_SETTINGS_ONLY}")
    return Problem(file, _LOADER_BROKEN)


def _exception_text(kind: str, message: str) -> str:
    text = _one_line(message)
    if kind == "SecretError":
        return text  # the text already contains the remedy
    if kind == "MemoryError":
        return f"needs more than {RUN_MEMORY_BYTES >> 20} MiB; {_SETTINGS_ONLY}"
    if kind in ("SyntaxError", "IndentationError", "TabError"):
        remedy = "save the file as UTF-8" if "codec can't decode" in text else "fix it"
        return f"syntax error: {text}; {remedy}."
    return f"{_one_line(kind)}{': ' if text else ''}{text}; fix it."


def _one_line(text: str) -> str:
    line = printable(redact_credentials(" ".join(text.split())))
    return line if len(line) <= MESSAGE_LIMIT_CHARS else f"{line[:MESSAGE_LIMIT_CHARS]}…"
