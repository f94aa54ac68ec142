"""Strikes: which tenants end workers, and when that is enough to park one. Runs in the master.

Knows no request and runs no tenant's code. Whatever goes wrong here costs a line in the log: the
master goes on.
"""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path

from tenantry.errors import TenantryError
from tenantry.routing.quarantine import FIRST_WAIT_S, MAX_WAIT_S, quarantine_s
from tenantry.tenants.operator_state import (
    OperatorState,
    change_operator_state,
    read_operator_state,
)

LIMIT = 3.0
"""Strikes within `WINDOW_S`: one worker may be killed by an operator, two by chance."""

OWN = 2
"""So many of them must be its own, and no shares: one death by chance, while it alone has a request
in flight, must not park a tenant that is busy beside one that ends workers."""

WINDOW_S = 300.0

LOCK_WAIT_S = 0.5
"""How long the master waits for another process that changes an operator state. Meanwhile it looks
after no worker."""

_ROUNDING = 1e-9

_logger = logging.getLogger(__name__)


@dataclass
class _Record:
    """What is known of one tenant."""

    strikes: deque[tuple[float, float]] = field(default_factory=deque)
    """When, and how much of a strike: one divided by how many were suspected."""
    times: int = 0
    """How often it was parked in a row."""
    parked_at: float = -math.inf
    last_at: float = -math.inf
    """When its last strike was, be it a share."""


class CrashBudget:
    """The strikes of all tenants, as long as the master lives. For one thread."""

    def __init__(self, data_dir: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._data_dir = data_dir
        self._clock = clock
        self._records: dict[str, _Record] = {}  # of those that ended a worker

    def note(self, suspects: Collection[str], reason: str) -> None:
        """Note that a worker has ended while these were in flight in it; park who has enough.

        Each suspect gets an equal share of one strike. Nobody is parked for shares alone: a busy
        tenant is in flight whoever ends a worker, and it is the guilty one that is there alone, or
        is known for sure.
        """
        for name in sorted(suspects):
            share = 1 / len(suspects)
            _logger.warning(
                "tenant.struck", extra={"tenant": name, "share": round(share, 2), "reason": reason}
            )
            try:
                self._note_one(name, share, reason)
            except (TenantryError, OSError) as error:  # its next strike tries again
                _logger.error("tenant.not_parked", extra={"tenant": name, "reason": str(error)})

    def has_struck(self, name: str) -> bool:
        """Whether a tenant has ended a worker lately."""
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
            record.strikes.pop()  # it was a request that ran on
        elif (_is_a_whole if is_parked else _is_enough)(record.strikes):
            self._park(name, record, reason)

    def _park(self, name: str, record: _Record, reason: str) -> None:
        now = self._clock()
        is_again = now - record.parked_at < MAX_WAIT_S + WINDOW_S
        times = record.times + 1 if is_again else 1

        def park(state: OperatorState) -> OperatorState:
            again = max(times, state.times_parked + 1 if state.parked else 1)
            return replace(state, parked=f"parked: {reason}", times_parked=again)

        operator_state = change_operator_state(self._data_dir, name, park, LOCK_WAIT_S)
        record.times, record.parked_at = operator_state.times_parked, now
        facts = {
            "tenant": name,
            "reason": f"{reason}; it ended workers",
            "strikes": len(record.strikes),
            "tried_after_s": quarantine_s(operator_state.times_parked),
            "remedy": f"mend it, then: tenantry enable {name}",
        }
        record.strikes.clear()
        _logger.error("tenant.parked", extra=facts)


def _is_enough(strikes: Collection[tuple[float, float]]) -> bool:
    shares = [share for _, share in strikes]
    return sum(shares) >= LIMIT - _ROUNDING and shares.count(1.0) >= OWN


def _is_a_whole(strikes: Collection[tuple[float, float]]) -> bool:
    """Whether that is enough for one that is parked, and gets a request now and then to try it."""
    return sum(share for _, share in strikes) >= 1.0 - _ROUNDING
