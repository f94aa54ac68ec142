"""Prints the output of commands as a table, as tab-separated lines, or as JSON."""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

json_option = click.option("--json", "is_json", is_flag=True, help="Print JSON.")


def print_json(document: Any) -> None:
    """Print a document as JSON. Sets become sorted lists, and unknown types become text."""
    click.echo(json.dumps(document, indent=2, default=_json_default))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows as a table with a heading or, in a pipe, as tab-separated lines."""
    if not sys.stdout.isatty():
        for row in rows:
            click.echo("\t".join(str(cell) for cell in row))
        return
    table = Table(*columns, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    Console(markup=False, highlight=False).print(table)


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
