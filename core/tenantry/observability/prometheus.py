"""The page `/-/metrics`: usage of all processes of the host, in the Prometheus text format.

Only the operators' listener serves `/-/metrics`. Whichever worker responds, every number covers all
processes, including those that have ended. The number of series is limited: only tenants with
requests have series, and all tenants beyond `MAX_TENANTS` count as one tenant, `other`.
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
    from _typeshed.wsgi import StartResponse, WSGIEnvironment
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

MAX_TENANTS = 500
"""Maximum number of tenants with their own series (8,000 series in total). The first tenants with
traffic get these series. If a busier tenant got its own series later, the counters of `other` would
decrease, which Prometheus would take for a restart."""

OTHER = "other"
"""The name for all tenants without their own series, including a tenant named `other`."""

UNREADABLE = ProblemResponse(
    HTTPStatus.SERVICE_UNAVAILABLE,
    "The usage database cannot be read. The log has the reason.",
    retry_after_s=30,
)

_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = 1e-9
_COUNTERS = (
    ("requests", 1, "requests", "Requests that have ended, including refusals."),
    ("errors", 1, "errors", "5xx responses that are not refusals, and incomplete responses."),
    ("refusals", 1, "refusals", "Responses that the host sent instead of the app."),
    ("bytes_in", 1, "request_bytes", "Bytes of request bodies that were read."),
    ("bytes_out", 1, "response_bytes", "Bytes of response bodies."),
    ("wall_ns", _SECONDS, "request_seconds", "Time from a request's head to its last byte."),
    ("processor_ns", _SECONDS, "processor_seconds", "CPU time of the threads that ran requests."),
    ("database_ns", _SECONDS, "database_seconds", "Duration of database queries."),
    ("queries", 1, "queries", "Database queries."),
    ("build_ns", _SECONDS, "build_seconds", "Duration of builds of instances."),
    ("builds", 1, "builds", "Instances that were built."),
    ("sleeps", 1, "sleeps", "Instances that were evicted to free memory."),
    ("overdue", 1, "overdue_requests", "Requests that exceeded their deadline."),
    ("uncounted", 1, "uncounted_requests", "Requests that no rate limit counted."),
)
"""The `Counts` field, the unit, the name and the help text of each counter."""

_logger = logging.getLogger(__name__)


class MetricsPage:
    """The WSGI app that serves `/-/metrics`.

    Args:
        data_dir: the host's data folder.
        in_flight: returns the number of requests in flight per tenant, in all processes.
    """

    def __init__(self, data_dir: Path, in_flight: Callable[[], Mapping[str, int]] = dict) -> None:
        self._data_dir = data_dir
        self._in_flight = in_flight

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Respond with all series, or with 503 if the usage database cannot be read."""
        try:
            body = render_metrics(limit_tenants(totals(self._data_dir)), self._in_flight())
        except (TenantryError, OSError) as error:
            _logger.error("usage.unreadable", extra={"reason": str(error)})
            return UNREADABLE(environ, start_response)
        headers = [
            ("Content-Type", _CONTENT_TYPE),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
        ]
        start_response("200 OK", headers)
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]


def limit_tenants(used: Mapping[str, Counts]) -> dict[str, Counts]:
    """Return the counts of up to `MAX_TENANTS` used tenants, and the sum for all others."""
    busy = {name: counts for name, counts in used.items() if counts.requests or counts.overdue}
    named = [(name, counts) for name, counts in busy.items() if name not in {OTHER, OVERFLOW}]
    shown = dict(named[:MAX_TENANTS])
    rest = [counts for name, counts in busy.items() if name not in shown]
    return shown | ({OTHER: sum_counts(rest)} if rest else {})


def render_metrics(used: Mapping[str, Counts], in_flight: Mapping[str, int]) -> bytes:
    """Return the metrics as text; tenants without their own series count as `OTHER`."""
    from prometheus_client import CollectorRegistry, generate_latest  # noqa: PLC0415 - takes 0.1 s
    from prometheus_client.registry import Collector  # noqa: PLC0415

    class Usage(Collector):
        def collect(self) -> "Iterator[CounterMetricFamily | GaugeMetricFamily]":
            yield from _counters(used)
            yield from _gauges(used, in_flight)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Usage())
    return generate_latest(registry)


def _counters(used: Mapping[str, Counts]) -> "Iterator[CounterMetricFamily]":
    from prometheus_client.core import CounterMetricFamily  # noqa: PLC0415 - takes 0.1 s

    for field, unit, name, documentation in _COUNTERS:
        counter = CounterMetricFamily(f"tenantry_{name}", documentation, labels=["tenant"])
        for tenant, counts in used.items():
            counter.add_metric([tenant], getattr(counts, field) * unit)
        yield counter


def _gauges(
    used: Mapping[str, Counts], in_flight: Mapping[str, int]
) -> "Iterator[GaugeMetricFamily]":
    from prometheus_client.core import GaugeMetricFamily  # noqa: PLC0415 - takes 0.1 s

    last = GaugeMetricFamily(
        "tenantry_last_request_timestamp_seconds", "When the last request ended.", labels=["tenant"]
    )
    for tenant, counts in used.items():
        last.add_metric([tenant], counts.used_ns * _SECONDS)
    yield last
    current = GaugeMetricFamily(
        "tenantry_requests_in_flight", "Requests in flight.", labels=["tenant"]
    )
    for tenant in used:
        if tenant != OTHER:
            current.add_metric([tenant], in_flight.get(tenant, 0))
    rest = sum(count for name, count in in_flight.items() if name == OTHER or name not in used)
    if rest or OTHER in used:
        current.add_metric([OTHER], rest)
    yield current
