"""The parent's side of the process that runs migrations, and the messages to and from the process.

Migrations never run in a serving process, because a migration may raise, hang, or end its process.
`process_child` is the child's side of the messages. Messages are JSON, one per line, over a socket.
"""

import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from tenantry.python_process import describe_exit, python_command

MigrationState = Literal["migrated", "unchanged", "ahead", "unreachable", "failed"]

OnStart = Callable[[frozenset[str]], None]
"""Called under the lock of a database with the database's revisions, before the database is
changed."""


@dataclass(frozen=True)
class MigrationRequest:
    """One database to upgrade or to downgrade."""

    url: str
    endpoints: list[str]
    lock_file: str
    """The file to lock if the engine is not PostgreSQL."""
    lock_timeout_s: float
    destination: list[str] | None = None
    """The revisions to migrate the database to; None means the heads of the code."""
    downgrade_from: list[str] | None = None
    """For a downgrade, the revisions that the database must be at; None for an upgrade."""


@dataclass(frozen=True)
class MigrationReply:
    """How the migration of one database ended."""

    state: MigrationState
    revisions: list[str] = field(default_factory=list)
    """The database's revisions after the migration, if the database was migrated or is
    unchanged."""
    reason: str = ""
    is_rolled_back: bool = False
    """Whether the engine rolled back every change of a failed migration."""


class ProcessEndedError(Exception):
    """The migration process could not start, or has ended."""


class MigrationProcess:
    """A running process that migrates databases one after another, until `close()`.

    The process first imports Alembic, which takes 0.6 s. If the parent process dies, the migration
    process ends. Call all methods from one thread; only `kill()` is thread-safe.

    Raises:
        ProcessEndedError: the migration process cannot be started.
    """

    def __init__(self) -> None:
        self._socket, child_socket = socket.socketpair()
        try:
            with child_socket:
                self._process = subprocess.Popen(  # noqa: S603 - our own module
                    python_command(f"from {__package__}.process_child import main; main()"),
                    stdin=child_socket.fileno(),
                    # Output of migrations to stdout is discarded; stderr is shown.
                    stdout=subprocess.DEVNULL,
                    # In a new session, `kill` also ends processes that a migration started.
                    start_new_session=True,
                )
        except OSError as error:
            self._socket.close()
            raise ProcessEndedError from error
        self._lines = self._socket.makefile("rb")

    def send(self, message: Mapping[str, Any]) -> None:
        """Send one message to the migration process.

        Raises:
            ProcessEndedError: the migration process has ended.
        """
        try:
            self._socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError as error:
            raise ProcessEndedError from error

    def receive(self, timeout_s: float) -> dict[str, Any]:
        """Return the next message of the process. After an error, call only `close()`.

        Raises:
            TimeoutError: no message of the process arrives in time.
            ProcessEndedError: the migration process has ended.
        """
        try:
            self._socket.settimeout(max(timeout_s, 0.001))
            line = self._lines.readline()
        except ConnectionError as error:
            raise ProcessEndedError from error
        if not line.endswith(b"\n"):
            raise ProcessEndedError
        message: dict[str, Any] = json.loads(line)
        return message

    def kill(self) -> None:
        """Kill the process and every process that migrations started. Idempotent, thread-safe."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError):  # The process has just ended.
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def close(self) -> str:
        """Kill a running process; return how the process ended: `SIGKILL`, or `exit code 3`."""
        self.kill()
        self._lines.close()
        self._socket.close()
        return describe_exit(self._process.returncode)
