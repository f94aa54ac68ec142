"""Warm start: what a new worker asks other workers of its host before accepting connections.

A new worker asks which tenants other workers have accepted. If a new worker resolved a conflict by
name while the other workers keep the tenant that served first, one prefix would have two owners. A
new worker also asks which tenants other workers have built, so that the first request to each
tenant does not wait 10 to 125 ms for a build.
"""

import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

from tenantry.observability.control_socket import ask_workers
from tenantry.routing.router import Router
from tenantry.tenants.address import Address, address_of

BUILD_TIMEOUT_S = 2.0
"""Seconds for which a new worker builds instances before accepting connections: enough for 50 to
200 tenants. The remaining instances are built by their first requests."""

BUILT_ANSWER_TIMEOUT_S = 1.0
"""Seconds that one worker may take to list its built tenants."""

ACCEPTED_TIMEOUT_S = 1.0
"""Seconds that a new worker waits for the lists of accepted tenants. A list of 10,000 tenants takes
0.1 s, or several times as long from a busy worker. Without a list, the new worker resolves
conflicts by name."""

ACCEPTED_ANSWER_TIMEOUT_S = 0.4
"""Seconds that one worker may take to list its accepted tenants, so that time remains to ask other
workers if the worker hangs."""


class SiblingTenant(NamedTuple):
    """A tenant that another worker of the host has accepted."""

    name: str
    digest: str
    address: Address


def accepted_by_siblings(data_dir: Path, only: Collection[str] = ()) -> frozenset[SiblingTenant]:
    """Return the tenants that other workers with the data folder `data_dir` have accepted.

    Workers that serve other tenants than `only` (empty for all tenants) do not count. A worker that
    has not validated every tenant file returns no tenants, because its decisions are not final.
    """
    found: list[frozenset[SiblingTenant]] = []

    def ask() -> None:
        answers = ask_workers(data_dir, "accepted", ACCEPTED_ANSWER_TIMEOUT_S).values()
        same = [answer["accepted"] for answer in answers if set(answer["only"]) == set(only)]
        found.append(
            frozenset(
                SiblingTenant(name, digest, address_of(*address))
                for accepted in same
                for name, (digest, *address) in accepted.items()
            )
        )

    _run_at_most(ACCEPTED_TIMEOUT_S, ask, "tenantry-ask")
    return found[0] if found else frozenset()


def build_as_siblings(data_dir: Path, router: Router) -> None:
    """Build the tenants that other workers with the data folder `data_dir` have built.

    After `BUILD_TIMEOUT_S`, no further build starts. A build that hangs continues on its own
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
            # Building a parked tenant could end each new worker.
            if name in mounts and mounts[name].quarantine is None:
                mounts[name].ensure_instance()

    _run_at_most(BUILD_TIMEOUT_S, build, "tenantry-warm-start")


def _run_at_most(timeout_s: float, act: Callable[[], None], thread_name: str) -> None:
    """Call `act` on a thread, and wait up to `timeout_s` seconds for its end."""
    thread = threading.Thread(target=act, name=thread_name, daemon=True)
    thread.start()
    thread.join(timeout_s)
