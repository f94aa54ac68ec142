"""`/-/metrics`, over the counters files of several processes."""

from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from werkzeug.test import Client

from request_records import request_record
from servers import CONFIG_FILE, Server, free_port
from tenantry.observability import prometheus as metrics
from tenantry.observability.prometheus import MetricsPage, bounded
from tenantry.observability.usage_counters import OVERFLOW, Counts, UsageCounters, counters_folder
from tenantry.observability.usage_store import collect, usage_file


def count(data_dir: Path, *tenants: str) -> UsageCounters:
    """Return the counters of a process that has served these, each for a second."""
    counters = UsageCounters()
    counters.open(counters_folder(data_dir))
    for name in tenants:
        counters.add_request(
            request_record(name, bytes_in=1, bytes_out=10, wall_ns=10**9, processor_ns=10**8)
        )
    return counters


def series(text: str) -> dict[tuple[str, str], float]:
    """Return each value of a page by metric and tenant."""
    return {
        (sample.name, sample.labels["tenant"]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_all_processes_count_together(data_dir: Path) -> None:
    """Those that have ended, too: a counter never falls."""
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


def test_what_is_in_flight_is_shown(data_dir: Path) -> None:
    """Of who has no series of its own among the rest; and what was overdue or uncounted."""
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


def test_of_many_tenants_the_rest_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first to have traffic are shown; who had none is nowhere, who is called `other` is."""
    monkeypatch.setattr(metrics, "SHOWN", 2)
    names = ("b", "silent", "other", "a", "c", OVERFLOW)
    used = {name: Counts(requests=len(name) % 6, builds=1) for name in names}

    shown = bounded(used)

    assert {"b": 1, "a": 1, "other": 5 + 1 + len(OVERFLOW) % 6} == {
        name: counts.requests for name, counts in shown.items()
    }


def test_usage_that_cannot_be_read_is_503(data_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The log says why."""
    count(data_dir, "acme").close()
    usage_file(data_dir).write_bytes(b"no database" * 1000)

    answer = Client(MetricsPage(data_dir)).get("/-/metrics")

    assert (503, ["usage.unreadable"]) == (
        answer.status_code,
        [record.message for record in caplog.records],
    )


@pytest.mark.live
def test_only_the_operators_listener_has_them(
    start_server: Callable[..., Server], write_tenant: Callable[..., Path]
) -> None:
    """On the tenants' one it is 404."""
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
