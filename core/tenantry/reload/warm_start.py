"""Requests from a new worker to other workers of its host, before the first connection.

A new worker asks other workers for the tenants that the other workers have accepted. Otherwise, the
new worker would resolve a conflict by name, while another worker keeps the tenant that served
first, and one prefix would have two owners. A new worker also asks for the tenants that other
workers have built. Otherwise, each tenant's first request in the new worker waits 10 to 125 ms for
a build.
"""

import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

from tenantry.observability.control_socket import ask_workers
from tenantry.routing.router import Router

BUILD_TIMEOUT_S = 2.0
"""Seconds that a new worker builds instances before the worker accepts connections: enough for 50
to 200 tenants. First requests build the remaining instances."""

BUILT_ANSWER_TIMEOUT_S = 1.0
"""Seconds that one worker may take to list its built tenants."""

ACCEPTED_TIMEOUT_S = 1.0
"""Seconds that a new worker waits for the accepted tenants of other workers. A list of 10,000
tenants takes 0.1 s, or several times as long from a busy worker. Without an answer, the new worker
resolves conflicts by name."""

ACCEPTED_ANSWER_TIMEOUT_S = 0.4
"""Seconds that one worker may take to list its accepted tenants, so that a worker that hangs leaves
time for other workers."""


class SiblingTenant(NamedTuple):
    """A tenant that another worker of the host has accepted."""

    name: str
    digest: str
    prefix: str


def accepted_by_siblings(data_dir: Path, only: Collection[str] = ()) -> frozenset[SiblingTenant]:
    """Return each tenant that other workers over `data_dir` have accepted.

    Only workers with the same `only` (empty for all tenants) count, and only workers that have
    validated every tenant file, because earlier decisions are not final.
    """
    found: list[frozenset[SiblingTenant]] = []

    def ask() -> None:
        answers = ask_workers(data_dir, "accepted", ACCEPTED_ANSWER_TIMEOUT_S).values()
        same = [answer["accepted"] for answer in answers if set(answer["only"]) == set(only)]
        found.append(
            frozenset(
                SiblingTenant(name, *claims)
                for accepted in same
                for name, claims in accepted.items()
            )
        )

    _run_at_most(ACCEPTED_TIMEOUT_S, ask, "tenantry-ask")
    return found[0] if found else frozenset()


def build_as_siblings(data_dir: Path, router: Router) -> None:
    """Build the tenants that other workers over `data_dir` have built.

    After `BUILD_TIMEOUT_S`, no further build starts, and a build that hangs continues on its own
    thread.
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
    """Call `act` on a thread; return at the end of `act`, or after `timeout_s` seconds."""
    thread = threading.Thread(target=act, name=thread_name, daemon=True)
    thread.start()
    thread.join(timeout_s)
