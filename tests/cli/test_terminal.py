"""Commands adapt to the width and the encoding of a terminal, to a closed pipe, and to Ctrl-C."""

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from rich.console import Console

from commands import Tenantry
from tenantry.cli import COMMANDS, top, usage
from tenantry.cli import list as list_
from tenantry.cli.output import fitting_table
from tenantry.cli.terminal import open_terminal
from tenantry.errors import UnknownTenantError
from tenantry.observability.usage_rates import RATES

LONG_NAME = "globex-international-and-daughters-of-the-eastern-hemisphere-inc"

COUNTS = (
    246912, 3, 1234, 123456789, 98765432100, 123456.123456, 2345.6, 0.001, 512345,
    0.1, 2, 3, 4, 5, "2026-11-01T12:00:00+00:00",
)  # fmt: skip


def rendered(table: Any, width: int) -> list[str]:
    """Return the lines of a table on a terminal of `width` characters."""
    console = Console(width=width, markup=False, highlight=False, file=io.StringIO())
    with console.capture() as captured:
        console.print(table)
    return captured.get().splitlines()


@pytest.mark.parametrize("command", [*COMMANDS, "db status", "db upgrade", "db downgrade"])
def test_h_is_help(tenantry: Tenantry, command: str) -> None:
    """Each command and subcommand accepts `-h` like `--help`."""
    short, long = tenantry(*command.split(), "-h"), tenantry(*command.split(), "--help")

    assert (0, True) == (short.code, "Example" in short.out)
    assert long == short


@pytest.mark.parametrize("width", [80, 120])
def test_usage_fits_a_terminal(width: int) -> None:
    """`tenantry usage` never cuts a number, and names the columns that are left out."""
    row = dict(zip(usage.COLUMNS, (LONG_NAME, *COUNTS), strict=True))
    table = fitting_table(usage.COLUMNS, [usage.table_row(row)], width, optional=usage.OPTIONAL)

    lines = rendered(table, width)

    text = " ".join(lines)
    assert max(map(len, lines)) <= width
    assert [] == [word for word in ("246,912", "98.8 GB", "2,345.6", "build_s") if word not in text]
    assert "…" not in text


@pytest.mark.parametrize(("width", "sort"), [(80, "processor"), (120, "processor"), (80, "busy")])
def test_top_fits_a_terminal(width: int, sort: str) -> None:
    """`tenantry top` never cuts a number, and never leaves out the sorted column."""
    row = {"tenant": LONG_NAME, "in_flight": 12, "stuck": 3} | dict.fromkeys(RATES, 1234.5)

    lines = rendered(top.render_table([row], 10, width, sort), width)

    text = " ".join(lines)
    assert max(map(len, lines)) <= width
    assert (True, True, False) == ("1,234.5" in text, "s/s" in text, "…" in text)
    assert sort in text.partition("not shown")[0]


@pytest.mark.parametrize("width", [80, 120])
def test_texts_wrap_and_are_never_cut(width: int) -> None:
    """In a table of long texts, such as `tenantry list`, each text wraps."""
    cells = [
        LONG_NAME,
        f"/clients/{LONG_NAME}",
        "stale (101 stale)",
        "landing, images",
        "why " * 60,
    ]

    lines = rendered(fitting_table(list_.COLUMNS, [cells], width), width)

    assert max(map(len, lines)) <= width
    assert 60 == " ".join(lines).count("why")
    assert "…" not in " ".join(lines)


@pytest.mark.usefixtures("acme")
def test_a_pipe_gets_headings_and_whole_values(
    tenantry: Tenantry, write_tenant: Callable[..., Path]
) -> None:
    """In a pipe, a table is tab-separated, has a heading, and contains every value in full."""
    write_tenant(LONG_NAME[:60], URL_PREFIX=f"/{LONG_NAME[:60]}/{LONG_NAME[:60]}")

    heading, _, row = tenantry("list").out.splitlines()

    assert list_.COLUMNS == tuple(heading.split("\t"))
    assert f"/{LONG_NAME[:60]}/{LONG_NAME[:60]}" == row.split("\t")[1]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("serve", "--port", "80"), "no option '--port'; use --bind HOST:PORT."),
        (("serve", "-p", "80"), "no option '-p'; use --bind HOST:PORT."),
        (("list", "-o", "json"), "no option '-o'; use --json."),
        (("top", "--intervall", "2"), "no option '--intervall'; did you mean '--interval'?"),
        (("check", "--frobnicate"), "no option '--frobnicate'; see: tenantry check --help."),
        (("enable", "--port", "80"), "no option '--port'; see: tenantry enable --help."),
        (("lst",), "no command 'lst'; did you mean 'list'?"),
    ],
)
def test_a_wrong_option_gets_a_hint(tenantry: Tenantry, words: tuple[str, ...], text: str) -> None:
    """The error for an unknown option or command suggests a similar option or command."""
    result = tenantry(*words)

    assert (2, "", f"tenantry: {text}\n") == (result.code, result.out, result.err)


