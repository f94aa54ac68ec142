"""`/-/metrics`: what all processes of the host used, as Prometheus text. Operators' listener only.

Every number is of all processes together, those that have ended too, whichever worker answers. The
number of series is bounded: tenants with traffic only, and of many the rest under one name.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

from tenantry.errors import TenantryError
from tenantry.http.problem import ProblemResponse
from tenantry.observability.usage_counters import OVERFLOW, Counts, sum_counts
from tenantry.observability.usage_store import totals

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

SHOWN = 500
"""Tenants with series of their own: 8,000 series. They are those that had traffic first: if a
busier one took another's place, the sum of the rest would fall, and Prometheus takes that for a
restart."""

REST = "other"
"""Under which name all others are; a tenant that is called so is among them."""

UNREADABLE = ProblemResponse(
    HTTPStatus.SERVICE_UNAVAILABLE, "The usage cannot be read; the log says why.", retry_after_s=30
)

_SECONDS = 1e-9
_COUNTERS = (
    ("requests", 1, "requests", "Requests that have ended, refused ones included."),
    ("errors", 1, "errors", "Answers of 5xx that are no refusals, and broken ones."),
    ("refusals", 1, "refusals", "Answers of the host without asking the app."),
    ("bytes_in", 1, "request_bytes", "Bytes of request bodies that were read."),
    ("bytes_out", 1, "response_bytes", "Bytes of response bodies."),
    ("wall_ns", _SECONDS, "request_seconds", "Time from a request's head to its last byte."),
    ("processor_ns", _SECONDS, "processor_seconds", "Processor time of its requests' threads."),
    ("database_ns", _SECONDS, "database_seconds", "Time that queries took."),
    ("queries", 1, "queries", "Database queries."),
    ("build_ns", _SECONDS, "build_seconds", "Time that builds of instances took."),
    ("builds", 1, "builds", "Instances that were built."),
    ("sleeps", 1, "sleeps", "Instances that were put to sleep."),
    ("overdue", 1, "overdue_requests", "Requests that were reported at their deadline."),
    ("uncounted", 1, "uncounted_requests", "Requests that no rate was asked about."),
)
_IN_FLIGHT = "tenantry_requests_in_flight"
_LAST = "tenantry_last_request_timestamp_seconds"
_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_logger = logging.getLogger(__name__)


class MetricsPage:
    """A WSGI app. It reads the files anew for each request, and keeps nothing.

    Args:
        data_dir: where they are.
        in_flight: tells how many requests of each tenant are in flight now, in all processes.
    """

    def __init__(self, data_dir: Path, in_flight: Callable[[], Mapping[str, int]] = dict) -> None:
        self._data_dir = data_dir
        self._in_flight = in_flight

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Answer with all series."""
        answer: WSGIApplication
        try:
            body = exposed(bounded(totals(self._data_dir)), self._in_flight())
        except (TenantryError, OSError) as error:
            _logger.error("usage.unreadable", extra={"reason": str(error)})
            answer = UNREADABLE
            return answer(environ, start_response)
        headers = [("Content-Type", _CONTENT_TYPE), ("Content-Length", str(len(body)))]
        start_response("200 OK", [*headers, ("Cache-Control", "no-store")])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]


def bounded(used: Mapping[str, Counts]) -> dict[str, Counts]:
    """Return the first `SHOWN` tenants that have had a request, and the sum of the rest."""
    busy = {name: counts for name, counts in used.items() if counts.requests or counts.overdue}
    named = [(name, counts) for name, counts in busy.items() if name not in {REST, OVERFLOW}]
    shown = dict(named[:SHOWN])
    rest = [counts for name, counts in busy.items() if name not in shown]
    return shown | ({REST: sum_counts(rest)} if rest else {})


def exposed(used: Mapping[str, Counts], in_flight: Mapping[str, int]) -> bytes:
    """Return the text; who is in flight and has no series of its own is among the rest."""
    from prometheus_client import CollectorRegistry, generate_latest  # noqa: PLC0415 - 0.1 s
    from prometheus_client.registry import Collector  # noqa: PLC0415

    class Usage(Collector):
        def collect(self) -> "Iterator[CounterMetricFamily | GaugeMetricFamily]":
            return _families(used, in_flight)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Usage())
    return generate_latest(registry)


def _families(
    used: Mapping[str, Counts], in_flight: Mapping[str, int]
) -> "Iterator[CounterMetricFamily | GaugeMetricFamily]":
    from prometheus_client.core import (  # noqa: PLC0415 - see above
        CounterMetricFamily,
        GaugeMetricFamily,
    )

    for field, unit, name, meaning in _COUNTERS:
        counter = CounterMetricFamily(f"tenantry_{name}", meaning, labels=["tenant"])
        for tenant, counts in used.items():
            counter.add_metric([tenant], getattr(counts, field) * unit)
        yield counter
    last = GaugeMetricFamily(_LAST, "When the last request ended.", labels=["tenant"])
    for tenant, counts in used.items():
        last.add_metric([tenant], counts.used_ns * _SECONDS)
    yield last
    now = GaugeMetricFamily(_IN_FLIGHT, "Requests in flight.", labels=["tenant"])
    for tenant in used:
        if tenant != REST:
            now.add_metric([tenant], in_flight.get(tenant, 0))
    rest = sum(count for name, count in in_flight.items() if name == REST or name not in used)
    if rest or REST in used:
        now.add_metric([REST], rest)
    yield now
