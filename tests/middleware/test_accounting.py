"""Every request is counted once, whichever part answers and however the response ends."""

import contextvars
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from http import HTTPStatus
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import Client, create_environ, run_wsgi_app

from tenantry.host import Host
from tenantry.http.environ import SENT_STATUS, TENANT
from tenantry.http.problem import TIMED_OUT, ProblemResponse
from tenantry.middleware.accounting import Accounting
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
    """Return an app of acme that answers in chunks and raises `fail` after the last chunk."""

    def app(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
        environ[TENANT] = "acme"
        environ["wsgi.input"].read(5)
        start_response(status, [])
        return body()

    def body() -> Iterator[bytes]:
        yield from chunks
        if fail is not None:
            raise fail

    return app


def measured(app: App, *, body: bytes = b"", take: int | None = None, closes: int = 1) -> Counts:
    """Send a request, read `take` chunks (None: all), close the response, and return the counts."""
    counters = UsageCounters()
    environ = create_environ(method="POST", input_stream=BytesIO(body))
    environ["CONTENT_LENGTH"] = str(len(body))
    response = Accounting(app, counters)(environ, lambda *_: lambda _: None)
    chunks = iter(response)
    try:
        while take is None or take > 0:
            next(chunks)
            take = None if take is None else take - 1
    except Exception:  # noqa: BLE001 - StopIteration, or what the app raised
        pass
    for _ in range(closes):
        response.close()  # type: ignore[attr-defined]
    return counters.counts().get("acme", Counts())


def test_bytes_and_times_are_counted() -> None:
    """Counts include the bytes read and sent, wall time and processor time."""
    counts = measured(answering(b"one", b"four"), body=b"sent body")

    assert (1, 0, 0, 5, 7) == counts[:5]
    assert 0 < counts.processor_ns <= counts.wall_ns


@pytest.mark.parametrize(
    ("status", "errors"), [("200 OK", 0), ("404 NOT FOUND", 0), ("500 E", 1), ("503 U", 1)]
)
def test_only_a_5xx_is_an_error(status: str, errors: int) -> None:
    """A 404 does not count as an error, because it can be what the client wanted to know."""
    counts = measured(answering(status=status))

    assert (1, errors, 0) == counts[:3]


def test_a_cut_response_is_counted_once_with_what_was_sent() -> None:
    """A client that leaves after one chunk counts once with that chunk, though closed twice."""
    counts = measured(answering(b"one", b"two", b"six"), take=1, closes=2)

    assert (1, 0, 0, 0, 3) == counts[:5]


def test_an_unread_response_is_counted() -> None:
    """A request counts although the server closes the response without reading a chunk."""
    assert 1 == measured(answering(b"one"), take=0).requests


def test_a_failing_body_is_counted_once() -> None:
    """A response body that raises counts as one error, whatever the status."""
    assert (1, 1, 0, 0, 3) == measured(answering(b"one", fail=OSError), closes=2)[:5]


def test_an_app_that_raises_is_counted() -> None:
    """An exception of the app counts as one error and is passed on."""
    counters = UsageCounters()

    def app(environ: dict[str, Any], _: object) -> Iterable[bytes]:
        environ[TENANT] = "acme"
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        Accounting(app, counters)(create_environ(), lambda *_: lambda _: None)

    assert (1, 1) == counters.counts()["acme"][:2]


def test_a_refusal_is_not_an_error() -> None:
    """A refusal by the host is counted separately from errors of the app."""
    refusal = ProblemResponse(HTTPStatus.SERVICE_UNAVAILABLE, "Not now.")

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        environ[TENANT] = "acme"
        return refusal(environ, start_response)

    assert (1, 0, 1) == measured(app)[:3]


def test_a_504_is_always_an_error() -> None:
    """A 504 counts as an error, whether sent after the app's return or while the app hangs."""

    def timed_out(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        environ[TENANT] = "acme"
        return TIMED_OUT(environ, start_response)

    def sent_directly(environ: dict[str, Any], _: object) -> Iterable[bytes]:
        environ[TENANT], environ[SENT_STATUS] = "acme", "504"
        return []

    assert [(1, 1, 0)] * 2 == [measured(app)[:3] for app in (timed_out, sent_directly)]


def test_a_request_for_no_tenant_is_not_counted() -> None:
    """Requests for the host's own pages are not counted."""
    counters = UsageCounters()

    run_wsgi_app(
        Accounting(ProblemResponse(HTTPStatus.NOT_FOUND, "No."), counters), create_environ()
    )

    assert {} == counters.counts()


@pytest.mark.parametrize("how", ["readline", "readlines", "iter"])
def test_body_bytes_are_counted_however_they_are_read(how: str) -> None:
    """`readline`, `readlines` and iteration count their bytes."""

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        environ[TENANT] = "acme"
        stream = environ["wsgi.input"]
        b"".join(stream if how == "iter" else [getattr(stream, how)()] if how == "readline"
                 else stream.readlines())  # fmt: skip
        start_response("200 OK", [])
        return []

    assert (4 if how == "readline" else 7) == measured(app, body=b"one\nsix").bytes_in


def test_closing_on_another_thread_counts_no_processor_time() -> None:
    """If another thread closes the response, that thread's CPU time does not count."""
    counters = UsageCounters()
    response = Accounting(answering(b"x"), counters)(create_environ(), lambda *_: lambda _: None)
    b"".join(response)
    thread = threading.Thread(target=response.close)  # type: ignore[attr-defined]
    thread.start()
    thread.join()

    assert (1, 0) == counters.counts()["acme"][:7:6]


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
