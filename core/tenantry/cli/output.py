"""How commands print: a table on a terminal, tab-separated lines in a pipe, or JSON."""

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Table

as_json = click.option("--json", "is_json", is_flag=True, help="Print JSON.")


def print_json(document: Any) -> None:
    """Print a document; sets become lists, and what JSON has no word for its text."""
    click.echo(json.dumps(document, indent=2, default=_plain))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows: with a heading on a terminal, bare and tab-separated otherwise."""
    if not sys.stdout.isatty():
        for row in rows:
            click.echo("\t".join(str(cell) for cell in row))
        return
    table = Table(*columns, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    Console(markup=False, highlight=False).print(table)


def counted(number: int) -> str:
    """Return `1 tenant`, `2 tenants`."""
    return f"{number:,} tenant{'s' * (number != 1)}"


def _plain(value: object) -> object:
    return sorted(value, key=str) if isinstance(value, set) else str(value)
