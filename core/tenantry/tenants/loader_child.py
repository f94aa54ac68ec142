"""The loader process: runs tenant files, each in a fork of its own, and hands back plain data.

This file is run by path in a process of its own (`loader.Loader` starts it) and imported by
nobody but tests. It must start fast: it imports the standard library's smallest parts only.

Parent and loader talk in frames over stdin and stdout: four bytes of length (big-endian), then
JSON; a request frame is followed by a frame with the file's bytes. For every file the loader
forks: whatever the file does to its process dies with the fork and cannot touch the next file.
"""

from __future__ import annotations

import _locale
import atexit
import gc
import json
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
if TYPE_CHECKING:  # typing alone would take a third of the start
    from collections.abc import Callable
    from typing import Any

RESULT_LIMIT_BYTES = 16 << 20
"""A file of at most 1 MiB that hands back more than this computes something that is no setting."""

DEPTH_LIMIT = 50
"""Nesting of containers; deeper ones, or one that holds itself, are refused by key."""

INT_LIMIT_BITS = 14_000
"""Just under 4,300 digits, the longest integer that Python turns into text."""

_LENGTH = struct.Struct(">I")


def read_frame(fd: int) -> bytes | None:
    """Return the next frame of `fd`; None at the end of the stream, whole frame or not."""
    head = _read_exactly(fd, _LENGTH.size)
    return None if head is None else _read_exactly(fd, _LENGTH.unpack(head)[0])


def write_frame(fd: int, payload: bytes) -> None:
    """Write one frame. Raises OSError when the other side is gone."""
    data = memoryview(_LENGTH.pack(len(payload)) + payload)
    while data:
        data = data[os.write(fd, data) :]


