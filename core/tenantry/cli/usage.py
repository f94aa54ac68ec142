"""`tenantry usage`: shows each tenant's total usage, for billing."""

import csv
import re
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import click

from tenantry.cli.output import examples, json_option, print_json, print_table
from tenantry.observability.usage_counters import Counts
from tenantry.observability.usage_store import totals, used_since
from tenantry.settings import read_settings

COLUMNS = (
    "tenant", "requests", "errors", "refusals", "bytes_in", "bytes_out", "wall_s", "processor_s",
    "database_s", "queries", "build_s", "builds", "sleeps", "overdue", "uncounted", "last_used",
)  # fmt: skip

OPTIONAL = (
    "uncounted", "sleeps", "builds", "build_s", "overdue", "queries", "last_used", "wall_s",
    "refusals", "database_s", "bytes_in", "bytes_out", "errors",
)  # fmt: skip
"""The columns that a narrow terminal leaves out, in this order."""

_SPAN = re.compile(r"([0-9]{1,6})([mhd])")
_UNITS_S = {"m": 60, "h": 3600, "d": 86_400}


def _parse_since(_: click.Context, __: click.Parameter, text: str | None) -> float | None:
    """Return the value of `--since` in seconds since the epoch."""
    if text is None:
        return None
    if span := _SPAN.fullmatch(text):
        return time.time() - int(span[1]) * _UNITS_S[span[2]]
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter(
            f"{text!r}: write a time like 2026-11-01 or 2026-11-01T12:00, or an age like 24h or 7d."
        ) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


@click.command(
    "usage",
    epilog=examples("tenantry usage --since 7d", "tenantry usage --since 2026-11-01 --csv"),
)
@click.option(
    "--since",
    callback=_parse_since,
    metavar="T",
    help="Start of the period: a date or time (UTC without an offset), or an age: 90m, 24h, 7d.  "
    "[default: all usage]",
)
@click.option("--csv", "is_csv", is_flag=True, help="Print CSV.")
@json_option
def command(since: float | None, is_csv: bool, is_json: bool) -> None:
    """Show the total usage of each tenant.

    The totals include all processes of the host, even processes that have ended. All times are in
    seconds. Usage is stored per minute for two days, per hour for two months, and then per day
    (UTC). The totals include the whole minute, hour or day that contains the time of --since. On a
    narrow terminal, the table omits some columns. A pipe, --csv and --json contain every column.
    """
    if is_csv and is_json:
        raise click.UsageError("choose either --csv or --json.")
    data_dir = read_settings().data_dir
    used = totals(data_dir) if since is None else used_since(data_dir, since)
    rows = usage_rows(used)
    if is_json:
        print_json(rows)
    elif is_csv:
        writer = csv.DictWriter(sys.stdout, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    else:
        print_table(COLUMNS, [table_row(row) for row in rows], optional=OPTIONAL)


def usage_rows(used: Mapping[str, Counts]) -> list[dict[str, Any]]:
    """Return a row for each tenant, sorted by name, with times in seconds."""
    return [_row(name, used[name]) for name in sorted(used)]


def table_row(row: Mapping[str, Any]) -> list[Any]:
    """Return the values of a row in the order of `COLUMNS`, with the time as a `datetime`."""
    last = row["last_used"]
    return [*[row[name] for name in COLUMNS[:-1]], last and datetime.fromisoformat(last)]


def _row(tenant: str, counts: Counts) -> dict[str, Any]:
    values: list[Any] = [
        round(value / 1e9, 6) if field.endswith("_ns") else value
        for field, value in counts._asdict().items()
    ]
    last = None
    if counts.used_ns:
        last = datetime.fromtimestamp(counts.used_ns // 10**9, UTC).isoformat()
    return dict(zip(COLUMNS, [tenant, *values[:-1], last], strict=True))
