"""The access log has one line for each request that has ended."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import Client, create_environ

from log_lines import CollectedLines
from servers import CONFIG_FILE, Server, wait_until
from tenantry.host import Host
from tenantry.http.environ import CLIENT, REQUEST_ID
from tenantry.http.problem import ProblemResponse
from tenantry.http.request_record import RequestRecord
from tenantry.observability.access_log import AccessLog
from tenantry.settings import HostSettings
from tenantry.tenants.clients import hash_client_key

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"

LOGGING_ENDPOINT = """
import logging
import threading
from contextvars import copy_context
from flask import Blueprint, request
from tenantry.database.session import db
from sqlalchemy import text

shop_bp = Blueprint("shop", __name__)

@shop_bp.route("/log", methods=["GET", "POST"])
def log():
    db.session.execute(text("SELECT 1"))
    body = request.get_data()
    request.environ["REMOTE_ADDR"] = "198.51.100.1"
    write = lambda: logging.getLogger("some.library").warning("library.logged")
    thread = threading.Thread(target=copy_context().run, args=(write,))
    thread.start()
    thread.join()
    return body
"""

FROM = {"REMOTE_ADDR": "203.0.113.7"}

Lines = list[dict[str, Any]]


@pytest.fixture(name="shop")
def _shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Return the name of an endpoint that queries its database and logs from a thread."""
    folder = tmp_path / "corp" / "shop"
    folder.mkdir(parents=True)
    for package in (folder.parent, folder):
        (package / "__init__.py").touch()
    (folder / "blueprint.py").write_text(LOGGING_ENDPOINT)
    monkeypatch.syspath_prepend(tmp_path)
    yield "corp.shop"
    for name in list(sys.modules):
        if name.partition(".")[0] == "corp":
            del sys.modules[name]


@pytest.fixture(name="lines")
def _lines() -> list[str]:
    """Return the list that receives the log lines of the fixture `client`."""
    return []


@pytest.fixture(name="client")
def _client(
    settings: HostSettings, write_tenant: Callable[..., Path], shop: str, lines: list[str]
) -> Iterator[Client]:
    """Return a client of a host with three tenants: open, with client keys, and in maintenance."""
    write_tenant("acme", BLUEPRINTS=["landing", shop])
    write_tenant("closed", CLIENTS={"mobile": hash_client_key("the-key")})
    write_tenant("globex", MAINTENANCE=True)
    host = Host(settings, AccessLog("json", CollectedLines(lines)))
    host.load()
    yield Client(host)
    host.close()


def parsed(lines: list[str]) -> Lines:
    """Return the fields of each log line. Every line must be one line of JSON."""
    assert all(line.endswith("}\n") and line.count("\n") == 1 for line in lines)
    return [json.loads(line) for line in lines]


def test_a_line_has_the_facts_of_its_request(client: Client, lines: list[str]) -> None:
    """An access log line has the tenant, request ID, status, bytes, times and trace ID."""
    headers = {"X-Request-ID": "id-1", "traceparent": PARENT}

    client.post(
        "/acme/log?token=hidden", data=b"12345", headers=headers, environ_overrides=FROM
    ).close()

    [line] = parsed(lines)
    times = [line.pop(key) for key in ("wall_ms", "processor_ms", "database_ms")]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", line.pop("timestamp"))
    assert {
        "event": "request.ended", "level": "info", "logger": "tenantry.request",
        "tenant": "acme", "request_id": "id-1", "trace_id": TRACE, "endpoint": "shop.log",
        "address": "203.0.113.7", "method": "POST", "path": "/acme/log", "status": 200,
        "bytes_in": 5, "bytes_out": 5, "queries": 1,
    } == line  # fmt: skip
    assert times[0] > times[2] > 0


def test_every_kind_of_response_has_a_line(client: Client, lines: list[str]) -> None:
    """Every response of a tenant has an access log line, even a refusal.

    Responses of the host's own pages have no access log line.
    """
    for path in ("/acme/", "/acme/no", "/closed/", "/globex/", "/nobody/", "/-/livez", "/-/no"):
        client.get(path).close()
    client.get("/acme/", headers={"Host": "a b"}).close()

    assert [
        ("acme", 201, "landing.landingpage"), ("acme", 404, ""), ("closed", 401, ""),
        ("globex", 503, ""), ("", 404, ""), ("", 404, ""), ("", 400, ""),
    ] == [(line["tenant"], line["status"], line["endpoint"]) for line in parsed(lines)]  # fmt: skip