def _read_exactly(fd: int, size: int) -> bytes | None:
    parts = []
    while size:
        part = os.read(fd, min(size, 1 << 20))
        if not part:
            return None
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def main() -> None:
    """Answer requests until stdin ends."""
    requests, answers = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    first = read_frame(requests)
    if first is None:
        return
    sys.path[:] = dict.fromkeys([*json.loads(first)["sys_path"], *sys.path])

    gc.disable()  # a collection in a fork would copy every page that it shares

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
    """Return the fork's result, or the way in which it ended without one."""
    deadline = time.monotonic() + timeout_s
    data = bytearray()  # grows in place: joining bytes took seconds for a result of 16 MiB
    while (left := deadline - time.monotonic()) > 0 and len(data) <= RESULT_LIMIT_BYTES:
        if select.select([fd], [], [], left)[0]:
            part = os.read(fd, 1 << 20)
            if not part:
                break
            data += part
    else:
        left = 0.0
    # It is done, hung, or closed its pipe to be left alone; its own exit status survives this.
    with suppress(ProcessLookupError):  # it ended before it had a session of its own
        os.killpg(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    if len(data) > RESULT_LIMIT_BYTES:
        return b'{"too_large": true}'
    if left <= 0:
        return b'{"hung": true}'
    return bytes(data) or json.dumps({"ended": os.waitstatus_to_exitcode(status)}).encode()


def _answer_from_fork(request: dict[str, Any], source: bytes, fd: int) -> None:
    try:
        _limit_memory(request["memory_bytes"])
        payload = json.dumps(run_source(request["name"], request["file"], source)).encode()
    except BaseException as error:  # noqa: BLE001 - the last thing that the fork says
        payload = json.dumps({"error": [type(error).__name__, "", None]}).encode()
    data = memoryview(payload)
    while data:
        data = data[os.write(fd, data) :]


def _limit_memory(size_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (size_bytes, size_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def run_source(name: str, file: str, source: bytes) -> dict[str, Any]:
    """Run one tenant file in a fresh namespace. Changes this process: call it in a fork.

    Returns:
        `{"values": {KEY: tagged}, "refused": {KEY: type}, "effects": [what it changed],
        "secrets": [what `secret(…)` returned]}`, or
        `{"error": [type, message, line or None]}`, or `{"exit": [code, line or None]}` for a
        `SystemExit`.
    """
    namespace: dict[str, Any] = {"__name__": f"tenant.{name}", "__file__": file}
    registered: list[object] = []
    setattr(atexit, "register", _recorder(file, registered))  # noqa: B010 - typed as generic
    secrets = _recorded_secrets()
    before = _process_state()
    try:
        exec(compile(source, file, "exec", dont_inherit=True), namespace)  # noqa: S102 - its purpose
    except SystemExit as error:
        code = "" if error.code is None else str(error.code)
        return {"exit": [_without(secrets, namespace, code), _line(error, file)]}
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is the file's
        text = _without(secrets, namespace, _message(error))
        return {"error": [type(error).__name__, text, _line(error, file)]}
    values, refused = {}, {}
    for key, value in namespace.items():
        if key.isupper() and key.isidentifier():
            try:
                values[key] = _tag(value, DEPTH_LIMIT)
            except TypeError as error:
                refused[key] = str(error)
    effects = _changes(before, _process_state()) + ["an exit function"] * bool(registered)
    return {"values": values, "refused": refused, "effects": effects, "secrets": secrets}


def _recorder(file: str, registered: list[object]) -> Callable[..., object]:
    """Return an `atexit.register` that notes what `file` itself registers; imports may."""

    def register(function: object, *_: object, **__: object) -> object:
        if sys._getframe(1).f_code.co_filename == file:  # noqa: SLF001 - who calls is the point
            registered.append(function)
        return function

    return register


def _recorded_secrets() -> list[str]:
    """Return a list that gets what the file's `secret(…)` returns: nobody may be shown it."""
    import tenantry  # noqa: PLC0415 - on the path since `main` has set it

    recorded: list[str] = []
    look_up = tenantry.secret

    def secret(name: str, *, create: bool = False) -> str:
        recorded.append(look_up(name, create=create))
        return recorded[-1]

    setattr(tenantry, "secret", secret)  # noqa: B010 - typed as a function
    return recorded


def _without(secrets: list[str], namespace: dict[str, Any], text: str) -> str:
    named = [value for key, value in list(namespace.items()) if _is_secret_name(key)]
    for value in (*secrets, *named):
        if isinstance(value, str) and len(value) > 3:  # noqa: PLR2004 - shorter ones are words
            text = text.replace(value, "…")
    return text


def _is_secret_name(key: object) -> bool:
    words = ("SECRET", "KEY", "TOKEN", "PASS", "DATABASE_URI")  # few: importing masking costs 5 ms
    return isinstance(key, str) and key.isupper() and any(word in key for word in words)


def _message(error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return str(error.msg)  # never the source line: it may hold a secret
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


def _tag(value: Any, depth: int) -> object:
    """Turn plain data into JSON: scalars stay, the rest becomes `[tag, content]`.

    Raises:
        TypeError: its text is the type that is no plain data.
    """
    kind = type(value)
    if value is None or kind in (bool, float, str):
        return value
    if kind is int:
        if value.bit_length() > INT_LIMIT_BITS:
            raise TypeError("an int of over 4,000 digits")
        return ["int", hex(value)]  # decimal text of huge numbers is slow, and limited
    if depth == 0:
        raise TypeError("data nested deeper than 50 levels, or holding itself")
    if kind in (list, tuple, set):
        return [kind.__name__, [_tag(item, depth - 1) for item in value]]
    if kind is dict:
        return ["dict", [[_tag(k, depth - 1), _tag(v, depth - 1)] for k, v in value.items()]]
    if kind is bytes:
        return ["bytes", value.hex()]
    return _tag_object(value, f"{kind.__module__}.{kind.__qualname__}")


def _tag_object(value: Any, kind: str) -> object:
    # By name: importing datetime, decimal and pathlib only to compare would cost 10 ms.
    if kind == "datetime.timedelta":
        return ["timedelta", [value.days, value.seconds, value.microseconds]]
    if kind == "datetime.datetime":
        return ["datetime", value.isoformat()]
    if kind == "decimal.Decimal":
        return ["Decimal", str(value)]
    if kind.startswith("pathlib.") and kind.endswith(".PosixPath"):
        return ["Path", str(value)]
    raise TypeError(kind.removeprefix("builtins."))


def _process_state() -> dict[str, object]:
    """Return what a file could change in its process, by the words of the error message."""
    state: dict[str, object] = {f"os.environ[{key!r}]": os.environ[key] for key in os.environ}
    state["the working directory"] = os.getcwd()
    state["sys.path"] = list(sys.path)
    state["the umask"] = _umask()
    state["a timer"] = signal.getitimer(signal.ITIMER_REAL)[0] > 0
    state["the recursion limit"] = sys.getrecursionlimit()
    state["the locale"] = _locale.setlocale(_locale.LC_ALL)
    state["the warnings filters"] = list(warnings.filters)
    state["a thread"] = len(os.listdir("/proc/self/task"))
    state["a child process"] = _count_children()
    for number in signal.valid_signals():
        name = getattr(number, "name", f"signal {number}")
        state[f"the handler of {name}"] = signal.getsignal(number)
    if (logging := sys.modules.get("logging")) is not None:
        state["logging.disable"] = logging.root.manager.disable
        state["the log handlers"] = list(logging.root.handlers)
    if (socket := sys.modules.get("socket")) is not None:
        state["the socket default timeout"] = socket.getdefaulttimeout()
    return state


_JUST_IMPORTED: dict[str, object] = {"logging.disable": 0, "the log handlers": []}


def _changes(before: dict[str, object], after: dict[str, object]) -> list[str]:
    def was(name: str) -> object:
        return before.get(name, _JUST_IMPORTED.get(name))

    return sorted(name for name in before.keys() | after.keys() if was(name) != after.get(name))


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _count_children() -> int:
    try:
        with open("/proc/thread-self/children") as file:
            return len(file.read().split())
    except OSError:
        return 0  # kernels without CONFIG_PROC_CHILDREN do not tell


if __name__ == "__main__":
    main()
