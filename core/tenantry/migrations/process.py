"""The processes in which migrations run; run as a module by `migration_children`.

The first imports what migrations need and migrates nothing: it forks one for each line that it is
handed over its stdin, a socket, and ends it when it is told to. It numbers them: a pid may be
another process's by then. A fork reads requests from its line and answers them, both in lines of
JSON. A migration may do to the fork what it likes: raise, hang, end it; `migrations` wants several
of these.
"""

import gc
import itertools
import json
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress

from sqlalchemy.engine import make_url

from tenantry.migrations.children import UNKNOWN
from tenantry.migrations.locks import LockedError
from tenantry.migrations.revisions import one_line, read_branches
from tenantry.migrations.steps import Parent, Request, UnfitError, migrate


def main() -> None:
    """Import once, then fork a process for each line that is handed over, until stdin ends."""
    control = socket.socket(fileno=os.dup(0))
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, their pids would be free at once
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)  # what migrations print is no answer; what they write to stderr is shown
    for driver in sys.argv[1:]:
        with suppress(Exception):  # told by the fork, with the database that it cannot reach
            make_url(f"{driver}://").get_dialect().import_dbapi()
    gc.collect()
    gc.freeze()  # a collection in a fork would copy every page that it shares
    forks: dict[int, int] = {}  # number → pid; ended by `_end` alone, so each pid is still its own
    for number in itertools.count():
        said, fds, *_ = socket.recv_fds(control, 100, 1)
        if not said:
            break
        if fds:
            forks[number] = _fork(control, fds[0])
            control.send(str(number).encode())
        else:
            pid = forks.pop(int(said), None)
            control.send(UNKNOWN if pid is None else str(_end(pid)).encode())
    for pid in forks.values():
        _end(pid)


def _fork(control: socket.socket, fd: int) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            control.close()
            os.set_inheritable(fd, False)
            serve(socket.socket(fileno=fd))
        finally:
            os._exit(0)
    os.close(fd)
    return pid


def _end(pid: int) -> int:
    """End a fork, with whatever its migrations started; return how it had ended, or ends now."""
    with suppress(ProcessLookupError):  # it ended before it had a session of its own
        os.killpg(pid, signal.SIGKILL)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def serve(line: socket.socket) -> None:
    """Answer requests until the other end closes."""
    threading.Thread(target=_end_with_parent, args=(line.fileno(),), daemon=True).start()

    def say(**answer: object) -> None:
        try:
            line.sendall(json.dumps(answer).encode() + b"\n")
        except ConnectionError:  # who started this one is gone
            os._exit(1)

    with line.makefile("rb") as requests:

        def begin(current: frozenset[str]) -> None:
            say(state="begins", current=sorted(current))
            requests.readline()  # the journal knows now

        parent = Parent(begin, lambda: say(state="commits"))
        for request in requests:
            say(**answer(Request(**json.loads(request)), parent))


def _end_with_parent(line: int) -> None:
    """End this process, in the middle of whatever it does, when nobody waits for it any more.

    And whatever its migrations started: the process that forked it may be gone.
    """
    poll = select.poll()
    poll.register(line, 0)  # no event but that the other end is closed
    poll.poll()
    os.killpg(0, signal.SIGKILL)


def answer(request: Request, parent: Parent) -> Mapping[str, object]:
    """Do what is asked and say how it went; whatever a migration raises stays in here."""
    try:
        branches = read_branches(request.endpoints)
        return migrate(request, branches, parent)
    except UnfitError as error:
        return {"state": error.state, "reason": str(error), "is_whole": True}
    except LockedError as error:
        return {"state": "failed", "reason": str(error), "is_whole": True}
    except BaseException as error:  # noqa: BLE001 - whatever a driver or a revision file raises
        return {"state": "failed", "reason": one_line(error), "is_whole": True}


if __name__ == "__main__":
    main()