def test_a_line_has_the_name_of_a_client_but_not_its_key(client: Client, lines: list[str]) -> None:
    """The access log names the client, but contains no credentials and no query string."""
    headers = {"X-API-Key": "the-key", "Cookie": "a=the-cookie", "Referer": "http://the-referer/"}

    client.get("/closed/?key=the-query", headers=headers).close()

    assert "mobile" == parsed(lines)[0]["client"]
    assert not [secret for secret in ("the-", "query") if secret in lines[0]]


def test_a_request_that_the_server_refuses_has_a_line(client: Client, lines: list[str]) -> None:
    """A request that the server refuses before it runs has the same facts as any other refusal."""
    problem = ProblemResponse(HTTPStatus.SERVICE_UNAVAILABLE, "Not now.")
    environ = create_environ("/globex/a?token=hidden") | {"REMOTE_ADDR": "192.0.2.1"}
    client.get(
        "/globex/a", headers={"X-Request-ID": "id-1"}, environ_base={"REMOTE_ADDR": "192.0.2.1"}
    ).close()
    host = client.application
    environ["HTTP_X_REQUEST_ID"] = "id-1"
    host.admission.route(environ, None)

    host.admission.note_refusal(environ, "globex", problem, 7)

    usual, line = parsed(lines)
    for one in (usual, line):
        for key in ("timestamp", "wall_ms", "processor_ms"):
            one.pop(key)
    assert usual | {"bytes_out": 7} == line


def test_a_malformed_request_has_a_line(client: Client, lines: list[str]) -> None:
    """A request that the server cannot parse has a line with its ID and its status."""
    problem = ProblemResponse(HTTPStatus.BAD_REQUEST, "Malformed.")

    client.application.admission.note_refusal(
        {"REQUEST_METHOD": "", REQUEST_ID: "id-1"}, "", problem, 7
    )

    [line] = parsed(lines)
    assert ("", "id-1", "", "", 400, 7) == tuple(
        line[key] for key in ("tenant", "request_id", "method", "path", "status", "bytes_out")
    )


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_line_cannot_be_forged(settings: HostSettings, lines: list[str], form: Any) -> None:
    """Control characters in a path or a method are escaped in the access log.

    A client therefore cannot forge a log line.
    """
    host = Host(settings, AccessLog(form, CollectedLines(lines)))
    host.load()
    environ = {
        "PATH_INFO": '/a\n\x1b[2J" status=200\xc3\xa9\xe2\x80\xa8',
        "REQUEST_METHOD": "X\r\n",
    }

    Client(host).open("/", environ_overrides=environ).close()

    [line] = lines
    assert (True, 1) == (line.isascii() and line[:-1].isprintable(), line.count("\n"))
    assert r"/a\n\u001b[2J\" status=200\u00e9\u2028" in line
    host.close()


@pytest.mark.parametrize("form", ["json", "console"])
@pytest.mark.parametrize("part", ["a", "\n", "\xf0\x9f\x90\x88", "\\"])
def test_a_line_fits_in_one_write(
    settings: HostSettings, lines: list[str], form: Any, part: str
) -> None:
    """A long path is truncated, so that a log line fits into 4 KiB.

    A pipe writes up to 4 KiB in one step.
    """
    host = Host(settings, AccessLog(form, CollectedLines(lines)))
    host.load()

    environ = {"PATH_INFO": "/" + part * 4000, CLIENT: "oidc:" + "\x7f" * 4000}
    Client(host).open("/", environ_overrides=environ).close()

    assert [True] == [len(line) < 4096 and r"\u2026" in line for line in lines]
    host.close()


def test_a_console_line_has_the_form_of_all_others(
    settings: HostSettings, lines: list[str]
) -> None:
    """In the console format, an access log line looks like all other log lines."""
    host = Host(settings, AccessLog("console", CollectedLines(lines)))
    host.load()

    Client(host).get("/nobody/", headers={"X-Request-ID": "id-1", "traceparent": PARENT}).close()

    assert re.fullmatch(
        r"\S+Z \[info     \] request\.ended {18}\[tenantry\.request\] method=GET path=/nobody/ "
        r"status=404 tenant= address= endpoint= request_id=id-1 bytes_in=0 bytes_out=\d+ "
        rf"wall_ms=\S+ processor_ms=\S+ database_ms=0\.000 queries=0 trace_id={TRACE}\n",
        lines[0],
    )
    host.close()


