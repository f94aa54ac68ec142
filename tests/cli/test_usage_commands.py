"""`tenantry usage` and `tenantry top`, over ledgers that this process wrote."""

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from tenantry.cli import top, usage
from tenantry.cli.top import Looks
from tenantry.errors import TenantryError
from tenantry.observability.usage_counters import UsageCounters, counters_folder

pytestmark = pytest.mark.usefixtures("tenants_dir")


@pytest.fixture(name="ledger")
def _ledger(data_dir: Path) -> Iterator[UsageCounters]:
    """Return the ledger of a process that has served acme twice and globex once."""
    ledger = UsageCounters()
    ledger.open(counters_folder(data_dir))
    for name in ("globex", "acme", "acme"):
        ledger.note_request(name, False, False, 1, 10, 2_000_000_000, 500_000_000)
    yield ledger
    ledger.close()


def run(command: Any, *words: str) -> Result:
    """Return how a command ended."""
    return CliRunner().invoke(command, words)


# -- usage --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("ledger")
def test_usage_as_json() -> None:
    """A row per tenant, in the order of names, times in seconds."""
    rows = json.loads(run(usage.command, "--json").stdout)

    assert ["acme", "globex"] == [row["tenant"] for row in rows]
    assert [*usage.COLUMNS] == [*rows[0]]
    assert (2, 20, 4.0, 1.0) == tuple(
        rows[0][key] for key in ("requests", "bytes_out", "wall_s", "processor_s")
    )
    assert rows[0]["last_used"].endswith("+00:00")


@pytest.mark.usefixtures("ledger")
def test_usage_as_csv_and_as_lines() -> None:
    """With a heading for other programs; for people the same rows."""
    rows = [*csv.DictReader(run(usage.command, "--csv").stdout.splitlines())]
    lines = run(usage.command).stdout.splitlines()

    assert [("acme", "2"), ("globex", "1")] == [(row["tenant"], row["requests"]) for row in rows]
    assert [[*row.values()] for row in rows] == [line.split("\t") for line in lines]


@pytest.mark.usefixtures("ledger")
@pytest.mark.parametrize(
    ("since", "tenants"),
    [("1h", 2), ("7d", 2), ("2001-01-01", 2), ("2001-01-01T00:00+02:00", 2), ("2999-01-01", 0)],
)
def test_usage_since(since: str, tenants: int) -> None:
    """A date, a date-time or how long ago."""
    assert tenants == len(json.loads(run(usage.command, "--json", "--since", since).stdout))


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--since", "yesterday"], "write 2026-11-01"), (["--csv", "--json"], "take one of them")],
)
def test_usage_that_is_asked_wrongly(words: list[str], said: str) -> None:
    """Misuse is exit code 2, and the message says what to write."""
    result = run(usage.command, *words)

    assert (2, True) == (result.exit_code, said in result.stderr)


# -- top ----------------------------------------------------------------------------------------


@pytest.fixture(name="moving")
def _moving(monkeypatch: pytest.MonkeyPatch, ledger: UsageCounters) -> None:
    """Let acme be served once and globex refused three times while `top` waits, for a second."""
    now = [100.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds
        ledger.note_request("acme", False, False, 0, 100, 3_000_000_000, 1_000_000_000)
        for _ in range(3):
            ledger.note_request("globex", False, True, 0, 0, 1_000_000, 1_000_000)

    monkeypatch.setattr(top.time, "sleep", sleep)
    monkeypatch.setattr(top.time, "monotonic", lambda: now[0])


@pytest.mark.usefixtures("moving")
@pytest.mark.parametrize(
    ("sort", "names"),
    [("processor", ["acme", "globex"]), ("requests", ["globex", "acme"]),
     ("tenant", ["acme", "globex"])],
)  # fmt: skip
def test_top_shows_what_was_used_meanwhile(sort: str, names: list[str]) -> None:
    """Rates each second, the most first; what was used before is not in it."""
    rows = json.loads(run(top.command, "--json", "--interval", "2", "--sort", sort).stdout)

    by_name = {row["tenant"]: row for row in rows}
    assert names == [*by_name]
    assert (0.5, 0.5, 1.5, 50) == tuple(
        by_name["acme"][key] for key in ("requests", "processor", "busy", "bytes_out")
    )
    assert (1.5, 1.5) == (by_name["globex"]["requests"], by_name["globex"]["refusals"])


@pytest.mark.usefixtures("moving")
def test_top_tells_workers_apart(data_dir: Path, ledger: UsageCounters) -> None:
    """Each has a row with its pid; summed up they are one."""
    other = UsageCounters()
    looks = [Looks(counters_folder(data_dir), each, "tenant") for each in (True, False)]
    other.open(counters_folder(data_dir))  # a worker that was started meanwhile
    for one in (ledger, other):
        one.note_request("acme", False, False, 0, 0, 1, 1)

    [[row], [summed]] = [one.look() for one in looks]
    assert ("worker" in row, "worker" in summed) == (True, False)
    assert row["requests"] == summed["requests"] > 0
    other.close()


@pytest.mark.usefixtures("moving")
def test_top_shows_what_is_in_flight_and_stuck(data_dir: Path, ledger: UsageCounters) -> None:
    """Also of a tenant of which no request has ended since the last look."""
    said = {
        os.getpid(): {"in_flight": {"acme": 2, "hung": 1}, "stuck": {"hung": 1}},
        1: {"in_flight": {"acme": 1}, "stuck": {}},
    }
    folder = counters_folder(data_dir)
    summed, each = (Looks(folder, one, "in_flight", lambda: said) for one in (False, True))
    ledger.note_request("acme", False, False, 0, 0, 1, 1)

    rows = [(row["tenant"], row["in_flight"], row["stuck"]) for row in summed.look()]
    per_worker = {(row["worker"], row["tenant"], row["in_flight"]) for row in each.look()}
    assert [("acme", 3, 0), ("hung", 1, 1)] == rows
    assert {(os.getpid(), "acme", 2), (os.getpid(), "hung", 1), (1, "acme", 1)} == per_worker


@pytest.mark.usefixtures("moving")
def test_top_on_a_small_terminal_says_how_many_are_not_shown(data_dir: Path) -> None:
    """The table has as many rows as fit."""
    looks = Looks(counters_folder(data_dir), False, "processor")
    top.time.sleep(1)
    console = Console(width=120)

    with console.capture() as captured:
        console.print(top._shown(looks.look(), 1))

    text = captured.get()
    assert ("acme" in text, "globex" in text, "and 1 more" in text) == (True, False, True)


def test_top_without_a_host(data_dir: Path, ledger: UsageCounters) -> None:
    """One error, also where one was running."""
    ledger.close()

    with pytest.raises(TenantryError, match="no host is running over"):
        Looks(counters_folder(data_dir), False, "tenant")
