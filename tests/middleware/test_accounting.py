"""Every request is counted once, whichever part answers and however the response ends."""

import contextvars
import logging
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from http import HTTPStatus
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from werkzeug.test import Client, create_environ, run_wsgi_app

from tenantry.host import Host
from tenantry.http.environ import REQUEST_ID, REQUEST_RECORD, TARGET, TENANT
from tenantry.http.problem import TIMED_OUT, ProblemResponse
from tenantry.http.request_record import RequestRecord
from tenantry.middleware import accounting
from tenantry.middleware.accounting import Accounting
from tenantry.middleware.containment import Containment
from tenantry.middleware.fair_share import FairShare
from tenantry.middleware.in_flight import RequestLimits, RequestsInFlight
from tenantry.observability.usage_counters import (
    Counts,
    UsageCounters,
    counters_folder,
    read_counters,
)
from tenantry.settings import HostSettings

App = Callable[..., Iterable[bytes]]

STORING = """
import threading
from contextvars import copy_context
from flask import Blueprint
from sqlalchemy import text
from tenantry.database.session import db

storing_bp = Blueprint("storing", __name__)

@storing_bp.get("/")
def select():
    for _ in range(3):
        db.session.execute(text("SELECT 1"))
    return "done"

@storing_bp.get("/many")
def many():
    db.session.execute(text("CREATE TEMPORARY TABLE t (x INTEGER)"))
    db.session.execute(text("INSERT INTO t VALUES (:x)"), [{"x": 1}, {"x": 2}])
    connection = db.session.connection()
    count = connection.exec_driver_sql(
        "SELECT count(*) FROM t", execution_options={"no_parameters": True}
    )
    return str(count.scalar_one())

@storing_bp.get("/wrong")
def wrong():
    db.session.execute(text("SELECT nothing"))
"""


