"""A host in the test process answers requests for all its tenants."""

import gc
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from werkzeug.test import Client

from servers import DEADLINE_S, wait_until
from tenantry.app.process_resources import ProcessResources
from tenantry.host import Host, create_host
from tenantry.observability.logging import configure_logging
from tenantry.observability.scoreboard import Row, Scoreboard
from tenantry.settings import HostSettings
from tenantry.tenants.model import Tenant

WriteTenant = Callable[..., Path]
Logged = Callable[[], list[dict[str, Any]]]

FAULTY = """
import logging
from flask import Blueprint, Response, request

faulty_bp = Blueprint("faulty", __name__)

@faulty_bp.get("/fail")
def fail():
    raise ValueError("the reason")

@faulty_bp.get("/exit")
def leave():
    raise SystemExit(3)

@faulty_bp.get("/stream")
def stream():
    def body():
        logging.getLogger("some.library").warning("library.logged")
        yield "one"
    return Response(body())

@faulty_bp.post("/size")
def size():
    return str(len(request.get_data()))
"""


@pytest.fixture(name="faulty")
def _faulty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Return the name of an endpoint with views that fail."""
    folder = tmp_path / "corp" / "faulty"
    folder.mkdir(parents=True)
    for package in (folder.parent, folder):
        (package / "__init__.py").touch()
    (folder / "blueprint.py").write_text(FAULTY)
    monkeypatch.syspath_prepend(tmp_path)
    yield "corp.faulty"
    for name in list(sys.modules):
        if name.partition(".")[0] == "corp":
            del sys.modules[name]


@pytest.fixture(name="logged")
def _logged(capsys: pytest.CaptureFixture[str]) -> Iterator[Logged]:
    """Return a function that returns the JSON lines on stderr.

    The fixture restores logging after the test.
    """
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level

    def logged() -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
        return [line for line in lines if line["event"] != "tenant.added"]

    yield logged
    root.handlers[:] = handlers
    root.setLevel(level)


# -- prefixes -----------------------------------------------------------------------------------


def test_each_tenant_answers_under_its_own_prefix(
    host: Host, client: Client, write_tenant: WriteTenant
) -> None:
    """Each tenant answers under its own URL prefix."""
    write_tenant("acme")
    write_tenant("globex", URL_PREFIX="/clients/globex")
    host.load()

    answers = [client.get("/acme/?name=Ada"), client.get("/clients/globex/")]

    assert [201, 201] == [answer.status_code for answer in answers]
    assert ["Ada", "guest"] == [answer.get_json()["hello"] for answer in answers]


@pytest.mark.parametrize("path", ["/", "/nobody/", "/acmecorp/", "/ACME/", "//acme/", "/./acme/"])
def test_a_path_under_no_prefix_is_404(
    host: Host, client: Client, write_tenant: WriteTenant, path: str
) -> None:
    """A path reaches a tenant only if its first segments equal the URL prefix, including case.

    All other paths get 404.
    """
    write_tenant("acme")
    host.load()

    answer = client.get("/", environ_overrides={"PATH_INFO": path})

    assert (404, "application/problem+json") == (answer.status_code, answer.mimetype)


def test_a_prefix_without_a_slash_redirects(
    host: Host, client: Client, write_tenant: WriteTenant
) -> None:
    """`/acme` redirects to `/acme/`, and the `Location` does not contain the `Host` header."""
    write_tenant("acme")
    host.load()

    answer = client.get("/acme", headers={"Host": "evil.test"})

    assert (308, "/acme/") == (answer.status_code, answer.headers["Location"])


# -- requests in flight -------------------------------------------------------------------------


def test_a_build_is_on_the_scoreboard_while_it_runs(host: Host, write_tenant: WriteTenant) -> None:
    """While a tenant's app is built, the scoreboard names the tenant of the build.

    If a worker dies during a build, gunicorn's master reads from the scoreboard which tenant's app
    was being built.
    """
    write_tenant("acme")
    row = Scoreboard().claim_row()
    assert row is not None
    host.start(row=row)
    assert host.follower.is_ready.wait(DEADLINE_S)
    seen: list[tuple[str, bool]] = []
    built = host._checked_app

    def look(tenant: Tenant, shared: ProcessResources, *, is_migrating: bool) -> Flask:
        seen.extend((one.tenant, one.is_build) for one in row.in_flight())
        return built(tenant, shared, is_migrating=is_migrating)

    host._checked_app = look  # type: ignore[method-assign]
    Client(host).get("/acme/").close()

    assert ([("acme", False), ("acme", True)], []) == (sorted(seen), row.in_flight())


def test_a_forked_process_starts_before_it_serves(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forked process creates its own resources before it serves."""
    host.load()
    host._pid = -1  # make the host believe that it runs in a forked process
    claim, started = Scoreboard.claim_row, []

    def look(scoreboard: Scoreboard) -> Row | None:
        started.append(host._pid == os.getpid())
        return claim(scoreboard)

    monkeypatch.setattr(Scoreboard, "claim_row", look)
    host.start()

    assert ([False], True) == (started, host._pid == os.getpid())


