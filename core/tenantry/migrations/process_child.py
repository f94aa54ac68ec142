"""Runs migrations in the child process that `MigrationProcess` starts.

The child process reads requests from stdin, which is a socket, and writes messages to the same
socket. The messages are `started` before a migration changes the database, `committing` before each
COMMIT, and `finished`. After `started`, the child process waits for a line from the parent.
"""

import json
import os
import select
import signal
import socket
import threading
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from tenantry.migrations.locks import DatabaseLockedError
from tenantry.migrations.migrate import OnCommit, migrate
from tenantry.migrations.process import MigrationReply, MigrationRequest, OnStart
from tenantry.migrations.revisions import read_branches
from tenantry.migrations.version_table import describe_error
from tenantry.private_code.snapshot import CodeSnapshot, use_snapshot


def main() -> None:
    """Run migrations until the parent closes the socket."""
    parent = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)  # a migration must not read requests from stdin
    os.close(null)
    threading.Thread(target=_end_with_parent, args=(parent.fileno(),), daemon=True).start()
    with suppress(ConnectionError):  # the parent process has ended
        serve(parent)


def serve(parent: socket.socket) -> None:
    """Answer requests until the parent closes the socket."""

    def send(event: str, **fields: object) -> None:
        try:
            parent.sendall(json.dumps({"event": event} | fields).encode() + b"\n")
        except ConnectionError:  # the parent process has ended
            os._exit(1)

    with parent.makefile("rb") as lines:

        def start(current: frozenset[str]) -> None:
            send("started", current=sorted(current))
            # Wait until the parent has recorded the start in the journal.
            lines.readline()

        for line in lines:
            reply = _reply(MigrationRequest(**json.loads(line)), start, lambda: send("committing"))
            send("finished", reply=asdict(reply))


def _reply(request: MigrationRequest, on_start: OnStart, on_commit: OnCommit) -> MigrationReply:
    try:
        if request.code_snapshot is not None:
            use_snapshot(CodeSnapshot(Path(request.code_snapshot), request.folders_without_code))
        branches = read_branches(request.endpoints, request.app_dir, request.migrations)
        return migrate(request, branches, on_start, on_commit)
    except DatabaseLockedError as error:
        return MigrationReply("failed", reason=str(error))
    except BaseException as error:  # noqa: BLE001 - a revision file can raise any exception
        return MigrationReply("failed", reason=describe_error(error))


def _end_with_parent(fd: int) -> None:
    """Wait until the parent has ended, and then end all processes of the session."""
    poll = select.poll()
    poll.register(fd, 0)  # an event mask of 0 reports only the end of the connection
    poll.poll()
    os.killpg(0, signal.SIGKILL)
