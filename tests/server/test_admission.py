"""Admission decides which requests run, and records the requests in flight."""

import threading
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import Client, create_environ

from servers import wait_until
from tenantry.host import Host
from tenantry.http.environ import CONNECTION, IS_FOR_OPERATORS, REQUEST_ID, REQUEST_RECORD
from tenantry.http.problem import ProblemResponse
from tenantry.middleware.in_flight import TENANT_BUSY
from tenantry.observability.scoreboard import Scoreboard
from tenantry.routing.mount import STARTING
from tenantry.server.admission import Admission, OpenAdmission
from tenantry.tenants.clients import hash_client_key

WriteTenant = Callable[..., Path]


@pytest.fixture(name="admission")
def _admission(host: Host, write_tenant: WriteTenant) -> Iterator[Any]:
    """Return the admission of a host whose tenants differ in their keys and limits."""
    write_tenant("acme", MAX_CONTENT_LENGTH=1000)
    write_tenant("globex", CLIENTS={"mobile": hash_client_key("the-key")})
    write_tenant("initech", RATE_LIMIT="1/hour")
    write_tenant("umbrella", MAINTENANCE=True)
    row = Scoreboard().claim_row()
    host.start("gunicorn", row=row, threads=4)
    wait_until(lambda: 4 == len(host.router.mounts) and host.follower.is_ready.is_set())
    return host.admission


def routed(admission: Any, path: str, **keys: Any) -> tuple[str | None, dict[str, Any]]:
    """Return the tenant and the environ of a request after its routing."""
    environ = create_environ(path, method="POST") | {CONNECTION: None} | keys
    return admission.route(environ, None), environ


def _status(refusal: Any) -> int | None:
    return None if refusal is None else int(refusal[0].status)


def test_a_request_is_routed_once(admission: Any) -> None:
    """`route` finds the app that answers: a tenant, the host, or the operators' pages."""
    paths = ("/acme/x", "/-/livez", "/nobody/")
    found = [routed(admission, path) for path in paths]
    operators, _ = routed(admission, "/acme/x", **{IS_FOR_OPERATORS: True})

    assert (["acme", "", ""], None) == ([tenant for tenant, _ in found], operators)
    assert [True, False, False] == [admission.reads_body(environ) for _, environ in found]


def test_a_verdict_without_an_instance_needs_a_thread(admission: Any) -> None:
    """The decision on a head waits for the tenant's build, and is quick after the build."""
    _, environ = routed(admission, "/acme/")
    before = admission.is_quick(environ)
    refusal = admission.refusal(environ)

    assert (False, None, True) == (before, refusal, admission.is_quick(environ))


@pytest.mark.parametrize(
    ("path", "keys", "status"),
    [
        ("/acme/", {"CONTENT_LENGTH": "1000"}, None),
        ("/acme/", {"CONTENT_LENGTH": "1001"}, 413),
        ("/globex/", {}, 401),
        ("/globex/", {"HTTP_X_API_KEY": "the-key"}, None),
        ("/umbrella/", {}, 503),
    ],
)
def test_the_head_decides_before_the_body(
    admission: Any, path: str, keys: dict[str, str], status: int | None
) -> None:
    """The host checks the size, the key and the maintenance mode before the body arrives."""
    _, environ = routed(admission, path, **keys)

    assert status == _status(admission.refusal(environ))


def test_a_body_has_the_maximum_of_its_tenant(admission: Any) -> None:
    """A chunked body may have as many bytes as the tenant allows."""
    assert 1000 == admission.max_body_bytes(routed(admission, "/acme/")[1])


def test_a_tenant_over_its_rate_is_known(admission: Any, host: Host) -> None:
    """A request to a tenant that is known to be over its rate is refused without a thread."""
    statuses = [Client(host).get("/initech/").status_code for _ in range(2)]
    _, environ = routed(admission, "/initech/")

    assert [201, 429] == statuses
    assert [429, None] == [
        _status(admission.known_refusal(one)) for one in (environ, routed(admission, "/acme/")[1])
    ]


def test_a_request_without_a_known_key_takes_no_place(admission: Any, host: Host) -> None:
    """A flood of requests without a key leaves all places of a tenant to its clients."""
    with Client(host).get("/globex/") as response:
        refused_in_thread = response.status_code
    unknown, known = {"HTTP_AUTHORIZATION": "Bearer no"}, {"HTTP_X_API_KEY": "the-key"}
    environs = [routed(admission, "/globex/", **keys)[1] for keys in ({}, unknown, known)]

    statuses = [_status(admission.known_refusal(environ)) for environ in environs]

    assert (401, [401, 401, None]) == (refused_in_thread, statuses)
    assert {} == host.resources.in_flight.counts()


