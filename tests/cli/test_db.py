"""`tenantry db` migrates the databases of the chosen tenants."""

import io
import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from commands import Tenantry
from shops import WriteShop, first, second, write_shop_fixture
from tenantry.cli.db import progress
from tenantry.migrations.status import MigrationStatus

__all__ = ["write_shop_fixture"]

WriteTenant = Callable[..., Path]


@pytest.mark.live
@pytest.mark.usefixtures("data_dir")
def test_a_fleet_is_upgraded_and_downgraded(
    write_shop: WriteShop, write_tenant: WriteTenant, tenantry: Tenantry
) -> None:
    """`db upgrade --all` and `db status` report failures; `db downgrade` reverts upgrades."""
    write_shop(first(), second("if name.startswith('globex'): raise ValueError('no')"))
    for name in ("acme", "globex"):
        write_tenant(name, BLUEPRINTS=["corp.shop"])
    write_tenant("initech")
    write_tenant("broken", "SECRET_KEY = 1 +")

    upgraded = tenantry("db", "upgrade", "--all", "--jobs", "1")
    status = tenantry("db", "status", "--all", "--json")
    downgraded = tenantry("db", "downgrade", "--all")

    failed = "globex\tfailed\tnothing\tnothing\tValueError: no; the database was left as it was."
    assert (1, "acme\tupgraded\tnothing\tshop_2\t\n") == (upgraded.code, upgraded.out)
    assert failed in upgraded.err
    assert "4 tenants (run 1): 2 failed, 1 no tables, 1 upgraded." in upgraded.err
    found = {row["tenant"]: (row["state"], row["reason"][:17]) for row in json.loads(status.out)}
    assert (1, ("at head", ""), ("behind", "run 1: ValueError"), ("no tables", "")) == (
        status.code, found["acme"], found["globex"], found["initech"]
    )  # fmt: skip
    assert "failed" == found["broken"][0]
    assert "acme\tdowngraded\tshop_2\tnothing\t" in downgraded.out


@pytest.mark.usefixtures("data_dir")
@pytest.mark.parametrize(("jobs", "state"), [("1", "unreachable"), ("2", "behind")])
def test_status_reads_as_many_databases_at_once_as_jobs(
    *,
    write_shop: WriteShop,
    write_tenant: WriteTenant,
    tenantry: Tenantry,
    monkeypatch: pytest.MonkeyPatch,
    jobs: str,
    state: str,
) -> None:
    """`tenantry db status --jobs N` reads N databases at a time."""
    write_shop(first())
    for name in ("acme", "globex"):
        write_tenant(name, BLUEPRINTS=["corp.shop"])
    both = threading.Barrier(2, timeout=10 if jobs == "2" else 0.1)

    def read(*_: object) -> frozenset[str]:
        both.wait()
        return frozenset()

    monkeypatch.setattr("tenantry.migrations.status.read_versions", read)

    status = tenantry("db", "status", "--all", "--jobs", jobs, "--json")

    assert [state] * 2 == [row["state"] for row in json.loads(status.out)]


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        """Return True."""
        return True


def test_a_terminal_shows_the_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal, `tenantry db` shows a progress bar, and prints a line only for a problem."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())

    with progress(3, is_json=False, shown_states=("upgraded", "failed")) as on_status:
        on_status(MigrationStatus("acme", "upgraded"))
        on_status(MigrationStatus("globex", "failed", reason="no"))

    output = terminal.getvalue()
    assert [True, True, False] == [
        "2/3" in output, "globex: failed: no" in output, "acme" in output
    ]  # fmt: skip


@pytest.mark.usefixtures("data_dir")
@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["upgrade"], "choose tenants with --tenant NAME, or all tenants with --all"),
        (["status", "--all", "--tenant", "acme"], "choose tenants with --tenant NAME"),
        (["upgrade", "--tenant", "nobody"], "no tenant named 'nobody'; 1 tenant exists"),
    ],
)
def test_misuse_exits_2(
    words: list[str], text: str, write_tenant: WriteTenant, tenantry: Tenantry
) -> None:
    """`tenantry db` rejects unknown tenants, `NAME` with `--all`, and a missing argument."""
    write_tenant("acme")

    result = tenantry("db", *words)

    assert (2, True) == (result.code, text in result.err), result.err


@pytest.mark.usefixtures("acme")
def test_status_without_names_shows_all_tenants(tenantry: Tenantry) -> None:
    """`tenantry db status` needs no `--all`, because it changes nothing."""
    assert tenantry("db", "status", "--all") == tenantry("db", "status")
