"""The process that runs migrations. `process.MigrationProcess` starts the process.

The process reads one request per line from stdin, which is a socket, and writes messages to the
same socket: `started` before a migration changes the database, `committing` before each COMMIT, and
`finished`. After `started`, the process waits for one line from the parent.
"""

import json
import os
import select
import signal
import socket
import threading
from dataclasses import asdict

from tenantry.migrations.locks import DatabaseLockedError
from tenantry.migrations.migrate import OnCommit, migrate
from tenantry.migrations.process import MigrationReply, MigrationRequest, OnStart
from tenantry.migrations.revisions import read_branches
from tenantry.migrations.version_table import describe_error


def main() -> None:
    """Run migrations on request until the parent closes the socket."""
    parent = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)  # A migration that reads stdin must not read requests from the socket.
    os.close(null)
    threading.Thread(target=_end_with_parent, args=(parent.fileno(),), daemon=True).start()
    serve(parent)


def serve(parent: socket.socket) -> None:
    """Answer migration requests until the parent closes the socket."""

    def send(event: str, **fields: object) -> None:
        try:
            parent.sendall(json.dumps({"event": event} | fields).encode() + b"\n")
        except ConnectionError:  # The parent process has ended.
            os._exit(1)

    with parent.makefile("rb") as lines:

        def start(current: frozenset[str]) -> None:
            send("started", current=sorted(current))
            # The line arrives after the parent has recorded the start in the journal.
            lines.readline()

        for line in lines:
            reply = _reply(MigrationRequest(**json.loads(line)), start, lambda: send("committing"))
            send("finished", reply=asdict(reply))


def _reply(request: MigrationRequest, on_start: OnStart, on_commit: OnCommit) -> MigrationReply:
    try:
        return migrate(request, read_branches(request.endpoints), on_start, on_commit)
    except DatabaseLockedError as error:
        return MigrationReply("failed", reason=str(error))
    except BaseException as error:  # noqa: BLE001 - whatever a driver or a revision file raises
        return MigrationReply("failed", reason=describe_error(error))


def _end_with_parent(fd: int) -> None:
    """End the process, and all processes that migrations started, when the parent has ended."""
    poll = select.poll()
    poll.register(fd, 0)  # An event mask of 0 reports only that the parent has closed the socket.
    poll.poll()
    os.killpg(0, signal.SIGKILL)
