"""A process that runs a tenant's code for a trial, because the code may end or hang its process."""

import os
import select
import signal
import subprocess
import time
from contextlib import suppress
from typing import Self

from tenantry.python_process import describe_exit, python_command
from tenantry.tenants.loader_child import write_frame

EXIT_TIMEOUT_S = 1.0
"""How long to wait for the exit status of a process that has closed its pipe."""

LINE_LIMIT_BYTES = 16 << 20
"""Maximum length of a line. A longer line does not come from Tenantry."""


class TrialProcess:
    """A child process that receives one request and answers in lines.

    The end of the `with` block kills the process and its process group. Not thread-safe.

    Args:
        code: the Python code that the process runs. It reads the request as a frame from stdin.
        request: the content of the frame.
        environment: the environment variables; by default, those of this process.
    """

    def __init__(
        self, code: str, request: bytes, environment: dict[str, str] | None = None
    ) -> None:
        self._received = bytearray()
        self._process = subprocess.Popen(  # noqa: S603 - the command runs a module of Tenantry
            python_command(code),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,
            env=environment,
        )
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise RuntimeError("the child process has no pipes")
        self._stdin, self._stdout = stdin, stdout
        with suppress(BrokenPipeError):  # the child process has already ended
            write_frame(stdin.fileno(), request)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):  # the child has already ended
            # Killing the process group also ends processes that the tenant's code started.
            os.killpg(self._process.pid, signal.SIGKILL)
        self._stdin.close()
        self._stdout.close()
        self._process.wait()

    def next_line(self, timeout_s: float) -> bytes | None:
        """Return the next line, or None if the process ends or exceeds the timeout."""
        deadline = time.monotonic() + timeout_s
        poll = select.poll()
        poll.register(self._stdout.fileno(), select.POLLIN)
        while b"\n" not in self._received:
            if len(self._received) > LINE_LIMIT_BYTES:
                return None
            if not poll.poll(max(deadline - time.monotonic(), 0) * 1000):
                return None
            part = os.read(self._stdout.fileno(), 1 << 16)
            if not part:
                return None
            self._received += part
        line, _, self._received = self._received.partition(b"\n")
        return bytes(line)

    def describe_end(self, timeout_s: float) -> str:
        """Return how the process ended, or that it did not finish within a timeout."""
        with suppress(subprocess.TimeoutExpired):
            return f"ends its process ({describe_exit(self._process.wait(EXIT_TIMEOUT_S))})"
        return f"does not finish in {timeout_s:g} s"