def answering(
    *chunks: bytes, status: str = "200 OK", fail: type[BaseException] | None = None
) -> App:
    """Return an app that answers in chunks and raises `fail` after the last chunk."""

    def app(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
        environ["wsgi.input"].read(5)
        start_response(status, [])
        return body()

    def body() -> Iterator[bytes]:
        yield from chunks
        if fail is not None:
            raise fail

    return app


UNLIMITED = RequestLimits(None, 30.0, is_answering=False)


class Target:
    """An app with the limits of a tenant, which replaces a mount."""

    def __init__(self, app: App, limits: RequestLimits = UNLIMITED) -> None:
        self.limits = limits
        self._app = app

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        """Let the app answer."""
        return self._app(environ, start_response)


class Accounted:
    """Accounting with its own counters, whose requests all belong to one tenant.

    Args:
        app: the app that answers.
        tenant: the tenant; empty for the host's own pages.
        threads: the number of requests that run at once; None for any number.
        limits: the limits of the tenant's requests.
    """

    def __init__(
        self,
        app: App,
        tenant: str = "acme",
        *,
        threads: int | None = None,
        limits: RequestLimits = UNLIMITED,
    ) -> None:
        self.counters = UsageCounters()
        self.in_flight = RequestsInFlight(FairShare(threads))
        self.ended: list[RequestRecord] = []
        self.accounting = Accounting(self.in_flight, self.counters, self.ended.append)
        self._app = Target(app, limits)
        self._tenant = tenant

    def environ(self, **keys: Any) -> dict[str, Any]:
        """Return the environ of a request after its routing."""
        routed = {TARGET: self._app, REQUEST_ID: "id-1"}
        if self._tenant:
            routed[TENANT] = self._tenant
        return create_environ(method="POST") | routed | keys

    def __call__(self, environ: Any = None, start_response: Any = None) -> Any:
        """Answer a request like a server that does not use admission."""
        return self.accounting(environ or self.environ(), start_response or _started)

    @property
    def counts(self) -> Counts:
        """The counts of acme."""
        return self.counters.counts().get("acme", Counts())


def _started(*_: object) -> Callable[[bytes], object]:
    return lambda _: None


def contained(app: App) -> App:
    """Return an app inside the layer that counts the bytes of its response."""
    return Containment(app, logging.getLogger("tenant.acme"))


def measured(app: App, *, body: bytes = b"", take: int | None = None, closes: int = 1) -> Counts:
    """Send a request, read `take` chunks (None: all), close the response, and return the counts."""
    accounted = Accounted(app)
    response = accounted(
        accounted.environ(CONTENT_LENGTH=str(len(body)), **{"wsgi.input": BytesIO(body)})
    )
    chunks = iter(response)
    try:
        while take is None or take > 0:
            next(chunks)
            take = None if take is None else take - 1
    except Exception:  # noqa: BLE001 - StopIteration, or what the app raised
        pass
    for _ in range(closes):
        response.close()
    assert {} == accounted.in_flight.counts()
    return accounted.counts


def test_bytes_and_times_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts include the bytes read and sent, wall time and processor time."""
    clocks = SimpleNamespace(
        monotonic_ns=iter((1_000, 1_070)).__next__, thread_time_ns=iter((200, 230)).__next__
    )
    monkeypatch.setattr(accounting, "time", clocks)

    counts = measured(contained(answering(b"one", b"four")), body=b"sent body")

    assert (1, 0, 0, 5, 7, 70, 30) == counts[:7]


@pytest.mark.parametrize(
    ("status", "errors"), [("200 OK", 0), ("404 NOT FOUND", 0), ("500 E", 1), ("503 U", 1)]
)
def test_only_a_5xx_is_an_error(status: str, errors: int) -> None:
    """A 404 does not count as an error, because it can be what the client wanted to know."""
    counts = measured(answering(status=status))

    assert (1, errors, 0) == counts[:3]


def test_a_cut_response_is_counted_once_with_what_was_sent() -> None:
    """A response cut after one chunk counts once, with that chunk, even if closed twice."""
    counts = measured(contained(answering(b"one", b"two", b"six")), take=1, closes=2)

    assert (1, 0, 0, 0, 3) == counts[:5]


def test_an_unread_response_is_counted() -> None:
    """A request counts although the server closes the response without reading a chunk."""
    assert 1 == measured(answering(b"one"), take=0).requests


def test_a_failing_body_is_counted_once() -> None:
    """A response body that raises counts as one error, whatever the status."""
    counts = measured(contained(answering(b"one", fail=OSError)), closes=2)

    assert (1, 1, 0, 0, 3) == counts[:5]


def test_an_app_that_raises_is_counted() -> None:
    """An exception of the app counts as one error and is passed on."""

    def app(*_: object) -> Iterable[bytes]:
        raise SystemExit(3)

    accounted = Accounted(app)
    with pytest.raises(SystemExit):
        accounted()

    assert ((1, 1), {}) == (accounted.counts[:2], accounted.in_flight.counts())


def test_a_refusal_is_not_an_error() -> None:
    """A refusal by the host is counted separately from errors of the app."""
    refusal = ProblemResponse(HTTPStatus.SERVICE_UNAVAILABLE, "Not now.")

    assert (1, 0, 1) == measured(refusal)[:3]


def test_a_504_is_always_an_error() -> None:
    """A 504 counts as an error, whether the app sends it or the watchdog while the app hangs."""

    def answered_by_watchdog(environ: dict[str, Any], _: object) -> Iterable[bytes]:
        environ[REQUEST_RECORD].status = 504
        return []

    assert [(1, 1, 0)] * 2 == [measured(app)[:3] for app in (TIMED_OUT, answered_by_watchdog)]


def test_a_request_for_no_tenant_is_logged_but_not_counted() -> None:
    """Requests for the host's own pages have a record, but count for no tenant."""
    accounted = Accounted(ProblemResponse(HTTPStatus.NOT_FOUND, "No."), tenant="")

    run_wsgi_app(accounted, accounted.environ(), buffered=True)

    assert {} == accounted.counters.counts()
    assert [("", 404)] == [(record.tenant, record.status) for record in accounted.ended]


# -- the request ID ---------------------------------------------------------------------------


def test_a_response_has_the_id_of_its_request() -> None:
    """The host's ID replaces any ID that the app sends, however the app writes the name."""

    def app(_: object, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [("x-request-id", "mine"), ("X-Request-ID", "mine"), ("A", "b")])
        return []

    accounted = Accounted(app)
    _, _, headers = run_wsgi_app(accounted, accounted.environ(), buffered=True)

    assert [("X-Request-ID", "id-1"), ("A", "b")] == list(headers)


def test_exc_info_is_passed_to_the_server() -> None:
    """`exc_info` reaches the server, which knows whether headers can be replaced."""
    error = ValueError("late")
    started: list[Any] = []

    def app(_: object, start_response: Any) -> Iterable[bytes]:
        start_response("500 Oh", [], (ValueError, error, None))
        return []

    Accounted(app)(None, lambda *head: started.extend(head)).close()

    assert (started[0], started[2]) == ("500 Oh", (ValueError, error, None))


# -- the record ---------------------------------------------------------------------------------


def test_a_record_has_the_facts_of_its_request() -> None:
    """The record of an ended request has the path before the routing, and the client's address."""

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        environ["SCRIPT_NAME"], environ["PATH_INFO"] = "/elsewhere", "/"
        start_response("200 OK", [])
        return [b"four"]

    accounted = Accounted(app)
    accounted(
        accounted.environ(SCRIPT_NAME="/acme", PATH_INFO="/x", REMOTE_ADDR="192.0.2.1")
    ).close()

    [record] = accounted.ended
    assert ("acme", "id-1", "POST", "/acme/x", "192.0.2.1", 200, 4) == (
        record.tenant, record.request_id, record.method, record.path, record.address,
        record.status, record.bytes_out,
    )  # fmt: skip
    assert (None, None, None) == (record.environ, record.connection, record.input)


def test_an_admitted_request_is_not_admitted_again() -> None:
    """A record that the server has opened is the record of the request up to its end."""
    accounted = Accounted(answering(b"x"), threads=1)
    environ = accounted.environ()

    opened = accounted.accounting.enter(environ)
    response = accounted(environ)
    during = accounted.in_flight.counts()
    response.close()

    assert ({"acme": 1}, {}) == (during, accounted.in_flight.counts())
    assert [opened] == accounted.ended


def test_a_request_over_the_share_gets_503_and_counts_as_refused() -> None:
    """Under another server, accounting itself refuses a request, without a call of the app."""
    accounted = Accounted(answering(b"x"), threads=4)
    held = [accounted(), accounted()]

    refused, status, headers = run_wsgi_app(accounted, accounted.environ(), buffered=True)
    held.pop().close()
    again = run_wsgi_app(accounted, accounted.environ(), buffered=True)[1]

    assert ("503 SERVICE UNAVAILABLE", "200 OK") == (status.upper(), again)
    assert ("application/problem+json", "1") == (headers["Content-Type"], headers["Retry-After"])
    assert b"requests in progress" in b"".join(refused)
    held.pop().close()
    assert (4, 0, 1) == accounted.counts[:3]
    assert {} == accounted.in_flight.counts()


def test_the_trace_of_a_request_is_read_at_its_start() -> None:
    """The record has the client's trace, and a malformed header reaches no app."""
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    accounted = Accounted(answering())
    environs = [accounted.environ(HTTP_TRACEPARENT=value) for value in (parent, "nonsense")]

    records = [accounted.accounting.enter(environ) for environ in environs]

    assert [parent, ""] == [record.traceparent for record in records if record is not None]
    assert [True, False] == ["HTTP_TRACEPARENT" in environ for environ in environs]


def test_a_refusal_of_the_server_is_counted_and_logged() -> None:
    """A request that the server refuses before it runs is counted, with the bytes of the answer."""
    problem = ProblemResponse(HTTPStatus.TOO_MANY_REQUESTS, "Too many.")
    accounted = Accounted(answering())

    accounted.accounting.note_refusal(accounted.environ(PATH_INFO="/x"), problem, 100)
    accounted.accounting.note_refusal({"REQUEST_METHOD": "", REQUEST_ID: "id-2"}, problem, 7)

    assert (1, 0, 1, 0, 100) == accounted.counts[:5]
    assert [("acme", "id-1", "/x", 429, 100), ("", "id-2", "", 429, 7)] == [
        (one.tenant, one.request_id, one.path, one.status, one.bytes_out) for one in accounted.ended
    ]


def test_an_answer_after_a_504_is_discarded() -> None:
    """Once the watchdog has answered, the app's response ends with a connection error."""
    limits = RequestLimits(None, 5.0, is_answering=True)
    accounted = Accounted(answering(b"late"), limits=limits)
    environ = accounted.environ()
    record = accounted.accounting.enter(environ)
    assert record is not None
    assert record.claim_answer("watchdog")

    with pytest.raises(ConnectionResetError):
        accounted(environ)

    assert ({}, 1) == (accounted.in_flight.counts(), len(accounted.ended))


@pytest.mark.parametrize("how", ["readline", "readlines", "iter"])
def test_body_bytes_are_counted_however_they_are_read(how: str) -> None:
    """`readline`, `readlines` and iteration count their bytes."""

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        stream = environ["wsgi.input"]
        b"".join(stream if how == "iter" else [getattr(stream, how)()] if how == "readline"
                 else stream.readlines())  # fmt: skip
        start_response("200 OK", [])
        return []

    assert (4 if how == "readline" else 7) == measured(app, body=b"one\nsix").bytes_in


def test_closing_on_another_thread_counts_no_processor_time() -> None:
    """If another thread closes the response, that thread's CPU time does not count."""
    accounted = Accounted(answering(b"x"))
    response = accounted()
    b"".join(response)
    thread = threading.Thread(target=response.close)
    thread.start()
    thread.join()

    assert (1, 0) == accounted.counts[:7:6]


# -- in the host --------------------------------------------------------------------------------


@pytest.fixture(name="storing")
def _storing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Return the name of an endpoint that queries its database."""
    folder = tmp_path / "corp" / "storing"
    folder.mkdir(parents=True)
    for package in (folder.parent, folder):
        (package / "__init__.py").touch()
    (folder / "blueprint.py").write_text(STORING)
    monkeypatch.syspath_prepend(tmp_path)
    yield "corp.storing"
    for name in list(sys.modules):
        if name.partition(".")[0] == "corp":
            del sys.modules[name]


def test_the_host_counts_every_kind_of_answer(
    host: Host, client: Client, write_tenant: Callable[..., Path]
) -> None:
    """Served requests and refusals by mounts and layers are counted for their tenant."""
    write_tenant("acme")
    write_tenant("broken", "x = = 1\n")
    write_tenant("closed", CLIENTS={"mobile": f"sha256:{0:064}"})
    write_tenant("globex", MAINTENANCE=True)
    host.load()

    for path in ("/acme/", "/acme/nothing", "/broken/", "/closed/", "/globex/", "/nobody/"):
        client.get(path).close()

    counts = host.usage.counts()
    assert {
        "acme": (2, 0, 0), "broken": (1, 0, 1), "closed": (1, 0, 1), "globex": (1, 0, 1),
    } == {name: each[:3] for name, each in counts.items()}  # fmt: skip
    assert {"acme": 1, "closed": 1} == {n: each.builds for n, each in counts.items() if each.builds}
    assert 0 < counts["acme"].build_ns


def test_queries_count_for_their_tenant(
    host: Host, client: Client, write_tenant: Callable[..., Path], storing: str
) -> None:
    """Each query, including a failed query, counts once for the tenant, with the query's time."""
    write_tenant("acme", BLUEPRINTS=[storing])
    host.load()

    for path in ("/acme/", "/acme/many", "/acme/wrong"):
        client.get(path).close()

    counts = host.usage.counts()["acme"]
    assert (3, 1, 7) == (counts.requests, counts.errors, counts.queries)
    assert 0 < counts.database_ns < counts.wall_ns


def test_an_eviction_is_counted(settings: HostSettings, write_tenant: Callable[..., Path]) -> None:
    """If one instance may be active, the second tenant's request evicts the first one."""
    write_tenant("acme")
    write_tenant("globex")
    host = Host(settings.model_copy(update={"max_active": 1}))
    host.follower.on_evicted = partial(host.usage.add, sleeps=1)
    host.load()
    for name in ("acme", "globex"):
        Client(host).get(f"/{name}/").close()

    host.follower._evict()

    assert {"acme": 1, "globex": 0} == {
        name: counts.sleeps for name, counts in host.usage.counts().items()
    }
    host.close()


def test_a_serving_host_has_a_counters_file(
    host: Host, settings: HostSettings, write_tenant: Callable[..., Path]
) -> None:
    """A host that only runs a command writes no counters file."""
    write_tenant("acme")
    folder = counters_folder(settings.data_dir)
    before = [*folder.glob("*")]

    host.start()
    contextvars.Context().run(Client(host).get, "/acme/").close()

    [reading] = read_counters(folder)
    assert ([], 1) == (before, reading.counts["acme"].requests)
