"""What a new worker learns from its siblings before it accepts connections.

Whom they have accepted: else it would decide a clash by names where they had decided it by who was
there first, and one prefix would have two owners. And who is awake with them: else each tenant's
first request in a new worker waits for a build, 10 to 125 ms each, and after a restart all of them
do at once.
"""

import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path

from tenantry.observability.control_socket import ask_workers
from tenantry.routing.router import Router

WARM_S = 2.0
"""How long a new worker builds before it accepts connections: some 50 to 200 tenants. While it
does, its siblings serve; the rest is built on first requests."""

ACCEPTED_S = 1.0
"""How long a new worker waits at most to hear whom its siblings have accepted: 10,000 tenants take
0.1 s, of a busy sibling several times that. Whoever hears nothing decides by names."""

HEARD_S = 1.0
"""How long one sibling may take to tell who is awake: one that hangs does not take all of the
time, for it is to be replaced by this one."""

SILENCE_S = 0.4
"""How long for one sibling: one that hangs does not keep the others from being heard."""


def accepted_by_siblings(data_dir: Path, only: Collection[str] = ()) -> frozenset[tuple[str, str]]:
    """Return name and digest of all that other workers over `data_dir` have accepted.

    Only of those that serve the same tenants (`only`; empty for all), and have judged every file:
    what a worker has accepted while it starts is not final. Nothing if that takes `ACCEPTED_S`.
    """
    heard: list[frozenset[tuple[str, str]]] = []

    def ask() -> None:
        answers = ask_workers(data_dir, "accepted", SILENCE_S).values()
        same = [one["accepted"] for one in answers if set(one["only"]) == set(only)]
        heard.append(frozenset(pair for accepted in same for pair in accepted.items()))

    asking = threading.Thread(target=ask, name="tenantry-ask", daemon=True)
    asking.start()
    asking.join(ACCEPTED_S)
    return heard[0] if heard else frozenset()


def wake_as_siblings(data_dir: Path, mounts: Callable[[], Router]) -> None:
    """Wake what the other workers over `data_dir` have awake, for `WARM_S` at most.

    A build that hangs is left alone in its thread then, as one of a request would be.
    """
    is_over = threading.Event()
    arguments = (data_dir, mounts, is_over, time.monotonic() + WARM_S)
    threading.Thread(target=_wake, args=arguments, name="tenantry-warm", daemon=True).start()
    is_over.wait(WARM_S)


def _wake(
    data_dir: Path, mounts: Callable[[], Router], is_over: threading.Event, until: float
) -> None:
    try:
        answers = ask_workers(data_dir, "awake", HEARD_S).values()
        wanted = dict.fromkeys(name for answer in answers for name in answer["names"])
        known = {mount.name: mount for mount in mounts().mounts} if wanted else {}
        for name in wanted:
            if time.monotonic() >= until:
                return
            if name in known and known[name].quarantine is None:  # or it ends every new worker
                known[name].ensure_instance()
    finally:
        is_over.set()
