"""`/-/metrics` sums up the counter files of all processes."""

from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from werkzeug.test import Client

from request_records import request_record
from servers import CONFIG_FILE, Server, free_port
from tenantry.observability import prometheus as metrics
from tenantry.observability.prometheus import MetricsPage, limit_tenants
from tenantry.observability.usage_counters import OVERFLOW, Counts, UsageCounters, counters_folder
from tenantry.observability.usage_store import collect, usage_file


def count(data_dir: Path, *tenants: str) -> UsageCounters:
    """Return counters with one request of one second for each of the given tenants."""
    counters = UsageCounters()
    counters.open(counters_folder(data_dir))
    for name in tenants:
        counters.add_request(
            request_record(name, bytes_in=1, bytes_out=10, wall_ns=10**9, processor_ns=10**8)
        )
    return counters


def series(text: str) -> dict[tuple[str, str], float]:
    """Return the values of a metrics page by metric and tenant."""
    return {
        (sample.name, sample.labels["tenant"]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_cover_all_processes(data_dir: Path) -> None:
    """Metrics include processes that have ended, so counters never fall."""
    count(data_dir, "acme", "acme").close()
    collect(data_dir)
    living = count(data_dir, "acme", "globex")

    answer = Client(MetricsPage(data_dir)).get("/-/metrics")

    found = series(answer.text)
    assert ("text/plain", "no-store") == (answer.mimetype, answer.headers["Cache-Control"])
    assert (3, 1) == (
        found["tenantry_requests_total", "acme"],
        found["tenantry_requests_total", "globex"],
    )
    assert (3.0, 30) == (
        found["tenantry_request_seconds_total", "acme"],
        found["tenantry_response_bytes_total", "acme"],
    )
    assert pytest.approx(0.3) == found["tenantry_processor_seconds_total", "acme"]
    assert 1.7e9 < found["tenantry_last_request_timestamp_seconds", "globex"]
    living.close()


def test_requests_in_flight_are_shown(data_dir: Path) -> None:
    """Metrics show the requests in flight of each tenant.

    Tenants without their own series count as `other`.
    """
    counters = count(data_dir, "acme")
    counters.add("hung", overdue=1)
    counters.add("acme", uncounted=1)

    page = MetricsPage(data_dir, lambda: {"acme": 2, "hung": 1, "new": 1, "other": 1})
    found = series(Client(page).get("/-/metrics").text)

    assert {"acme": 2, "hung": 1, "other": 2} == {
        tenant: value
        for (name, tenant), value in found.items()
        if name == "tenantry_requests_in_flight"
    }
    assert (1, 1) == (
        found["tenantry_overdue_requests_total", "hung"],
        found["tenantry_uncounted_requests_total", "acme"],
    )
    counters.close()


def test_tenants_beyond_the_limit_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the maximum number of tenants, metrics count later tenants together as `other`."""
    monkeypatch.setattr(metrics, "MAX_TENANTS", 2)
    names = ("b", "silent", "other", "a", "c", OVERFLOW)
    used = {name: Counts(requests=len(name) % 6, builds=1) for name in names}

    shown = limit_tenants(used)

    assert {"b": 1, "a": 1, "other": 5 + 1 + len(OVERFLOW) % 6} == {
        name: counts.requests for name, counts in shown.items()
    }


def test_an_unreadable_database_is_a_503(data_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    """If the usage database is unreadable, `/-/metrics` gets 503, and the log gives the reason."""
    count(data_dir, "acme").close()
    usage_file(data_dir).write_bytes(b"no database" * 1000)

    answer = Client(MetricsPage(data_dir)).get("/-/metrics")

    assert (503, ["usage.unreadable"]) == (
        answer.status_code,
        [record.message for record in caplog.records],
    )


@pytest.mark.live
def test_only_the_operators_listener_serves_metrics(
    start_server: Callable[..., Server], write_tenant: Callable[..., Path]
) -> None:
    """`/-/metrics` is available to operators, and gets 404 on the tenants' listener."""
    write_tenant("acme")
    admin = free_port()
    server = start_server(
        ["gunicorn", "-c", CONFIG_FILE, "--bind", "{bind}", "--bind", f"127.0.0.1:{admin}"],
        TENANTRY_ADMIN_BIND=f"127.0.0.1:{admin}",
    )
    for _ in range(20):
        server.get("/acme/")

    answers = [server.get("/-/metrics", port=port)[0].status for port in (server.port, admin)]
    text = server.get("/-/metrics", port=admin)[1].decode()

    assert ([404, 200], 20) == (answers, series(text)["tenantry_requests_total", "acme"])