def test_a_forked_process_uses_the_scoreboard_row_of_its_server(host: Host) -> None:
    """In a forked process, the host uses the scoreboard row that the server passes in."""
    host.load()
    host._pid = -1
    row = Scoreboard().claim_row()
    host.start(row=row)

    assert row is host.resources.row is not None


@pytest.mark.parametrize("bounds", [(1, None, 1), (None, 2, 2), (1, 2, 1)])
def test_a_tenants_requests_in_flight_are_bounded(
    settings: HostSettings,
    write_tenant: WriteTenant,
    faulty: str,
    bounds: tuple[int | None, int | None, int],
) -> None:
    """A reload of a tenant does not reset the limit on its concurrent requests."""
    key, setting, bound = bounds
    write_tenant("acme", BLUEPRINTS=[faulty], MAX_CONCURRENT_REQUESTS=key)
    host = Host(settings.model_copy(update={"max_concurrent_requests": setting}))
    client = Client(host)
    host.load()
    held = [client.get("/acme/stream", buffered=False) for _ in range(bound)]

    write_tenant("acme", BLUEPRINTS=[faulty], MAX_CONCURRENT_REQUESTS=key, APP_NAME="Acme II")
    host.follower.catch_up()
    refused = client.get("/acme/stream")
    in_flight = host.report.listing()["in_flight"]
    for response in held:
        response.close()

    assert (503, "1") == (refused.status_code, refused.headers["Retry-After"])
    assert ({"acme": bound}, {}) == (in_flight, host.report.listing()["in_flight"])
    assert 200 == client.get("/acme/stream").status_code
    host.close()


def test_a_tenant_over_its_rate_gets_429(
    host: Host, client: Client, write_tenant: WriteTenant
) -> None:
    """A tenant above its rate limit gets 429 until its file allows a higher rate."""
    write_tenant("acme", RATE_LIMIT="1/hour")
    host.start()
    statuses = [client.get("/acme/").status_code for _ in range(2)]

    write_tenant("acme", RATE_LIMIT="2/hour")
    wait_until(lambda: host.router.mounts[0].tenant.rate_limit == "2/hour")
    again = client.get("/acme/")

    assert [201, 429] == statuses
    assert (201, "1") == (again.status_code, again.headers["RateLimit-Remaining"])


# -- tenants of every kind ----------------------------------------------------------------------


@pytest.fixture(name="mixed")
def _mixed(write_tenant: WriteTenant) -> None:
    """Write tenants that are valid, broken, disabled, in maintenance, and in conflict."""
    write_tenant("acme")
    write_tenant("broken", "SECRET_KEY = = 1\n")
    write_tenant("clash", URL_PREFIX="/acme")
    write_tenant("disabled", ENABLED=False)
    write_tenant("globex", MAINTENANCE="Back at noon.")


@pytest.mark.usefixtures("mixed")
@pytest.mark.parametrize(
    ("path", "status"),
    [("/acme/", 201), ("/broken/", 503), ("/clash/", 404), ("/disabled/", 404), ("/globex/", 503)],
)
def test_a_bad_file_affects_its_own_tenant_only(
    host: Host, client: Client, path: str, status: int
) -> None:
    """A tenant file that is broken, disabled or in conflict affects only its own tenant."""
    host.load()

    answer = client.get(path)

    assert status == answer.status_code
    assert (status == 503) == ("Retry-After" in answer.headers)
    assert "SECRET_KEY" not in answer.text


@pytest.mark.usefixtures("mixed")
def test_status_lists_mounts_by_name(host: Host) -> None:
    """The host's status lists tenants by name with state and reason, except disabled tenants."""
    host.load()

    status = host.status()

    assert [
        ("acme", "/acme", "idle"),
        ("broken", "/broken", "failed"),
        ("clash", "", "failed"),
        ("globex", "/globex", "maintenance"),
    ] == [(mount.name, mount.prefix, mount.state) for mount in status]
    assert "broken.py:1" in status[1].reason
    assert "'URL_PREFIX'" in status[2].reason


