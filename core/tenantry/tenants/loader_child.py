"""The loader process: runs each tenant file in a new fork, and returns plain data.

`loader.Loader` runs this file by path in a new process. To start fast, the file imports only small
parts of the standard library.

The host and the loader process exchange frames over stdin and stdout. A frame consists of its
length (four bytes, big-endian) and its content. A request has two frames: the parameters as JSON,
and the tenant file's bytes. Because each tenant file runs in a new fork, a change that one file
makes to its process does not affect the next file. `app.trial_build` also uses `read_frame` and
`write_frame`.
"""

from __future__ import annotations

import gc
import json
import locale
import os
import resource
import select
import signal
import struct
import sys
import time
import warnings
from contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing `typing` would take a third of the process's start time
    from typing import Any

RESULT_LIMIT_BYTES = 16 << 20
"""Maximum size in bytes of the values that a tenant file sets."""

DEPTH_LIMIT = 50
"""Maximum nesting of containers in a value. Deeper or recursive values are rejected."""

PLAIN_SCALARS = frozenset({"bytes", "datetime", "decimal", "path", "timedelta"})
"""The types of values that a tenant file can set, in addition to JSON types and containers."""

_LENGTH = struct.Struct(">I")


def read_frame(fd: int) -> bytes | None:
    """Return the next frame, or None if the stream ends before or inside the frame."""
    head = _read_exactly(fd, _LENGTH.size)
    return None if head is None else _read_exactly(fd, _LENGTH.unpack(head)[0])


def write_frame(fd: int, payload: bytes) -> None:
    """Write one frame to a pipe. Raise an `OSError` if the reader has closed the pipe."""
    _write(fd, _LENGTH.pack(len(payload)) + payload)


def _read_exactly(fd: int, size: int) -> bytes | None:
    parts = []
    while size:
        part = os.read(fd, min(size, 1 << 20))
        if not part:
            return None
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _write(fd: int, payload: bytes) -> None:
    data = memoryview(payload)
    while data:
        data = data[os.write(fd, data) :]


def main() -> None:
    """Run the tenant files that the host sends, until stdin ends."""
    requests, answers = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    first = read_frame(requests)
    if first is None:
        return
    sys.path[:] = dict.fromkeys([*json.loads(first)["sys_path"], *sys.path])
    import tenantry.tenants.plain_data  # noqa: F401, PLC0415 - imported once for all forks

    # A garbage collection in a fork would copy every memory page that the fork shares with its
    # parent.
    gc.disable()
    while (head := read_frame(requests)) is not None:
        source = read_frame(requests)
        if source is None:
            return
        write_frame(answers, _run_in_fork(json.loads(head), source, (requests, answers)))


def _run_in_fork(request: dict[str, Any], source: bytes, private: tuple[int, int]) -> bytes:
    result_end, fork_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            for fd in (*private, result_end):
                os.close(fd)
            _answer_from_fork(request, source, fork_end)
        finally:
            os._exit(0)
    os.close(fork_end)
    try:
        return _collect(result_end, pid, request["timeout_s"])
    finally:
        os.close(result_end)


