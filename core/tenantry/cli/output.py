"""Prints the output of commands as a table, as tab-separated lines, or as JSON."""

import json
import os
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import click
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

TEXT_WIDTH = 16
"""Minimum width in characters of a column of texts, unless all texts are shorter."""

GAP = 2
"""Width in characters of the gap between two columns."""

_SEPARATORS = str.maketrans("\t\r\n", "   ")
"""Replaces tabs and line breaks in texts, because they separate the cells and lines of a table."""

_UNIT = re.compile(r"(_s/s|/s|_s)$")
"""Pattern of the unit at the end of a heading."""

json_option = click.option("--json", "is_json", is_flag=True, help="Print JSON.")


def print_json(document: Any) -> None:
    """Print a document as JSON. Sets become sorted lists, and unknown types become text."""
    click.echo(json.dumps(document, indent=2, default=_json_default))


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, optional: Sequence[str] = ()
) -> None:
    """Print rows with a heading, as a table or, in a pipe, as tab-separated lines.

    Args:
        columns: The heading of each column. A heading ends with the unit of the column, as in
            `wall_s`.
        rows: The rows. In a pipe, each value is printed in full.
        optional: Columns that are left out if the terminal is too narrow, in this order.
    """
    if sys.stdout.isatty():
        console = Console(markup=False, highlight=False)
        console.print(fitting_table(columns, [*rows], console.width, optional=optional))
        return
    for row in (columns, *rows):
        click.echo("\t".join(_exact(value).translate(_SEPARATORS) for value in row))


def fitting_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    width: int,
    *,
    optional: Sequence[str] = (),
    caption: str = "",
) -> Table:
    """Return a table for a terminal of `width` characters.

    Numbers are rounded and aligned, and are never cut. Texts wrap. If the table is too wide,
    columns in `optional` are left out, and the caption names these columns.
    """
    cells = {name: [_shown(name, row[at]) for row in rows] for at, name in enumerate(columns)}
    numbers = {
        name
        for at, name in enumerate(columns)
        if all(isinstance(row[at], int | float | datetime | None) for row in rows)
    }
    left_out = _columns_to_leave_out(cells, numbers, width, optional)
    if left_out:
        hidden = f"not shown: {', '.join(left_out)}; use a wider terminal, or --json"
        caption = "\n".join(filter(None, (caption, hidden)))
    style = "" if os.environ.get("NO_COLOR") else "bold"
    table = Table(box=None, header_style=style, pad_edge=False, caption=caption or None)
    table.caption_justify = "left"
    for name in cells:
        table.add_column(
            _heading(name),
            justify="right" if name in numbers else "left",
            no_wrap=name in numbers,
            overflow="fold",
        )
    for row in zip(*cells.values(), strict=True):
        table.add_row(*row)
    return table


def _columns_to_leave_out(
    cells: dict[str, list[str]], numbers: Collection[str], width: int, optional: Sequence[str]
) -> list[str]:
    """Remove optional columns from `cells` until the other columns fit, and return their names."""
    left_out: list[str] = []
    for name in optional:
        if _width_of(cells, numbers) <= width:
            break
        del cells[name]
        left_out.append(name)
    return left_out


def _heading(name: str) -> str:
    """Return the heading of a column on a terminal, with the unit on a line of its own."""
    return _UNIT.sub(lambda unit: "\n" + unit[1].lstrip("_"), name)


def _width_of(cells: dict[str, list[str]], numbers: Collection[str]) -> int:
    """Return the smallest width of a readable table. Texts longer than `TEXT_WIDTH` wrap."""
    width = -GAP
    for name, texts in cells.items():
        widest = max(map(len, [*_heading(name).splitlines(), *texts]))
        width += GAP + (widest if name in numbers else min(widest, TEXT_WIDTH))
    return width


def _exact(value: object) -> str:
    """Return the text of a value for programs, with all digits."""
    if isinstance(value, datetime):
        return value.isoformat()
    return "" if value is None else str(value)


def _shown(name: str, value: object) -> str:
    """Return the text of a value for people: rounded, with separators and units."""
    if value is None:
        return ""
    if isinstance(value, datetime):
        return f"{value.astimezone(UTC):%Y-%m-%d %H:%M}Z"
    if not isinstance(value, int | float):
        return str(value)
    if name.startswith("bytes_"):
        return decimal(int(value))
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.3f}" if value < 10 else f"{value:,.1f}"  # noqa: PLR2004 - shows four digits


def examples(*commands: str) -> str:
    """Return the examples at the end of a command's help, one on each line."""
    heading = "Example:" if len(commands) == 1 else "Examples:"
    return "\n".join(["\b", heading, *(f"  {command}" for command in commands)])


def count(number: int, noun: str) -> str:
    """Return a number and a noun in the singular or plural, such as `1,200 rows`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def is_progress_drawn(*, is_json: bool) -> bool:
    """Whether to draw a progress bar: stderr is a terminal, and `--json` is not used."""
    return sys.stderr.isatty() and not is_json


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Draw a progress bar on stderr, and remove the bar at the end of the `with` block."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True, markup=False, highlight=False)
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as bar:
        yield bar


def _json_default(value: object) -> object:
    return sorted(value, key=str) if isinstance(value, set) else str(value)