@pytest.mark.usefixtures("mixed")
def test_readyz_counts_tenants_per_state(host: Host, client: Client) -> None:
    """If a tenant has failed, `/-/readyz` answers 503 with the number of tenants in each state."""
    host.load()
    client.get("/acme/")

    answer = client.get("/-/readyz")

    counts = {"failed": 2, "maintenance": 1, "serving": 1}
    assert (503, {"status": "not ready", "tenants": counts}) == (
        answer.status_code,
        answer.get_json(),
    )


def test_readyz_is_200_when_none_failed(
    host: Host, client: Client, write_tenant: WriteTenant
) -> None:
    """`/-/readyz` answers 200 if tenants are idle, disabled or in maintenance."""
    write_tenant("acme")
    write_tenant("globex", MAINTENANCE=True)
    write_tenant("disabled", ENABLED=False)
    host.load()

    answer = client.get("/-/readyz")

    assert (200, {"idle": 1, "maintenance": 1}) == (
        answer.status_code,
        answer.get_json()["tenants"],
    )


def test_a_host_without_tenants_serves_its_own_pages(host: Host, client: Client) -> None:
    """A host without tenants is ready and serves its own pages."""
    host.load()

    statuses = [client.get(path).status_code for path in ("/-/livez", "/-/readyz", "/")]

    assert [200, 200, 404] == statuses


def test_an_endpoint_that_exits_affects_its_own_tenant_only(
    host: Host, client: Client, write_tenant: WriteTenant, faulty: str, tmp_path: Path
) -> None:
    """If an endpoint exits, only its tenant fails, and the reason names the endpoint's line."""
    (tmp_path / "corp/faulty/blueprint.py").write_text("raise SystemExit(3)\n")
    write_tenant("acme", BLUEPRINTS=[faulty])
    write_tenant("globex")
    host.load()

    statuses = [client.get(path).status_code for path in ("/acme/fail", "/globex/")]

    reason = (
        "endpoint 'corp.faulty' fails to import: SystemExit: 3 (blueprint.py:1); fix the endpoint."
    )
    assert [503, 201] == statuses
    status = host.status()[0]
    assert ("acme", "/acme", "failed", reason) == (
        status.name,
        status.prefix,
        status.state,
        status.reason,
    )


def test_close_ends_every_instance(host: Host, client: Client, write_tenant: WriteTenant) -> None:
    """After the host is closed, once or twice, all apps are closed, and tenants answer 503."""
    write_tenant("acme")
    write_tenant("broken", "x = = 1\n")
    host.load()
    client.get("/acme/")

    host.close()
    host.close()

    assert not [name for name in sys.modules if "@" in name]
    assert 503 == client.get("/acme/").status_code


def test_close_unfreezes_nothing_that_others_froze(host: Host) -> None:
    """Closing a host that did not serve does not unfreeze objects for the garbage collector.

    Unfreezing all objects would take 0.1 s.
    """
    host.load()
    before = gc.get_freeze_count()

    host.close()

    assert before == gc.get_freeze_count() > 0


# -- the layers around an app -------------------------------------------------------------------


def test_a_failing_view_is_flasks_500(
    client: Client,
    host: Host,
    write_tenant: WriteTenant,
    faulty: str,
    logged: Logged,
) -> None:
    """If a view raises an exception, Flask answers 500, and the log names tenant and request."""
    configure_logging("json", "info")
    write_tenant("acme", BLUEPRINTS=[faulty])
    host.load()

    answer = client.get("/acme/fail", headers={"X-Request-ID": "id-1"})

    assert (500, "text/html") == (answer.status_code, answer.mimetype)
    [line] = logged()
    assert ("tenant.acme", "acme", "id-1") == (line["logger"], line["tenant"], line["request_id"])
    assert "Exception on /fail [GET]" == line["event"]
    assert "ValueError: the reason" in line["exception"]


@pytest.mark.parametrize(
    ("path", "error"), [("/fail", "ValueError: the reason"), ("/exit", "SystemExit: 3")]
)
def test_an_exception_that_leaves_flask_stops_at_the_mount(
    *,
    client: Client,
    host: Host,
    write_tenant: WriteTenant,
    faulty: str,
    logged: Logged,
    path: str,
    error: str,
) -> None:
    """If an exception leaves Flask, the host answers 500 and logs the traceback."""
    configure_logging("json", "info")
    write_tenant("acme", BLUEPRINTS=[faulty], PROPAGATE_EXCEPTIONS=True)
    host.load()

    answer = client.get(f"/acme{path}", headers={"X-Request-ID": "id-1"})

    assert (500, "application/problem+json") == (answer.status_code, answer.mimetype)
    assert "id-1" == answer.get_json()["request_id"] == answer.headers["X-Request-ID"]
    [line] = logged()
    assert ("request.failed", "acme", "id-1", path) == tuple(
        line[key] for key in ("event", "tenant", "request_id", "path")
    )
    assert "tenant.acme" == line["logger"]
    assert error in line["exception"]
    assert "blueprint.py" in line["exception"]


