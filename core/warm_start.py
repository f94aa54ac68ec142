"""A new worker wakes the tenants that its siblings have awake, before it accepts connections.

Else each tenant's first request in a new worker waits for a build, 10 to 125 ms each, and after a
restart all of them do at once.
"""

import threading
import time
from collections.abc import Callable
from pathlib import Path

from core.mounts import Mounts
from core.status import ask_workers

WARM_S = 2.0
"""How long a new worker builds before it accepts connections: some 50 to 200 tenants. While it
does, its siblings serve; the rest is built on first requests."""


def wake_as_siblings(data_dir: Path, mounts: Callable[[], Mounts]) -> None:
    """Wake what the other workers over `data_dir` have awake, for `WARM_S` at most.

    A build that hangs is left alone in its thread then, as one of a request would be.
    """
    is_over = threading.Event()
    arguments = (data_dir, mounts, is_over, time.monotonic() + WARM_S)
    threading.Thread(target=_wake, args=arguments, name="tenantry-warm", daemon=True).start()
    is_over.wait(WARM_S)


def _wake(
    data_dir: Path, mounts: Callable[[], Mounts], is_over: threading.Event, until: float
) -> None:
    try:
        answers = ask_workers(data_dir, "awake").values()
        wanted = dict.fromkeys(name for answer in answers for name in answer["names"])
        known = {mount.name: mount for mount in mounts().all} if wanted else {}
        for name in wanted:
            if time.monotonic() >= until:
                return
            if name in known:
                known[name].wake()
    finally:
        is_over.set()
