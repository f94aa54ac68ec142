"""`tenantry backup`: one tenant as one file, made while it serves."""

import os
import signal
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tenantry.capsules import CapsuleSummary, ProgressCallback, write_capsule
from tenantry.cli.output import as_json, print_json
from tenantry.errors import TenantryError
from tenantry.settings import read_settings
from tenantry.tenants.lookup import load_tenant

_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@click.command("backup")
@click.argument("name")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@as_json
def command(name: str, file: Path, is_json: bool) -> None:
    """Write tenant NAME into FILE: configuration without secrets, rows, files, checksums.

    It may go on serving. FILE is replaced when the new one is whole; only its owner may read it.
    """
    settings = read_settings()
    tenant, loaded = load_tenant(settings, name)
    check_place_of(file, settings.data_dir / name)
    with ending_in_order(), progress(is_json) as tell:
        amounts = write_capsule(tenant, loaded, settings.data_dir, file, tell)
    if is_json:
        print_json({"tenant": name, "file": str(file)} | as_document(amounts))
    else:
        size = file.stat().st_size
        click.echo(f"{file}: tenant {name!r}, {shown(amounts)}, in {size:,} bytes.")
    say_left_out(amounts, is_json=is_json)


def check_place_of(file: Path, folder: Path) -> None:
    """Check that a capsule may be written there.

    Raises:
        click.UsageError: it would be a part of the tenant's next capsule.
        TenantryError: there is no such folder, or something there that is no file.
    """
    if file.absolute().resolve().is_relative_to(folder.absolute().resolve()):
        raise click.UsageError(f"{file} is in the tenant's own folder; write it elsewhere.")
    if not file.absolute().parent.is_dir():
        raise TenantryError(f"{file.parent} is no folder; make it, or name another file.")
    if os.path.lexists(file) and not stat.S_ISREG(file.lstat().st_mode):
        raise TenantryError(f"{file} is there, and no ordinary file; name another one.")


def shown(amounts: CapsuleSummary) -> str:
    """Return `3 tables, 1,200 rows, 40 files`."""
    counts = (len(amounts.rows), sum(amounts.rows.values()), amounts.files)
    words = zip(counts, ("table", "row", "file"), strict=True)
    return ", ".join(f"{count:,} {word}{'s' * (count != 1)}" for count, word in words)


def as_document(amounts: CapsuleSummary) -> dict[str, object]:
    """Return what `--json` prints of them."""
    return {
        "rows": amounts.rows,
        "files": amounts.files,
        "size_bytes": amounts.size_bytes,
        "left_out": amounts.left_out,
    }


def say_left_out(amounts: CapsuleSummary, *, is_json: bool) -> None:
    """Name on stderr what was not taken."""
    for one in () if is_json else amounts.left_out:
        click.echo(f"tenantry: left out: {one if one.isprintable() else repr(one)}", err=True)


@contextmanager
def ending_in_order() -> Iterator[None]:
    """Have SIGTERM and SIGHUP end the block as Ctrl-C does: what is half made goes again.

    Not after `to_the_end`.
    """
    got: list[int] = []
    before = {one: signal.getsignal(one) for one in _ENDS}

    def end(number: int, _: object) -> None:
        got.append(number)
        for one in taken:
            signal.signal(one, signal.SIG_IGN)  # the next one would end the cleaning up
        raise KeyboardInterrupt  # for which drivers let go of what they wait for

    taken = [one for one, handler in before.items() if handler == signal.SIG_DFL]
    for one in taken:
        signal.signal(one, end)
    try:
        yield
    except KeyboardInterrupt:
        if not got:
            raise
        click.echo("tenantry: ended by a signal.", err=True)
        raise SystemExit(128 + got[0]) from None
    finally:
        for one, handler in before.items():
            signal.signal(one, signal.SIG_DFL if handler is None else handler)


def to_the_end() -> None:
    """Let no signal end what `ending_in_order` is around any more, but SIGKILL: all is made."""
    for one in _ENDS:
        signal.signal(one, signal.SIG_IGN)


@contextmanager
def progress(is_json: bool) -> Iterator[ProgressCallback]:
    """Show how far it is: a bar on a terminal, otherwise a line for each thing that is begun."""
    if is_json or not sys.stderr.isatty():
        told: list[str] = []

        def line(what: str, _: int, __: int) -> None:
            if not is_json and what not in told[-1:]:
                told.append(what)
                click.echo(f"{what} …", err=True)

        yield line
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True, markup=False, highlight=False)
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as bar:
        task = bar.add_task("")
        yield lambda what, done, total: bar.update(
            task, description=what, completed=done, total=total or None
        )