def _collect(fd: int, pid: int, timeout_s: float) -> bytes:
    """Return the result of a fork or, without a result, how the fork ended."""
    deadline = time.monotonic() + timeout_s
    # A bytearray grows in place. Joining `bytes` objects took seconds for a result of 16 MiB.
    data = bytearray()
    while (left_s := deadline - time.monotonic()) > 0 and len(data) <= RESULT_LIMIT_BYTES:
        if select.select([fd], [], [], left_s)[0]:
            part = os.read(fd, 1 << 20)
            if not part:
                break
            data += part
    else:
        left_s = 0.0
    # The fork may still run. Killing a fork that has ended does not change its exit status.
    with suppress(ProcessLookupError):  # the fork ended before it had its own session
        os.killpg(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    if len(data) > RESULT_LIMIT_BYTES:
        return b'{"too_large": true}'
    if left_s <= 0:
        return b'{"timed_out": true}'
    return bytes(data) or json.dumps({"ended": os.waitstatus_to_exitcode(status)}).encode()


def _answer_from_fork(request: dict[str, Any], source: bytes, fd: int) -> None:
    try:
        _limit_memory(request["memory_bytes"])
        payload = json.dumps(run_source(request["name"], request["file"], source)).encode()
    except BaseException as error:  # noqa: BLE001 - the fork must always send an answer
        payload = json.dumps({"error": [type(error).__name__, "", None]}).encode()
    _write(fd, payload)


def _limit_memory(size_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (size_bytes, size_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def run_source(name: str, file: str, source: bytes) -> dict[str, Any]:
    """Run one tenant file in a fresh namespace, in a fork, because the file can change its process.

    Returns:
        `{"values": {KEY: tagged value}, "rejected": {KEY: type}, "effects": [what the file
        changed], "secrets": [what `secret(…)` returned]}`, or `{"error": [type, message, line or
        None]}`, or `{"system_exit": [code, line or None]}`.
    """
    namespace: dict[str, Any] = {"__name__": f"tenant.{name}", "__file__": file}
    secrets = _recorded_secrets()
    before = _process_state()
    try:
        exec(compile(source, file, "exec", dont_inherit=True), namespace)  # noqa: S102 - the process exists to run tenant files
    except SystemExit as error:
        code = "" if error.code is None else str(error.code)
        return {"system_exit": [_redact(code, secrets, namespace), _line(error, file)]}
    except BaseException as error:  # noqa: BLE001 - a file can raise anything
        text = _redact(_message(error), secrets, namespace)
        return {"error": [type(error).__name__, text, _line(error, file)]}
    effects = _changes(before, _process_state())
    values, rejected = _plain_values(namespace)
    return {"values": values, "rejected": rejected, "effects": effects, "secrets": secrets}


def _plain_values(namespace: dict[str, Any]) -> tuple[dict[str, object], dict[str, str]]:
    from tenantry.tenants.plain_data import tag  # noqa: PLC0415 - `main` sets `sys.path` first

    values: dict[str, object] = {}
    rejected: dict[str, str] = {}
    for key, value in namespace.items():
        if key.isupper() and key.isidentifier():
            try:
                values[key] = tag(value, scalars=PLAIN_SCALARS, depth_limit=DEPTH_LIMIT)
            except TypeError as error:
                rejected[key] = str(error)
    return values, rejected


def _recorded_secrets() -> list[str]:
    """Return a list that receives each secret that `secret(…)` returns to the tenant file."""
    import tenantry  # noqa: PLC0415 - `main` sets `sys.path` first

    recorded: list[str] = []
    look_up = tenantry.secret

    def secret(name: str, *, create: bool = False) -> str:
        recorded.append(look_up(name, create=create))
        return recorded[-1]

    setattr(tenantry, "secret", secret)  # noqa: B010 - mypy rejects an assignment
    return recorded


def _redact(text: str, secrets: list[str], namespace: dict[str, Any]) -> str:
    named = [value for key, value in list(namespace.items()) if _is_secret_name(key)]
    for value in (*secrets, *named):
        if isinstance(value, str) and len(value) > 3:  # noqa: PLR2004 - a shorter secret can be a word
            text = text.replace(value, "…")
    return text


def _is_secret_name(key: object) -> bool:
    # `redaction` has a more complete list, but importing it takes 5 ms.
    words = ("SECRET", "KEY", "TOKEN", "PASS", "DATABASE_URI")
    return isinstance(key, str) and key.isupper() and any(word in key for word in words)


def _message(error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return str(error.msg)  # the text omits the source line, which can contain a secret
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - an exception's own __str__ may raise
        return ""


def _line(error: BaseException, file: str) -> int | None:
    if isinstance(error, SyntaxError) and error.filename == file:
        return error.lineno
    line, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def _process_state() -> dict[str, object]:
    """Return the process state that a tenant file could change, keyed by the problem's text."""
    state: dict[str, object] = {
        f"changes os.environ[{key!r}]": os.environ[key] for key in os.environ
    }
    state["changes the working directory"] = os.getcwd()
    state["changes sys.path"] = list(sys.path)
    state["changes the umask"] = _umask()
    state["changes the recursion limit"] = sys.getrecursionlimit()
    state["changes the locale"] = locale.setlocale(locale.LC_ALL)
    state["changes the warnings filters"] = list(warnings.filters)
    state["starts a timer"] = signal.getitimer(signal.ITIMER_REAL)[0] > 0
    state["starts a thread"] = len(os.listdir("/proc/self/task"))
    state["starts a child process"] = _count_children()
    for number in signal.valid_signals():
        name = getattr(number, "name", f"signal {number}")
        state[f"changes the handler of {name}"] = signal.getsignal(number)
    if (logging := sys.modules.get("logging")) is not None:
        state["changes logging.disable"] = logging.root.manager.disable
        state["changes the log handlers"] = list(logging.root.handlers)
    if (socket := sys.modules.get("socket")) is not None:
        state["changes the socket default timeout"] = socket.getdefaulttimeout()
    return state


_AFTER_IMPORT: dict[str, object] = {"changes logging.disable": 0, "changes the log handlers": []}
"""The initial state of `logging`, for a tenant file that is the first to import `logging`."""


def _changes(before: dict[str, object], after: dict[str, object]) -> list[str]:
    return sorted(
        text
        for text in before.keys() | after.keys()
        if before.get(text, _AFTER_IMPORT.get(text)) != after.get(text)
    )


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _count_children() -> int:
    try:
        with open("/proc/thread-self/children") as file:
            return len(file.read().split())
    except OSError:
        return 0  # a kernel without CONFIG_PROC_CHILDREN does not list child processes


if __name__ == "__main__":
    main()
