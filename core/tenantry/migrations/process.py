"""Starts the child process that runs migrations, and defines the messages to and from it.

Migrations never run in a serving process, because a migration may hang or end its process. The
module `process_child` runs in the child process. Each message is a line of JSON, sent over a
socket.
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
"""A function that receives the revisions of a database before the database is changed."""


@dataclass(frozen=True)
class MigrationRequest:
    """A request to upgrade or downgrade one database."""

    tenant: str
    url: str
    endpoints: list[str]
    app_dir: str | None
    migrations: str | None
    """The folder `MIGRATIONS`, whose `env.py` needs the tenant's app; None without one."""
    lock_file: str
    """The file to lock for engines other than PostgreSQL."""
    lock_timeout_s: float
    destination: list[str] | None = None
    """The revisions to migrate to, or None for the heads of the code."""
    downgrade_from: list[str] | None = None
    """For a downgrade, the revisions at which the database must be; None for an upgrade."""
    options: dict[str, Any] = field(default_factory=dict)
    """The tenant's `DATABASE_OPTIONS`."""
    is_foreseeing: bool = False
    """Whether to collect what PostgreSQL would refuse."""
    code_snapshot: str | None = None
    """The code snapshot that has the revisions; None for the files on disk."""
    folders_without_code: list[str] = field(default_factory=list)
    """The folders that the code snapshot leaves out."""


@dataclass(frozen=True)
class MigrationReply:
    """The result of a migration."""

    state: MigrationState
    revisions: list[str] = field(default_factory=list)
    """The revisions of the database after a successful migration."""
    reason: str = ""
    is_rolled_back: bool = False
    """Whether the database has rolled back all changes of a failed migration."""
    refusals: list[str] = field(default_factory=list)
    """What PostgreSQL would refuse, if the request asks for it."""


class ProcessEndedError(Exception):
    """The migration process could not start, or has ended."""


class MigrationProcess:
    """A child process that migrates one database after another. Call `close()` to end the process.

    The child process first imports Alembic, which takes 0.6 s. If the parent process dies, the
    child process ends. Only `kill()` is thread-safe.

    Raises:
        ProcessEndedError: the migration process cannot be started.
    """

    def __init__(self) -> None:
        self._socket, child_socket = socket.socketpair()
        try:
            with child_socket:
                self._process = subprocess.Popen(  # noqa: S603 - runs a module of Tenantry
                    python_command(f"from {__package__}.process_child import main; main()"),
                    stdin=child_socket.fileno(),
                    # Standard output of migrations is discarded. Standard error is shown.
                    stdout=subprocess.DEVNULL,
                    # With a new session, `kill` also ends processes that a migration started.
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
        """Return the next message of the process. After an error, no method except `close()` works.

        Raises:
            TimeoutError: no message arrived in time.
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
        """Kill the process and all processes that migrations started. Thread-safe."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError):  # the process has already ended
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def close(self) -> str:
        """End the process, and return how it ended, such as `SIGKILL` or `exit code 3`."""
        self.kill()
        self._lines.close()
        self._socket.close()
        return describe_exit(self._process.returncode)
