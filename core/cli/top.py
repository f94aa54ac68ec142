"""`tenantry top`: who uses what now, live. It reads the ledgers, and asks no worker anything."""

import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table

from config.settings import read_settings
from core.cli.output import as_json, print_json, print_table
from core.errors import TenantryError
from core.ledger import NOTHING, Counts, Reading, ledgers_folder, lock_if_ended, read_ledgers

RATES = {
    "requests": "requests", "errors": "errors", "refusals": "refusals",
    "processor": "processor_ns", "busy": "wall_ns", "database": "database_ns",
    "queries": "queries", "bytes_in": "bytes_in", "bytes_out": "bytes_out",
}  # fmt: skip
"""Column → the count of which it is the rate, each second; of a time, that is a share: 0.5 is half
a processor, or a request in flight for half of the time."""

ROOM = 3
"""Lines of a terminal that are not for rows."""

Rows = list[dict[str, Any]]


@click.command("top")
@click.option(
    "--sort", type=click.Choice(["tenant", *RATES]), default="processor", show_default=True,
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

    Times are shares: `processor` 0.5 is half a processor, `busy` 3 is three requests in flight. A
    request counts when it has ended. Live on a terminal, until Ctrl-C; else one look.
    """
    looks = Looks(ledgers_folder(read_settings().data_dir), per_worker, sort)
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

    Raises:
        TenantryError: no process of a host is counting there.
    """

    def __init__(self, folder: Path, is_per_worker: bool, sort: str) -> None:
        self._folder = folder
        self._is_per_worker = is_per_worker
        self._sort = sort
        self._before = self._read()
        self._at = time.monotonic()
        if not any(_is_living(path) for path in self._before):
            raise TenantryError(f"no host is running over {folder.parent}; start one: serve.")

    def look(self) -> Rows:
        """Return a row for each tenant, or each worker of each, that used anything meanwhile."""
        after, at = self._read(), time.monotonic()
        used: dict[tuple[str, int | None], Counts] = {}
        for path, reading in after.items():
            known = self._before.get(path)
            for tenant, counts in reading.counts.items():
                key = tenant, reading.pid if self._is_per_worker else None
                earlier = NOTHING if known is None else known.counts.get(tenant, NOTHING)
                used[key] = used.get(key, NOTHING).plus(counts.minus(earlier))
        seconds = max(at - self._at, 1e-3)
        self._before, self._at = after, at
        rows = [_row(*key, counts, seconds) for key, counts in used.items() if any(counts[:-1])]
        rows.sort(key=lambda row: (row["tenant"], row.get("worker", 0)))
        if self._sort != "tenant":
            rows.sort(key=lambda row: row[self._sort], reverse=True)  # of equals the first name
        return rows

    def _read(self) -> dict[Path, Reading]:
        return {reading.path: reading for reading in read_ledgers(self._folder)}


def _row(tenant: str, worker: int | None, counts: Counts, seconds: float) -> dict[str, Any]:
    row: dict[str, Any] = {"tenant": tenant}
    if worker is not None:
        row["worker"] = worker
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
    return [*rows[0]] if rows else ["tenant", *RATES]
