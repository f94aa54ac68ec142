"""The crash budget: blames tenants for ended workers, and parks a tenant with enough strikes.

The crash budget runs in gunicorn's master, and runs no tenant's code. The master logs a failure of
the crash budget and keeps running.
"""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path

from tenantry.errors import TenantryError
from tenantry.observability.scoreboard import Row
from tenantry.routing.quarantine import FIRST_WAIT_S, MAX_QUARANTINE_S, quarantine_s
from tenantry.server.heartbeat import Heartbeat
from tenantry.tenants.operator_state import (
    OperatorState,
    change_operator_state,
    read_operator_state,
)

LIMIT = 3.0
"""Number of strikes within `WINDOW_S` that park a tenant. One or two workers can end for a reason
unrelated to the tenant."""

OWN = 2
"""Minimum number of whole strikes, with one suspect each, among the strikes that park a tenant.
Shares alone could park a busy tenant while another tenant ends workers."""

WINDOW_S = 300.0

LOCK_WAIT_S = 0.5
"""Seconds that the master waits for another process that changes an operator state. While it waits,
the master checks no workers."""

_ROUNDING = 1e-9

_REQUEST = "one of its requests"

_logger = logging.getLogger(__name__)


@dataclass
class _Record:
    """The strikes against one tenant."""

    strikes: deque[tuple[float, float]] = field(default_factory=deque)
    """The time and the share of each strike. A share is one divided by the number of suspects."""
    times: int = 0
    """Number of consecutive times that the tenant was parked."""
    parked_at: float = -math.inf
    last_at: float = -math.inf
    """The time at which the tenant got its last strike or share of a strike."""


def blame(row: Row, heartbeat: Heartbeat, ended_by: int | None = None) -> tuple[list[str], str]:
    """Return the tenants to blame for the end of a worker, and the reason.

    No tenant is to blame if the worker was stopping, or if no request and no build was in flight.
    Only one tenant is to blame if a thread of the tenant crashed (`ended_by`) or held the
    interpreter lock. Otherwise, the tenants with an unfinished build are suspects before tenants
    with requests, because a build runs only for milliseconds.
    """
    running = [] if row.is_stopping else row.in_flight()
    for one in running:
        if one.thread_ident == ended_by:
            return [one.tenant], f"{'its build' if one.is_build else _REQUEST} ended a worker"
    culprit = heartbeat.culprit
    if culprit is not None and culprit in running:
        held_s, what = round(heartbeat.silent_s), "its build" if culprit.is_build else _REQUEST
        return [culprit.tenant], f"{what} held the interpreter lock for {held_s} s"
    builders = sorted({one.tenant for one in running if one.is_build})
    names = builders or sorted({one.tenant for one in running})
    what = "it was being built" if builders else f"{_REQUEST} was in flight"
    return names, f"a worker ended while {what}{_and_others(len(names) - 1, bool(builders))}"


def _and_others(number: int, is_build: bool) -> str:
    if number < 1:
        return ""
    tenants = "1 other tenant" if number == 1 else f"{number} other tenants"
    owner = "" if is_build else "'s" if number == 1 else "'"
    return f", and {tenants}{owner}"


class CrashBudget:
    """The strikes of all tenants, for the life of the master. Not thread-safe."""

    def __init__(self, data_dir: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._data_dir = data_dir
        self._clock = clock
        self._records: dict[str, _Record] = {}  # the records of tenants that ended a worker

    def note(self, suspects: Collection[str], reason: str) -> None:
        """Record a strike against the suspects, and park each tenant with enough strikes.

        Each suspect gets an equal share of one strike. No tenant is parked for shares alone,
        because a busy tenant is in flight whichever tenant ends a worker.
        """
        for name in sorted(suspects):
            share = 1 / len(suspects)
            _logger.warning(
                "tenant.struck", extra={"tenant": name, "share": round(share, 2), "reason": reason}
            )
            try:
                self._note_one(name, share, reason)
            except (
                TenantryError,
                OSError,
            ) as error:  # the next strike tries to park the tenant again
                _logger.error("tenant.not_parked", extra={"tenant": name, "reason": str(error)})

    def has_struck(self, name: str) -> bool:
        """Whether a tenant has recently ended a worker."""
        record = self._records.get(name)
        return record is not None and self._clock() - record.last_at < WINDOW_S

    def _note_one(self, name: str, share: float, reason: str) -> None:
        now = self._clock()
        record = self._records.setdefault(name, _Record())
        record.last_at = now
        record.strikes.append((now, share))
        while record.strikes[0][0] < now - WINDOW_S:
            record.strikes.popleft()
        is_parked = bool(read_operator_state(self._data_dir, name).parked)
        if is_parked and now - record.parked_at < FIRST_WAIT_S:
            record.strikes.pop()  # the request began before the tenant was parked
        elif (_is_a_whole if is_parked else _is_enough)(record.strikes):
            self._park(name, record, reason)

    def _park(self, name: str, record: _Record, reason: str) -> None:
        now = self._clock()
        is_again = now - record.parked_at < MAX_QUARANTINE_S + WINDOW_S
        times = record.times + 1 if is_again else 1
        remedy = f"fix it, then run: tenantry enable {name}"

        def park(state: OperatorState) -> OperatorState:
            again = max(times, state.times_parked + 1 if state.parked else 1)
            return replace(state, parked=f"parked: {reason}; {remedy}", times_parked=again)

        operator_state = change_operator_state(self._data_dir, name, park, LOCK_WAIT_S)
        record.times, record.parked_at = operator_state.times_parked, now
        facts = {
            "tenant": name,
            "reason": f"{reason}; it ended workers",
            "strikes": len(record.strikes),
            "tried_after_s": quarantine_s(operator_state.times_parked),
            "remedy": remedy,
        }
        record.strikes.clear()
        _logger.error("tenant.parked", extra=facts)


def _is_enough(strikes: Collection[tuple[float, float]]) -> bool:
    shares = [share for _, share in strikes]
    return sum(shares) >= LIMIT - _ROUNDING and shares.count(1.0) >= OWN


def _is_a_whole(strikes: Collection[tuple[float, float]]) -> bool:
    """Whether the strikes are enough to keep a parked tenant parked after a trial request."""
    return sum(share for _, share in strikes) >= 1.0 - _ROUNDING