def test_the_address_is_the_one_before_the_app_runs(client: Client, lines: list[str]) -> None:
    """An app that changes `REMOTE_ADDR` does not change the logged address."""
    client.get("/acme/log", environ_overrides=FROM).close()

    assert "203.0.113.7" == parsed(lines)[0]["address"]


def test_a_line_has_the_address_that_a_trusted_proxy_names(
    settings: HostSettings, write_tenant: Callable[..., Path], lines: list[str]
) -> None:
    """Behind a trusted proxy, the address is the client's, not the proxy's."""
    write_tenant("acme")
    host = Host(
        settings.model_copy(update={"trusted_proxies": 1}),
        AccessLog("json", CollectedLines(lines)),
    )
    host.load()
    environ = {"REMOTE_ADDR": "192.0.2.1", "HTTP_X_FORWARDED_FOR": "forged, 2001:db8::7"}

    Client(host).get("/acme/", environ_overrides=environ).close()
    host.close()

    assert "2001:db8::7" == parsed(lines)[0]["address"]


def test_a_line_has_the_time_of_the_end_of_its_request(
    settings: HostSettings, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line that waits for the writer keeps the time at which the request ended."""
    del settings
    writer = CollectedLines(lines)
    monkeypatch.setattr(writer, "wake", lambda: None)
    log = AccessLog("json", writer)
    moments = iter([1_700_000_000_000_001_000, 1_700_000_001_500_000_000])
    monkeypatch.setattr("tenantry.observability.access_log.time_ns", lambda: next(moments))

    for number in range(2):
        record = RequestRecord()
        record.request_id = str(number)
        log(record)
    writer._write_queued()

    assert [("0", "2023-11-14T22:13:20.000001Z"), ("1", "2023-11-14T22:13:21.500000Z")] == [
        (line["request_id"], line["timestamp"]) for line in parsed(lines)
    ]


@pytest.mark.live
def test_all_lines_of_a_request_name_it(
    start_server: Callable[..., Server], write_tenant: Callable[..., Path], shop: str
) -> None:
    """Log lines of the app, even from a thread, have the request ID of the access log line."""
    write_tenant("acme", BLUEPRINTS=[shop])
    command = ["gunicorn", "-c", CONFIG_FILE, "--bind", "{bind}", "--workers", "1"]
    server = start_server(command, TENANTRY_LOG_FORMAT="json")
    for number in range(5):
        server.get("/acme/log", {"X-Request-ID": f"id-{number}", "traceparent": PARENT})

    def found() -> Lines:
        lines = [json.loads(line) for line in server.log.read_text().splitlines()]
        return [line for line in lines if line["event"] in ("library.logged", "request.ended")]

    wait_until(lambda: len(found()) == 10)
    logged = [
        (line["event"], line["tenant"], line["request_id"], line["trace_id"]) for line in found()
    ]
    assert [
        (event, "acme", f"id-{number}", TRACE)
        for event in ("library.logged", "request.ended")
        for number in range(5)
    ] == sorted(logged)


@pytest.mark.live
def test_a_higher_log_level_turns_the_access_log_off(
    start_server: Callable[..., Server], write_tenant: Callable[..., Path]
) -> None:
    """With `TENANTRY_LOG_LEVEL=warning`, the host writes no access log."""
    write_tenant("acme")
    command = ["gunicorn", "-c", CONFIG_FILE, "--bind", "{bind}", "--workers", "1"]
    server = start_server(command, TENANTRY_LOG_LEVEL="warning")

    server.get("/acme/")
    server.stop()

    assert "request.ended" not in server.log.read_text()


@pytest.mark.live
def test_a_worker_that_stops_writes_the_lines_of_all_requests(
    start_server: Callable[..., Server], write_tenant: Callable[..., Path]
) -> None:
    """A server that is stopped right after its last response loses no line."""
    write_tenant("acme")
    command = ["gunicorn", "-c", CONFIG_FILE, "--bind", "{bind}", "--workers", "2"]
    server = start_server(command)

    for _ in range(20):
        server.get("/acme/")
    server.stop()

    assert 20 == server.log.read_text().count("request.ended")
