"""The usage rates that `tenantry top` shows, from the counters of the host's processes."""

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tenantry.errors import TenantryError
from tenantry.observability.usage_counters import (
    ZERO,
    Counts,
    ProcessCounts,
    lock_if_ended,
    read_counters,
)

RATES = {
    "requests": "requests", "errors": "errors", "refusals": "refusals",
    "processor": "processor_ns", "busy": "wall_ns", "database": "database_ns",
    "queries": "queries", "bytes_in": "bytes_in", "bytes_out": "bytes_out",
}  # fmt: skip
"""Maps each column to the counter whose increase per second the column shows. The rate of a
duration is a share: 0.5 means half a processor, or one request in flight half of the time."""

CURRENT = ("in_flight", "stuck")
"""Columns with the number of requests in flight, and of requests that exceed their deadline."""

Key = tuple[str, int | None]
"""The name of a tenant, and the process ID of a worker (None for all workers together)."""


class UsageRates:
    """Usage rates between two reads of the usage counters. Not thread-safe. Needs no closing.

    Args:
        folder: the folder of the usage counters.
        is_per_worker: whether a tenant has one row for each worker.
        sort: the column to sort by, highest first; `tenant` sorts by name.
        ask: returns the number of requests in flight that each process reports.

    Raises:
        TenantryError: no running host uses the folder.
    """

    def __init__(
        self,
        folder: Path,
        is_per_worker: bool,
        sort: str,
        ask: Callable[[], Mapping[int, Mapping[str, Any]]] = dict,
    ) -> None:
        self._folder = folder
        self._ask = ask
        self._is_per_worker = is_per_worker
        self._sort = sort
        self._before = self._read()
        self._read_at = time.monotonic()
        if not any(_is_counting(path) for path in self._before):
            raise TenantryError(
                f"no host is running with data folder {folder.parent}; "
                "start one with: tenantry serve."
            )

    def rows(self) -> list[dict[str, Any]]:
        """Return the rates since the previous call, for tenants with usage."""
        after, read_at = self._read(), time.monotonic()
        used: dict[Key, Counts] = {}
        for path, file in after.items():
            before = self._before.get(path)
            for tenant, counts in file.counts.items():
                key = tenant, file.pid if self._is_per_worker else None
                earlier = ZERO if before is None else before.counts.get(tenant, ZERO)
                used[key] = used.get(key, ZERO).plus(counts.minus(earlier))
        seconds = max(read_at - self._read_at, 1e-3)
        self._before, self._read_at = after, read_at
        current = self._current()
        used |= {key: ZERO for key in current if key not in used}
        rows = [
            _row(key, current.get(key, Counter()), counts, seconds)
            for key, counts in used.items()
            if any(counts[:-1]) or key in current
        ]
        rows.sort(key=lambda row: (row["tenant"], row.get("worker", 0)))
        if self._sort != "tenant":
            # Python's sort is stable, so rows with equal values stay sorted by name.
            rows.sort(key=lambda row: row[self._sort], reverse=True)
        return rows

    def _current(self) -> dict[Key, Counter[str]]:
        found: dict[Key, Counter[str]] = {}
        for pid, report in self._ask().items():
            for column in CURRENT:
                for tenant, number in report.get(column, {}).items():
                    key = tenant, pid if self._is_per_worker else None
                    found.setdefault(key, Counter())[column] += number
        return found

    def _read(self) -> dict[Path, ProcessCounts]:
        return {file.path: file for file in read_counters(self._folder)}


def columns(rows: list[dict[str, Any]]) -> list[str]:
    """Return the columns of the given rows, or the columns of an empty table."""
    return [*rows[0]] if rows else ["tenant", *CURRENT, *RATES]


def _row(key: Key, current: Counter[str], counts: Counts, seconds: float) -> dict[str, Any]:
    tenant, worker = key
    row: dict[str, Any] = {"tenant": tenant}
    if worker is not None:
        row["worker"] = worker
    row |= {column: current[column] for column in CURRENT}
    for column, field in RATES.items():
        rate = getattr(counts, field) / seconds
        row[column] = round(rate / 1e9, 3) if field.endswith("_ns") else round(rate, 1)
    return row


def _is_counting(path: Path) -> bool:
    """Whether the process that writes the counters file `path` is alive."""
    fd = lock_if_ended(path)
    if fd is not None:
        os.close(fd)
    return fd is None and path.exists()
