"""`tenantry usage` prints totals from counters that the test process writes."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from commands import Tenantry
from request_records import request_record
from tenantry.cli import usage
from tenantry.observability.usage_counters import UsageCounters, counters_folder

pytestmark = pytest.mark.usefixtures("tenants_dir")


@pytest.fixture(name="counters")
def _counters(data_dir: Path) -> Iterator[UsageCounters]:
    """Return the counters of a process that has served acme twice and globex once."""
    counters = UsageCounters()
    counters.open(counters_folder(data_dir))
    for name in ("globex", "acme", "acme"):
        counters.add_request(
            request_record(
                name, bytes_in=1, bytes_out=10, wall_ns=2_000_000_000, processor_ns=500_000_000
            )
        )
    yield counters
    counters.close()


@pytest.mark.usefixtures("counters")
def test_usage_prints_json(tenantry: Tenantry) -> None:
    """`tenantry usage --json` prints a row per tenant, sorted by name, with times in seconds."""
    rows = json.loads(tenantry("usage", "--json").out)

    assert ["acme", "globex"] == [row["tenant"] for row in rows]
    assert [*usage.COLUMNS] == [*rows[0]]
    assert (2, 20, 4.0, 1.0) == tuple(
        rows[0][key] for key in ("requests", "bytes_out", "wall_s", "processor_s")
    )
    assert rows[0]["last_used"].endswith("+00:00")


@pytest.mark.usefixtures("counters")
def test_usage_prints_csv_and_lines(tenantry: Tenantry) -> None:
    """`tenantry usage --csv` has a heading and the same values as the default output."""
    rows = [*csv.DictReader(tenantry("usage", "--csv").out.splitlines())]
    heading, *lines = tenantry("usage").out.splitlines()

    assert [("acme", "2"), ("globex", "1")] == [(row["tenant"], row["requests"]) for row in rows]
    assert [*usage.COLUMNS] == heading.split("\t")
    assert [[*row.values()] for row in rows] == [line.split("\t") for line in lines]


@pytest.mark.usefixtures("counters")
@pytest.mark.parametrize(
    ("since", "tenants"),
    [("1h", 2), ("7d", 2), ("2001-01-01", 2), ("2001-01-01T00:00+02:00", 2), ("2999-01-01", 0)],
)
def test_usage_starts_at_a_moment(tenantry: Tenantry, since: str, tenants: int) -> None:
    """`tenantry usage --since` accepts a date, a date-time, or a time span before now."""
    assert tenants == len(json.loads(tenantry("usage", "--json", "--since", since).out))


@pytest.mark.usefixtures("data_dir")
@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--since", "yesterday"], "write a time like 2026-11-01"),
        (["--csv", "--json"], "choose either"),
    ],
)
def test_misuse_of_usage_is_explained(tenantry: Tenantry, words: list[str], text: str) -> None:
    """For wrong options, `tenantry usage` explains what to write and exits with 2."""
    result = tenantry("usage", *words)

    assert (2, True) == (result.code, text in result.err)