def test_a_line_logged_while_the_body_streams_has_its_request(
    client: Client,
    host: Host,
    write_tenant: WriteTenant,
    faulty: str,
    logged: Logged,
) -> None:
    """Log lines have the tenant and the request ID until the end of a streamed response."""
    configure_logging("json", "info")
    write_tenant("acme", BLUEPRINTS=[faulty])
    host.load()

    client.get("/acme/stream", headers={"X-Request-ID": "id-1"}, buffered=True)
    logging.getLogger("some.library").warning("library.logged")

    during, after = logged()
    assert ("acme", "id-1") == (during["tenant"], during["request_id"])
    assert not {"tenant", "request_id"} & after.keys()


def test_a_rejected_file_is_logged_with_its_reason(
    settings: HostSettings,
    write_tenant: WriteTenant,
    logged: Logged,
) -> None:
    """Each problem of a rejected tenant file is a separate log line."""
    write_tenant("acme", SECRET_KEY="short", BLUEPRINTS=[])

    host = create_host(settings.model_copy(update={"log_format": "json"}))
    host.load()

    assert 503 == Client(host).get("/acme/").status_code
    host.close()
    facts = [(line["event"], line["tenant"], line["reason"]) for line in logged()]
    assert [("tenant.rejected", "acme")] * 2 == [fact[:2] for fact in facts]
    assert "'SECRET_KEY'" in facts[0][2]
    assert "'BLUEPRINTS'" in facts[1][2]


@pytest.mark.parametrize(
    ("of_tenant", "of_host", "sent", "status"),
    [
        (None, (), "anything.test", 201),
        (None, ("shop.test",), "shop.test:8000", 201),
        (None, ("shop.test",), "evil.test", 400),
        (["acme.test"], ("shop.test",), "acme.test", 201),
        (["acme.test"], ("shop.test",), "shop.test", 400),
        (["acme.test"], (), "evil.test", 400),
        (["Acme.test", "web_1", "[::1]"], (), "ACME.test.:08", 201),
        (["Acme.test", "web_1", "[::1]"], (), "web_1", 201),
        (["[::1]"], (), "[::1]:8000", 201),
    ],
)
def test_a_tenants_trusted_hosts_replace_the_hosts(
    *,
    settings: HostSettings,
    write_tenant: WriteTenant,
    of_tenant: list[str] | None,
    of_host: tuple[str, ...],
    sent: str,
    status: int,
) -> None:
    """A `Host` header that neither the tenant nor the host trusts gets 400."""
    write_tenant("acme", TRUSTED_HOSTS=of_tenant)
    host = Host(settings.model_copy(update={"trusted_hosts": of_host}))
    host.load()

    answer = Client(host).get("/acme/", headers={"Host": sent})
    host.close()

    assert status == answer.status_code


@pytest.mark.parametrize(("size_bytes", "expected"), [(20, (200, "20")), (21, (413, None))])
@pytest.mark.parametrize("is_chunked", [False, True], ids=["length", "chunked"])
def test_a_tenants_body_limit_applies(
    *,
    client: Client,
    host: Host,
    write_tenant: WriteTenant,
    faulty: str,
    is_chunked: bool,
    size_bytes: int,
    expected: tuple[int, str | None],
) -> None:
    """A tenant's `MAX_CONTENT_LENGTH` limits bodies with a declared length and chunked bodies."""
    write_tenant("acme", BLUEPRINTS=[faulty], MAX_CONTENT_LENGTH=20)
    host.load()
    chunked = {"CONTENT_LENGTH": "", "wsgi.input_terminated": True} if is_chunked else None

    answer = client.post(
        "/acme/size", data=b"x" * size_bytes, environ_overrides=chunked, buffered=True
    )

    text = answer.text if answer.mimetype == "text/html" else None
    assert expected == (answer.status_code, text)


def test_forwarded_headers_need_a_trusted_proxy_and_a_setting(
    settings: HostSettings, write_tenant: WriteTenant
) -> None:
    """The host believes an `X-Forwarded-…` header only if proxy and header are trusted."""
    write_tenant("acme")
    locations = []
    for proxies, headers in ((0, ("prefix",)), (1, ("for", "proto")), (1, ("prefix",))):
        trusted = {"trusted_proxies": proxies, "trusted_headers": headers}
        host = Host(settings.model_copy(update=trusted))
        host.load()
        answer = Client(host).get("/acme", headers={"X-Forwarded-Prefix": "/shop"})
        locations.append(answer.headers["Location"])
        host.close()

    assert ["/acme/", "/acme/", "/shop/acme/"] == locations
