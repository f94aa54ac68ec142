"""The process that migrations run in. `process.MigrationProcess` starts it and talks to it.

It reads one request per line from stdin, which is a socket, and answers on the same socket:
`started` before it changes a database, after which it waits for a line; `committing` before each
COMMIT; and `finished`.
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
    """Serve requests until the other end of the socket closes."""
    parent = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)  # a migration that reads stdin must not read requests
    os.close(null)
    threading.Thread(target=_end_with_parent, args=(parent.fileno(),), daemon=True).start()
    serve(parent)


def serve(parent: socket.socket) -> None:
    """Answer requests until the other end of the socket closes."""

    def send(event: str, **fields: object) -> None:
        try:
            parent.sendall(json.dumps({"event": event} | fields).encode() + b"\n")
        except ConnectionError:  # the parent is gone
            os._exit(1)

    with parent.makefile("rb") as lines:

        def start(current: frozenset[str]) -> None:
            send("started", current=sorted(current))
            lines.readline()  # the parent has written the start to its journal

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
    """End this process, and whatever its migrations started, when the parent is gone."""
    poll = select.poll()
    poll.register(fd, 0)  # only reports that the other end is closed
    poll.poll()
    os.killpg(0, signal.SIGKILL)
