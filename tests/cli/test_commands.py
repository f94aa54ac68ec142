"""All `tenantry` commands have help, consistent exit codes, and one-line error messages."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from commands import Result, Tenantry
from tenantry.cli import COMMANDS
from tenantry.cli.later import LATER


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(tenantry: Tenantry, command: str) -> None:
    """The `--help` of every `tenantry` command describes the command and has an example."""
    result = tenantry(command, "--help")

    assert (0, True) == (result.code, result.out.startswith(f"Usage: tenantry {command}"))
    assert "Example" in result.out


@pytest.mark.parametrize(
    "words",
    [
        ("frobnicate",),
        ("show",),
        ("show", "nobody"),
        ("routes", "nobody"),
        ("check", "nobody"),
        ("run", "nobody", "--", "routes"),
        ("get", "acme"),
        ("get", "/acme/", "--header", "no colon"),
        ("list", "--frob"),
        ("new", "Bad Name"),
        ("new", "shop", "--prefix", "/shop/"),
        ("new", "shop", "--prefix", "/admin"),
        ("new", "shop", "--endpoint", "landin"),
        ("new", "shop", "--endpoint", "landing", "--endpoint", "landing"),
        ("new", "admin"),
        ("new", "secrets"),
        ("remove", "secrets", "--no-archive"),
        ("remove", ".removed", "--no-archive"),
        ("remove", "../acme", "--no-archive"),
        ("rename", "../acme", "globex"),
        ("get", "/acme/", "--header", "a b: c"),
        ("get", "/acme/", "--header", "Name: 日本"),
        ("serve", "--bind", "127.0.0.1:65536"),
        ("serve", "--bind", "127.0.0.1:0"),
        ("serve", "--bind", "127.0.0.1:8001"),
        ("serve", "--bind", "localhost:8001"),
        ("serve", "--bind", "0.0.0.0:8001"),
        ("serve", "--workers", "0"),
        ("serve", "--threads", "many"),
        ("serve", "--bind", "nowhere"),
    ],
)
@pytest.mark.usefixtures("acme")
def test_bad_arguments_are_one_line_and_exit_2(tenantry: Tenantry, words: tuple[str, ...]) -> None:
    """Wrong arguments print one line on stderr and nothing on stdout; the exit code is 2."""
    result = tenantry(*words)

    assert (2, "", 1) == (result.code, result.out, len(result.err.splitlines()))


def test_a_bad_setting_is_one_line_and_exit_2(
    tenantry: Tenantry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error for a misspelled `TENANTRY_` variable suggests the correct name."""
    monkeypatch.setenv("TENANTRY_TENANT_DIR", "x")

    result = tenantry("list")

    assert 2 == result.code
    assert "did you mean TENANTRY_TENANTS_DIR?" in result.err


def test_a_missing_folder_is_one_line_and_exit_1(tenantry: Tenantry, tenants_dir: Path) -> None:
    """If the tenants folder does not exist, the error names the setting for the folder."""
    tenants_dir.rmdir()

    result = tenantry("check")

    assert (1, 1) == (result.code, len(result.err.splitlines()))
    assert "TENANTRY_TENANTS_DIR" in result.err


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (("domains", "--check"), "domains"),
        (("backup", "--all", "folder", "--keep=3"), "backup --all --keep"),
        (("restore", "acme.capsule", "--verify"), "restore --verify"),
        (("restart", "--all-hosts"), "restart --all-hosts"),
        (("run", "--all", "--", "routes"), "run --all"),
    ],
)
def test_a_later_command_or_option_is_rejected_by_name(
    tenantry: Tenantry, words: tuple[str, ...], name: str
) -> None:
    """Commands and options that only later versions have are rejected with exit code 2."""
    result = tenantry(*words)

    text = f"tenantry: {name!r} comes with a later version of Tenantry; see: tenantry --help.\n"
    assert Result(2, "", text) == result


@pytest.mark.usefixtures("acme")
def test_words_of_a_flask_command_are_not_rejected(tenantry: Tenantry) -> None:
    """Arguments after `--` go to the app's Flask command, even if Tenantry reserves the option."""
    result = tenantry("run", "acme", "--", "routes", "--all-methods")

    assert 0 == result.code


def test_help_shows_no_later_command(tenantry: Tenantry) -> None:
    """`tenantry --help` lists only commands that exist."""
    shown = {line.split()[0] for line in tenantry("--help").out.splitlines() if line.strip()}

    later = {command for command, words in LATER.items() if not words}
    assert set() == shown & later


@pytest.mark.live
def test_the_command_is_installed(tmp_path: Path) -> None:
    """`tenantry` without a command prints its help and exits with 2."""
    program = Path(sys.executable).with_name("tenantry")

    result = subprocess.run(
        [program], cwd=tmp_path, capture_output=True, text=True, check=False, env=dict(os.environ)
    )

    assert (2, True) == (result.returncode, result.stdout.startswith("Usage: tenantry"))
