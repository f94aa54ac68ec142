"""The host's own pages, for given tenant statuses."""

from dataclasses import replace
from typing import Any

import pytest
from werkzeug.test import Client

from tenantry.middleware.host_pages import HostPages, MountStatus

SERVING = MountStatus("acme", "/acme", "serving", "", 1.5, "5e1f", ("landing",))
IDLE = MountStatus("globex", "/globex", "idle", "", 1.5, "5e1f", ("landing",))
FAILED = MountStatus("initech", "/initech", "failed", "initech.py:3: no", 1.5, "5e1f", ())
PARKED = replace(SERVING, state="failed", reason="parked: why", is_parked=True)


def client_of(
    *mounts: MountStatus, is_all_known: bool = True, is_for_operators: bool = False
) -> Client:
    """Return a client of the host's pages."""
    return Client(
        HostPages(lambda: mounts, lambda: is_all_known, is_for_operators=is_for_operators)
    )


@pytest.mark.parametrize("mounts", [[], [SERVING], [FAILED]])
def test_livez_is_200_while_the_process_serves(mounts: list[MountStatus]) -> None:
    """`livez` does not depend on tenants, because a restart would not repair a tenant."""
    answer = client_of(*mounts).get("/-/livez")

    assert (200, {"status": "live"}) == (answer.status_code, answer.get_json())


@pytest.mark.parametrize(
    ("mounts", "status", "page"),
    [
        ([], 200, {"status": "ready", "tenants": {}}),
        ([SERVING, IDLE, IDLE], 200, {"status": "ready", "tenants": {"idle": 2, "serving": 1}}),
        ([IDLE, PARKED], 200, {"status": "ready", "tenants": {"failed": 1, "idle": 1}}),
        (
            [PARKED, FAILED],
            503,
            {"status": "not ready", "tenants": {"failed": 2}},
        ),
        (
            [SERVING, FAILED],
            503,
            {"status": "not ready", "tenants": {"failed": 1, "serving": 1}},
        ),
    ],
)
def test_readyz_counts_states_and_is_503_when_one_failed(
    mounts: list[MountStatus], status: int, page: dict[str, Any]
) -> None:
    """Clients get counts per state without names; a parked tenant counts but does not cause 503."""
    answer = client_of(*mounts).get("/-/readyz")

    assert (status, page) == (answer.status_code, answer.get_json())


def test_operators_see_names_and_reasons() -> None:
    """On the admin listener, `readyz` lists each mount with the mount's state and reason."""
    answer = client_of(IDLE, FAILED, is_for_operators=True).get("/-/readyz")

    shown = [
        (mount["name"], mount["prefix"], mount["state"], mount["reason"], mount["digest"])
        for mount in answer.get_json()["mounts"]
    ]
    assert [
        ("globex", "/globex", "idle", "", "5e1f"),
        ("initech", "/initech", "failed", "initech.py:3: no", "5e1f"),
    ] == shown


@pytest.mark.parametrize(
    ("path", "status"), [("/acme/", 503), ("/", 503), ("/-/nothing", 404), ("/-/livez", 200)]
)
def test_an_unknown_path_is_503_until_all_files_are_validated(path: str, status: int) -> None:
    """Until all files are validated, an unknown path may belong to a tenant not loaded yet."""
    answer = client_of(is_all_known=False).get(path)

    assert (status, "1" if status == 503 else None) == (
        answer.status_code,
        answer.headers.get("Retry-After"),
    )


def test_readyz_is_503_until_every_file_is_validated() -> None:
    """A load balancer sends no requests before every tenant file has been validated."""
    answer = client_of(SERVING, is_all_known=False).get("/-/readyz")

    assert (503, "not ready") == (answer.status_code, answer.get_json()["status"])


@pytest.mark.parametrize("path", ["/", "/-/", "/-", "/-/livez/", "/-/metrics", "/livez", "/x"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_any_other_path_is_404(path: str, method: str) -> None:
    """A request for any other path gets 404, whatever the method."""
    answer = client_of(SERVING).open(path, method=method)

    assert (404, "application/problem+json") == (answer.status_code, answer.mimetype)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "BREW"])
def test_methods_other_than_get_and_head_are_405(method: str) -> None:
    """A page answers any other method with 405 and `Allow: GET, HEAD`."""
    answer = client_of(SERVING).open("/-/readyz", method=method)

    assert (405, "GET, HEAD") == (answer.status_code, answer.headers["Allow"])


@pytest.mark.parametrize("path", ["/-/livez", "/-/readyz"])
def test_head_gets_the_headers_without_the_body(path: str) -> None:
    """HEAD gets the status and headers of GET. Responses must not be cached."""
    client = client_of(FAILED)

    head, get = client.head(path), client.get(path)

    assert (get.status_code, get.headers, b"") == (head.status_code, head.headers, head.data)
    assert "no-store" == get.headers["Cache-Control"]


def test_the_counts_for_clients_are_at_most_a_second_old() -> None:
    """Requests within `READY_AGE_S` count the tenants once; operators always get new counts."""
    now, counted = [100.0], list[float]()

    def count() -> list[MountStatus]:
        counted.append(now[0])
        return [SERVING]

    for is_for_operators in (False, True):
        pages = HostPages(
            count, lambda: True, is_for_operators=is_for_operators, clock=lambda: now[0]
        )
        client = Client(pages)
        for now[0] in (100.0, 100.9, 101.1):
            assert 200 == client.get("/-/readyz").status_code

    assert [100.0, 101.1, 100.0, 100.9, 101.1] == counted


def test_a_page_from_before_all_tenants_are_known_is_not_kept() -> None:
    """`readyz` says that the host is ready as soon as every tenant is known."""
    is_known = [False, False, True, True, True]
    client = Client(HostPages(lambda: [SERVING], lambda: is_known.pop(0)))

    assert [503, 200] == [client.get("/-/readyz").status_code for _ in "ab"]
