"""What a new worker learns from the other workers of its host before it accepts connections.

It learns which tenants they have accepted. Otherwise, it would resolve conflicts by name, although
the others resolved them by who served first, and one prefix would have two owners. It also learns
which tenants they have built. Otherwise, each tenant's first request waits 10 to 125 ms for a
build; after a restart, all of them wait at once.
"""

import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path

from tenantry.observability.control_socket import ask_workers
from tenantry.routing.router import Router

BUILD_TIMEOUT_S = 2.0
"""How long a new worker builds before it accepts connections: enough for 50 to 200 tenants. The
other workers serve meanwhile, and first requests build the rest."""

BUILT_ANSWER_TIMEOUT_S = 1.0
"""How long one worker may take to list the tenants that it has built."""

ACCEPTED_TIMEOUT_S = 1.0
"""How long a new worker waits to learn which tenants the others have accepted. 10,000 tenants take
0.1 s, and several times that if the other worker is busy. Without an answer, names decide."""

ACCEPTED_ANSWER_TIMEOUT_S = 0.4
"""How long one worker may take to answer, so that one that hangs leaves time for the others."""


def accepted_by_siblings(data_dir: Path, only: Collection[str] = ()) -> frozenset[tuple[str, str]]:
    """Return name and digest of each tenant that other workers over `data_dir` have accepted.

    Only workers that serve the same tenants count (`only`; empty for all), and only after they have
    validated every file: until then, their decisions are not final.
    """
    found: list[frozenset[tuple[str, str]]] = []

    def ask() -> None:
        answers = ask_workers(data_dir, "accepted", ACCEPTED_ANSWER_TIMEOUT_S).values()
        same = [answer["accepted"] for answer in answers if set(answer["only"]) == set(only)]
        found.append(frozenset(pair for accepted in same for pair in accepted.items()))

    _run_at_most(ACCEPTED_TIMEOUT_S, ask, "tenantry-ask")
    return found[0] if found else frozenset()


def build_as_siblings(data_dir: Path, router: Router) -> None:
    """Build what the other workers over `data_dir` have built.

    After `BUILD_TIMEOUT_S`, no further build starts, and one that hangs goes on by itself.
    """
    deadline = time.monotonic() + BUILD_TIMEOUT_S

    def build() -> None:
        answers = ask_workers(data_dir, "built", BUILT_ANSWER_TIMEOUT_S).values()
        names = dict.fromkeys(name for answer in answers for name in answer["names"])
        mounts = {mount.name: mount for mount in router.mounts} if names else {}
        for name in names:
            if time.monotonic() >= deadline:
                return
            # A parked tenant would end each new worker.
            if name in mounts and mounts[name].quarantine is None:
                mounts[name].ensure_instance()

    _run_at_most(BUILD_TIMEOUT_S, build, "tenantry-warm-start")


def _run_at_most(timeout_s: float, act: Callable[[], None], thread_name: str) -> None:
    """Call `act` on a thread, and return when it has ended or time is up."""
    thread = threading.Thread(target=act, name=thread_name, daemon=True)
    thread.start()
    thread.join(timeout_s)
