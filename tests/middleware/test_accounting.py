"""Every request is counted once, whoever answers it and however it ends."""

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
def ask():
    for _ in range(3):
        db.session.execute(text("SELECT 1"))
    return "asked"

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
    """Return an app that reaches the mount of acme and answers in chunks, failing at the end."""

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
    """Send one request, take so many chunks (None: all), close; return what is counted."""
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


def test_a_request_is_measured() -> None:
    """Bytes that were read and sent, time on the clock and of the processor."""
    counts = measured(answering(b"one", b"four"), body=b"sent body")

    assert (1, 0, 0, 5, 7) == counts[:5]
    assert 0 < counts.processor_ns <= counts.wall_ns


@pytest.mark.parametrize(
    ("status", "errors"), [("200 OK", 0), ("404 NOT FOUND", 0), ("500 E", 1), ("503 U", 1)]
)
def test_an_answer_of_5xx_is_an_error(status: str, errors: int) -> None:
    """A 404 may be what the client wanted to know."""
    counts = measured(answering(status=status))

    assert (1, errors, 0) == counts[:3]


def test_a_cut_response_is_counted_once_with_what_was_sent() -> None:
    """The client left after the first of three chunks; the server closes twice."""
    counts = measured(answering(b"one", b"two", b"six"), take=1, closes=2)

    assert (1, 0, 0, 0, 3) == counts[:5]


def test_a_response_that_is_never_begun_is_counted() -> None:
    """The server closes without a chunk."""
    assert 1 == measured(answering(b"one"), take=0).requests


def test_a_failing_body_is_counted_once() -> None:
    """What it raises reaches the server; it is an error, whatever the status said."""
    assert (1, 1, 0, 0, 3) == measured(answering(b"one", fail=OSError), closes=2)[:5]


def test_an_app_that_raises_when_called_is_counted() -> None:
    """And the exception goes on."""
    counters = UsageCounters()

    def app(environ: dict[str, Any], _: object) -> Iterable[bytes]:
        environ[TENANT] = "acme"
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        Accounting(app, counters)(create_environ(), lambda *_: lambda _: None)

    assert (1, 1) == counters.counts()["acme"][:2]


def test_a_refusal_is_no_error() -> None:
    """What the host answers in the app's place is counted apart."""
    refusal = ProblemResponse(HTTPStatus.SERVICE_UNAVAILABLE, "Not now.")

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        environ[TENANT] = "acme"
        return refusal(environ, start_response)

    assert (1, 0, 1) == measured(app)[:3]


def test_a_504_is_an_error_wherever_it_was_made() -> None:
    """By the host in the app's place, or sent past the server while the app hangs."""

    def timed_out(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        environ[TENANT] = "acme"
        return TIMED_OUT(environ, start_response)

    def past(environ: dict[str, Any], _: object) -> Iterable[bytes]:
        environ[TENANT], environ[SENT_STATUS] = "acme", "504"
        return []

    assert [(1, 1, 0)] * 2 == [measured(app)[:3] for app in (timed_out, past)]


def test_a_request_for_no_tenant_is_nobodys() -> None:
    """The host's own pages are not counted."""
    counters = UsageCounters()

    run_wsgi_app(
        Accounting(ProblemResponse(HTTPStatus.NOT_FOUND, "No."), counters), create_environ()
    )

    assert {} == counters.counts()


@pytest.mark.parametrize("how", ["readline", "readlines", "iter"])
def test_however_a_body_is_read_it_is_counted(how: str) -> None:
    """Lines too."""

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        environ[TENANT] = "acme"
        stream = environ["wsgi.input"]
        b"".join(stream if how == "iter" else [getattr(stream, how)()] if how == "readline"
                 else stream.readlines())  # fmt: skip
        start_response("200 OK", [])
        return []

    assert (4 if how == "readline" else 7) == measured(app, body=b"one\nsix").bytes_in


def test_a_body_that_is_closed_by_another_thread_has_no_processor_time() -> None:
    """That thread's clock says nothing of this request."""
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
    """Return the name of an endpoint that asks its database three times."""
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
    """Served, refused by its mount (maintenance, a broken file) and by a layer around its app."""
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
    """Good and bad ones, of many rows and of no parameters, each once, with the time it took."""
    write_tenant("acme", BLUEPRINTS=[storing])
    host.load()

    for path in ("/acme/", "/acme/many", "/acme/wrong"):
        client.get(path).close()

    counts = host.usage.counts()["acme"]
    assert (3, 1, 7) == (counts.requests, counts.errors, counts.queries)
    assert 0 < counts.database_ns < counts.wall_ns


def test_an_instance_that_falls_asleep_is_counted(
    settings: HostSettings, write_tenant: Callable[..., Path]
) -> None:
    """Of two where one may be awake, the first is let go."""
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


def test_a_host_that_serves_has_a_file(
    host: Host, settings: HostSettings, write_tenant: Callable[..., Path]
) -> None:
    """One that only answers a command has none."""
    write_tenant("acme")
    folder = counters_folder(settings.data_dir)
    before = [*folder.glob("*")]

    host.start()
    contextvars.Context().run(Client(host).get, "/acme/").close()

    [reading] = read_counters(folder)
    assert ([], 1) == (before, reading.counts["acme"].requests)
