"""`tenantry top`: shows the current usage of each tenant."""

import sys
import time
from contextlib import suppress
from functools import partial
from typing import Any

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table

from tenantry.cli.output import (
    examples,
    fitting_table,
    json_option,
    print_json,
    print_table,
)
from tenantry.observability.control_socket import ask_workers
from tenantry.observability.usage_counters import counters_folder
from tenantry.observability.usage_rates import CURRENT, RATES, UsageRates, columns
from tenantry.settings import read_settings

ANSWER_TIMEOUT_S = 0.5
"""Maximum seconds to wait until a worker reports its number of requests in flight.

If a worker does not answer in time, its requests in flight are not shown.
"""

OTHER_LINES = 6
"""Number of terminal lines that show no tenant: the heading, the caption and the prompt."""

OPTIONAL = ("bytes_in", "bytes_out", "queries", "database", "busy", "refusals", "errors")
"""The columns that a narrow terminal leaves out, in this order."""


@click.command("top", epilog=examples("tenantry top --sort requests --per-worker"))
@click.option(
    "--sort", metavar="COLUMN", type=click.Choice(["tenant", *CURRENT, *RATES]),
    default="processor", show_default=True,
    help=f"Column to sort by, in descending order: {', '.join(['tenant', *CURRENT, *RATES])}.",
)  # fmt: skip
@click.option("--per-worker", is_flag=True, help="Show one row per tenant and worker.")
@click.option(
    "--interval", "interval_s", type=click.FloatRange(0.1, 60), default=2.0, show_default=True,
    metavar="SECONDS", help="Time between two updates, 0.1 to 60 seconds.",
)  # fmt: skip
@json_option
def command(sort: str, per_worker: bool, interval_s: float, is_json: bool) -> None:
    """Show the current usage of each tenant.

    Most columns are rates per second, in which a request counts when it has ended. The columns
    in_flight and stuck are the current numbers of running requests and of requests past their
    deadline. Times are in seconds per second. A processor time of 0.5 means half a processor, and a
    busy time of 3 means three requests at the same time. Sizes are in bytes per second. On a
    terminal, the command runs until Ctrl-C. In a pipe, the output is printed once.
    """
    data_dir = read_settings().data_dir
    ask = partial(ask_workers, data_dir, "load", ANSWER_TIMEOUT_S)
    rates = UsageRates(counters_folder(data_dir), per_worker, sort, ask)
    if sys.stdout.isatty() and not is_json:
        _watch(rates, interval_s, sort)
        return
    time.sleep(interval_s)
    rows = rates.rows()
    if is_json:
        print_json(rows)
    else:
        print_table(headings(rows), [list(row.values()) for row in rows])


def _watch(rates: UsageRates, interval_s: float, sort: str) -> None:
    console = Console(markup=False, highlight=False)
    with (
        suppress(KeyboardInterrupt),
        Live(console=console, auto_refresh=False, screen=True) as live,
    ):
        while True:
            time.sleep(interval_s)
            width, height = console.size
            table = render_table(rates.rows(), height - OTHER_LINES, width, sort)
            live.update(table, refresh=True)


def render_table(rows: list[dict[str, Any]], height: int, width: int, sort: str) -> Table:
    """Return a table of the first `height` rows for a terminal of `width` characters.

    The caption of the table states how many rows are omitted. The column to sort by is always
    shown.
    """
    caption = f"and {len(rows) - height} more rows" if len(rows) > height else "quit with Ctrl-C"
    return fitting_table(
        headings(rows),
        [list(row.values()) for row in rows[:height]],
        width,
        optional=[_heading(column) for column in OPTIONAL if column != sort],
        caption=caption,
    )


def headings(rows: list[dict[str, Any]]) -> list[str]:
    """Return the headings of the columns, each with its unit."""
    return [_heading(column) for column in columns(rows)]


def _heading(column: str) -> str:
    if column not in RATES:
        return column
    return f"{column}_s/s" if RATES[column].endswith("_ns") else f"{column}/s"