def test_a_record_is_carried_from_admission_to_the_end(admission: Any, host: Host) -> None:
    """`enter` opens the request's only record, and `leave` ends it once."""
    _, environ = routed(admission, "/acme/")
    record = admission.enter(environ)
    during = host.resources.in_flight.counts()
    for _ in range(2):
        admission.leave(record)

    assert (record, {"acme": 1}, {}) == (
        environ[REQUEST_RECORD], during, host.resources.in_flight.counts(),
    )  # fmt: skip


def test_a_tenant_over_its_share_has_to_wait(admission: Any) -> None:
    """With four threads, a tenant gets at most two; another tenant is still admitted."""
    _, environ = routed(admission, "/acme/")
    records = [admission.enter(dict(environ)) for _ in range(3)]
    other = admission.enter(routed(admission, "/globex/")[1])

    assert [True, True, False] == [record is not None for record in records]
    assert other is not None
    for record in (*records[:2], other):
        admission.leave(record)


def test_pages_of_the_host_never_wait(admission: Any) -> None:
    """`/-/livez` is admitted even if all threads are busy."""
    held = [admission.enter(routed(admission, f"/{name}/")[1])
            for name in ("acme", "globex", "initech", "umbrella")]  # fmt: skip

    assert admission.enter(routed(admission, "/-/livez")[1]) is not None
    for record in held:
        admission.leave(record)


def test_a_refusal_of_the_server_counts_for_its_tenant(admission: Any, host: Host) -> None:
    """A request that the server refuses is counted as refused."""
    tenant, environ = routed(admission, "/acme/")

    admission.note_refusal(environ, tenant, ProblemResponse(HTTPStatus.REQUEST_TIMEOUT, "Slow."), 9)

    assert (1, 0, 1, 0, 9) == host.usage.counts()["acme"][:5]


def test_a_503_tells_the_client_when_to_try_again(admission: Any) -> None:
    """The 503 after waiting has `Retry-After`, for a tenant and for the host."""
    refusals = [admission.busy(tenant)[0] for tenant in ("acme", "")]

    assert [(503, 1)] * 2 == [(one.status, one.retry_after_s) for one in refusals]


# -- other applications ----------------------------------------------------------------------------


def test_another_application_gets_as_many_requests_as_threads() -> None:
    """`OpenAdmission` counts each request once at its start and end, and refuses no request."""
    admission: Admission = OpenAdmission(2)
    environ: dict[str, Any] = {}
    tenant = admission.route(environ, None)
    tokens = [admission.enter(environ) for _ in range(3)]
    for _ in range(2):
        admission.leave(tokens[0])
    again = [admission.enter(environ) for _ in range(2)]

    assert ("", 32) == (tenant, len(environ[REQUEST_ID]))
    assert [True, True, False] == [token is not None for token in tokens]
    assert [True, False] == [token is not None for token in again]
    assert (True, True, None, None) == (
        admission.reads_body(environ), admission.is_quick(environ), admission.refusal(environ),
        admission.max_body_bytes(environ),
    )  # fmt: skip
    assert (0, 503) == (admission.rest_s(""), admission.busy("")[0].status)


def test_a_request_waits_for_its_build_without_a_thread(admission: Any, host: Host) -> None:
    """With a server that can let requests wait, a request waits until its instance is built."""
    ready = threading.Event()
    host.let_requests_wait(ready.set)
    _, environ = routed(admission, "/acme/x")
    record = admission.enter(environ)
    wait_until(lambda: bool(host.router.at("/acme").instance))  # type: ignore[union-attr]
    wait_until(ready.is_set)
    again = admission.enter(environ)
    admission.leave(again)

    assert (None, "acme") == (record, again.tenant)


def test_a_request_that_waits_too_long_for_its_build_gets_503(admission: Any, host: Host) -> None:
    """The 503 says that the application is starting, and not that the application is busy."""
    host.let_requests_wait(lambda: None)
    host.follower._build_pool.close()  # no build ends during the test
    record = admission.enter(routed(admission, "/acme/x")[1])

    assert (None, STARTING, TENANT_BUSY) == (
        record,
        admission.busy("acme")[0],
        admission.busy("globex")[0],
    )


def test_a_request_for_an_unknown_path_waits_until_all_tenants_are_known(
    admission: Any, host: Host
) -> None:
    """Until every file is validated, unknown paths wait, but the host's own pages do not."""
    host.let_requests_wait(lambda: None)
    mounts = host.router.mounts
    host.router.replace(())
    host.follower.is_ready.clear()
    requests = {path: routed(admission, path)[1] for path in ("/umbrella/x", "/-/x", "/nobody")}
    before = [admission.enter(environ) for environ in requests.values()]
    host.router.replace(mounts)
    host.follower.is_ready.set()
    after = [admission.enter(environ) for environ in requests.values()]
    for record in filter(None, after):
        admission.leave(record)

    assert [True, False, True] == [record is None for record in before]
    assert ["umbrella", "", ""] == [record.tenant for record in after]
    assert ["/umbrella", "/x"] == [
        requests["/umbrella/x"][key] for key in ("SCRIPT_NAME", "PATH_INFO")
    ]
