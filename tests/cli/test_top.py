"""`tenantry top` shows live usage from counters that the test process writes."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from commands import Tenantry
from request_records import request_record
from tenantry.cli.top import render_table
from tenantry.errors import TenantryError
from tenantry.observability.usage_counters import UsageCounters, counters_folder
from tenantry.observability.usage_rates import UsageRates

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


@pytest.fixture(name="moving")
def _moving(monkeypatch: pytest.MonkeyPatch, counters: UsageCounters) -> None:
    """Make each `sleep` of `tenantry top` add one request of acme and three refusals of globex."""
    now = [100.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds
        counters.add_request(
            request_record("acme", bytes_out=100, wall_ns=3_000_000_000, processor_ns=1_000_000_000)
        )
        for _ in range(3):
            counters.add_request(
                request_record("globex", is_refusal=True, wall_ns=1_000_000, processor_ns=1_000_000)
            )

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])


@pytest.mark.usefixtures("moving")
@pytest.mark.parametrize(
    ("sort", "names"),
    [("processor", ["acme", "globex"]), ("requests", ["globex", "acme"]),
     ("tenant", ["acme", "globex"])],
)  # fmt: skip
def test_top_shows_rates_per_second(tenantry: Tenantry, sort: str, names: list[str]) -> None:
    """`tenantry top` computes rates only from usage after the command started."""
    rows = json.loads(tenantry("top", "--json", "--interval", "2", "--sort", sort).out)

    by_name = {row["tenant"]: row for row in rows}
    assert names == [*by_name]
    assert (0.5, 0.5, 1.5, 50) == tuple(
        by_name["acme"][key] for key in ("requests", "processor", "busy", "bytes_out")
    )
    assert (1.5, 1.5) == (by_name["globex"]["requests"], by_name["globex"]["refusals"])


@pytest.mark.usefixtures("moving")
def test_rates_are_per_worker_or_summed(data_dir: Path, counters: UsageCounters) -> None:
    """`tenantry top` shows a row for each worker, or sums over all workers."""
    other = UsageCounters()
    rates = [UsageRates(counters_folder(data_dir), each, "tenant") for each in (True, False)]
    other.open(counters_folder(data_dir))  # this worker starts between two samples of `top`
    for one in (counters, other):
        one.add_request(request_record("acme", wall_ns=1, processor_ns=1))

    [[row], [summed]] = [one.rows() for one in rates]
    assert ("worker" in row, "worker" in summed) == (True, False)
    assert row["requests"] == summed["requests"] > 0
    other.close()


@pytest.mark.usefixtures("moving")
def test_requests_in_flight_and_stuck_are_shown(data_dir: Path, counters: UsageCounters) -> None:
    """`tenantry top` lists a tenant that has requests in flight but no completed request."""
    reports = {
        os.getpid(): {"in_flight": {"acme": 2, "hung": 1}, "stuck": {"hung": 1}},
        1: {"in_flight": {"acme": 1}, "stuck": {}},
    }
    folder = counters_folder(data_dir)
    summed, each = (UsageRates(folder, one, "in_flight", lambda: reports) for one in (False, True))
    counters.add_request(request_record("acme", wall_ns=1, processor_ns=1))

    rows = [(row["tenant"], row["in_flight"], row["stuck"]) for row in summed.rows()]
    per_worker = {(row["worker"], row["tenant"], row["in_flight"]) for row in each.rows()}
    assert [("acme", 3, 0), ("hung", 1, 1)] == rows
    assert {(os.getpid(), "acme", 2), (os.getpid(), "hung", 1), (1, "acme", 1)} == per_worker


@pytest.mark.usefixtures("moving")
def test_a_small_terminal_shows_how_many_rows_are_hidden(data_dir: Path) -> None:
    """`tenantry top` shows as many rows as fit on the screen, and how many tenants are hidden."""
    rates = UsageRates(counters_folder(data_dir), False, "processor")
    time.sleep(1)
    console = Console(width=120)

    with console.capture() as captured:
        console.print(render_table(rates.rows(), 1, 120, "processor"))

    text = captured.get()
    assert ("acme" in text, "globex" in text, "and 1 more" in text) == (True, False, True)


def test_rates_need_a_running_host(data_dir: Path, counters: UsageCounters) -> None:
    """`tenantry top` prints one error if the counters belong to a host that has ended."""
    counters.close()

    with pytest.raises(TenantryError, match="no host is running with data folder"):
        UsageRates(counters_folder(data_dir), False, "tenant")