def test_an_unknown_tenant_gets_three_names_and_a_count() -> None:
    """The error for an unknown tenant names three similar tenants, and counts all tenants."""
    error = UnknownTenantError("shp", ["acme", *(f"shop{number}" for number in range(60))])

    text = str(error)
    assert (3, True, False) == (text.count("'shop"), "61 tenants exist" in text, "acme" in text)


def test_characters_that_the_encoding_lacks_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a Latin-1 terminal, `日本` becomes `??`.

    On a UTF-8 terminal, bytes that are not text become `??`.
    """
    for encoding, text in (("latin-1", "日本"), ("utf-8", "\udcff\udcfe")):
        screen = io.BytesIO()
        with io.TextIOWrapper(screen, encoding=encoding) as stream:
            monkeypatch.setattr(sys, "stdout", stream)
            open_terminal()
            click.echo(text, nl=False)
            assert b"??" == screen.getvalue()
            monkeypatch.undo()


@pytest.mark.usefixtures("acme")
def test_ctrl_c_is_one_line_and_exits_130(
    tenantry: Tenantry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C ends a command with the exit code of SIGINT, without a traceback."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(list_, "read_settings", interrupt)

    result = tenantry("list")

    assert (130, "", "tenantry: interrupted.") == (result.code, result.out, result.err.strip())


@pytest.mark.live
@pytest.mark.usefixtures("acme")
@pytest.mark.parametrize("words", ["list", "list --json", "usage --csv", "show acme", "check"])
def test_a_closed_pipe_is_no_error(tmp_path: Path, words: str) -> None:
    """If the reading program has ended, as in `| head`, a command ends without output on stderr."""
    read, write = os.pipe()
    os.close(read)

    result = subprocess.run(
        [sys.executable, "-m", "tenantry", *words.split()],
        cwd=tmp_path, stdout=write, stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip

    os.close(write)
    assert (141, "") == (result.returncode, result.stderr)


@pytest.mark.live
@pytest.mark.usefixtures("acme")
@pytest.mark.parametrize("words", ["list", "list --json", "show acme"])
def test_a_full_disk_is_one_line(tmp_path: Path, words: str) -> None:
    """If the output cannot be written, as on a full disk, a command says why and exits with 1."""
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "tenantry", *words.split()],
            cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip

    expected = "tenantry: cannot write the output: No space left on device.\n"
    assert (1, expected) == (result.returncode, result.stderr)


@pytest.mark.live
@pytest.mark.usefixtures("acme")
@pytest.mark.parametrize(
    ("line", "completed"),
    [("show ac", "acme"), ("db upgrade --tenant a", "acme"), ("maintenance on ", "acme"),
     ("chec", "check"), ("serve --only a", "acme"), ("show b", "")],
)  # fmt: skip
def test_a_shell_completes_tenants(tmp_path: Path, line: str, completed: str) -> None:
    """A shell completes commands, and the names of tenants where a command expects a tenant."""
    words = f"tenantry {line}"
    variables = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}

    result = subprocess.run(
        [sys.executable, "-m", "tenantry"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
        env=os.environ | variables | {"_TENANTRY_COMPLETE": "bash_complete"},
    )  # fmt: skip

    assert ([f"plain,{completed}"] if completed else []) == result.stdout.split()


@pytest.mark.live
@pytest.mark.parametrize(
    "variables",
    [{"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1"}, {"LC_ALL": "C"},
     {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}],
)  # fmt: skip
def test_a_command_prints_in_any_encoding(
    tmp_path: Path, write_tenant: Callable[..., Path], data_dir: Path, variables: dict[str, str]
) -> None:
    """In any encoding, a command prints a tenant's name without a traceback."""
    write_tenant("acme", APP_NAME="日本 Ä")

    result = subprocess.run(
        [sys.executable, "-m", "tenantry", "show", "acme"],
        cwd=tmp_path, capture_output=True, check=False, env=os.environ | variables,
    )  # fmt: skip

    assert data_dir == tmp_path / "instance"
    assert (0, b"", True) == (result.returncode, result.stderr, b"APP_NAME" in result.stdout)
