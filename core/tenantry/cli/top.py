"""`tenantry top`: who uses what now, live.

It reads the ledgers, and asks the workers only what is in flight: one that hangs shows none.
"""

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table

from tenantry.cli.output import as_json, print_json, print_table
from tenantry.errors import TenantryError
from tenantry.observability.control_socket import ask_workers
from tenantry.observability.usage_counters import (
    NOTHING,
    Counts,
    Reading,
    counters_folder,
    lock_if_ended,
    read_counters,
)
from tenantry.settings import read_settings

RATES = {
    "requests": "requests", "errors": "errors", "refusals": "refusals",
    "processor": "processor_ns", "busy": "wall_ns", "database": "database_ns",
    "queries": "queries", "bytes_in": "bytes_in", "bytes_out": "bytes_out",
}  # fmt: skip
"""Column → the count of which it is the rate, each second; of a time, that is a share: 0.5 is half
a processor, or a request in flight for half of the time."""

NOW = ("in_flight", "stuck")
"""Columns of what is in flight at the moment, and of that what is over its deadline."""

ASK_S = 0.5
"""How long a worker may take to tell."""

ROOM = 3
"""Lines of a terminal that are not for rows."""

Rows = list[dict[str, Any]]
Key = tuple[str, int | None]
"""A tenant, and the worker's process id, or None for all together."""


@click.command("top")
@click.option(
    "--sort", type=click.Choice(["tenant", *NOW, *RATES]), default="processor", show_default=True,
    help="Most first.",
)  # fmt: skip
@click.option("--per-worker", is_flag=True, help="A row for each worker of a tenant.")
@click.option(
    "--interval", "interval_s", type=click.FloatRange(0.1, 60), default=2.0, show_default=True,
    metavar="S", help="Seconds between two looks.",
)  # fmt: skip
@as_json
def command(sort: str, per_worker: bool, interval_s: float, is_json: bool) -> None:
    """Show who uses what, each second: requests, errors, processor, database.

    In flight now, and stuck: over their deadline. Times are shares: `processor` 0.5 is half a
    processor, `busy` 3 is three requests in flight. A request counts when it has ended. Live on a
    terminal, until Ctrl-C; else one look.
    """
    data_dir = read_settings().data_dir
    ask = partial(ask_workers, data_dir, "load", ASK_S)
    looks = Looks(counters_folder(data_dir), per_worker, sort, ask)
    if sys.stdout.isatty() and not is_json:
        _watch(looks, interval_s)
        return
    time.sleep(interval_s)
    rows = looks.look()
    if is_json:
        print_json(rows)
    else:
        print_table(_columns(rows), [list(row.values()) for row in rows])


class Looks:
    """Looks at the ledgers of all processes; each gives the rates since the one before.

    Args:
        folder: where they are.
        is_per_worker: whether there is a row for each worker of a tenant.
        sort: the column whose greatest values come first.
        ask: returns what each process, by its id, tells of what is in flight.

    Raises:
        TenantryError: no process of a host is counting there.
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
        self._at = time.monotonic()
        if not any(_is_living(path) for path in self._before):
            raise TenantryError(f"no host is running over {folder.parent}; start one: serve.")

    def look(self) -> Rows:
        """Return a row for each tenant, or each worker of each, that used anything meanwhile.

        Or has a request in flight now.
        """
        after, at = self._read(), time.monotonic()
        used: dict[Key, Counts] = {}
        for path, reading in after.items():
            known = self._before.get(path)
            for tenant, counts in reading.counts.items():
                key = tenant, reading.pid if self._is_per_worker else None
                earlier = NOTHING if known is None else known.counts.get(tenant, NOTHING)
                used[key] = used.get(key, NOTHING).plus(counts.minus(earlier))
        seconds = max(at - self._at, 1e-3)
        self._before, self._at = after, at
        now = self._look_now()
        used |= {key: NOTHING for key in now if key not in used}
        rows = [
            _row(*key, now.get(key, Counter()), counts, seconds)
            for key, counts in used.items()
            if any(counts[:-1]) or key in now
        ]
        rows.sort(key=lambda row: (row["tenant"], row.get("worker", 0)))
        if self._sort != "tenant":
            rows.sort(key=lambda row: row[self._sort], reverse=True)  # of equals the first name
        return rows

    def _look_now(self) -> dict[Key, Counter[str]]:
        found: dict[Key, Counter[str]] = {}
        for pid, told in self._ask().items():
            for column in NOW:
                for tenant, count in told.get(column, {}).items():
                    key = tenant, pid if self._is_per_worker else None
                    found.setdefault(key, Counter())[column] += count
        return found

    def _read(self) -> dict[Path, Reading]:
        return {reading.path: reading for reading in read_counters(self._folder)}


def _row(
    tenant: str, worker: int | None, now: Counter[str], counts: Counts, seconds: float
) -> dict[str, Any]:
    row: dict[str, Any] = {"tenant": tenant}
    if worker is not None:
        row["worker"] = worker
    row |= {column: now[column] for column in NOW}
    for column, field in RATES.items():
        value = getattr(counts, field) / seconds
        row[column] = round(value / 1e9, 3) if field.endswith("_ns") else round(value, 1)
    return row


def _is_living(path: Path) -> bool:
    fd = lock_if_ended(path)
    if fd is not None:
        os.close(fd)
    return fd is None and path.exists()


def _watch(looks: Looks, interval_s: float) -> None:
    console = Console(markup=False, highlight=False)
    with (
        suppress(KeyboardInterrupt),
        Live(console=console, auto_refresh=False, screen=True) as live,
    ):
        while True:
            time.sleep(interval_s)
            live.update(_shown(looks.look(), console.size.height - ROOM), refresh=True)


def _shown(rows: Rows, height: int) -> Table:
    caption = f"and {len(rows) - height} more" if len(rows) > height else "Ctrl-C ends"
    table = Table(box=None, header_style="bold", pad_edge=False, caption=caption)
    for column in _columns(rows):
        is_text = column in {"tenant", "worker"}
        table.add_column(column, justify="left" if is_text else "right")
    for row in rows[:height]:
        table.add_row(*(str(value) for value in row.values()))
    return table


def _columns(rows: Rows) -> list[str]:
    return [*rows[0]] if rows else ["tenant", *NOW, *RATES]
