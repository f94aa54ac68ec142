"""No tenant accepts another tenant's sessions, tokens or client keys."""

import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
from built_tenants import build, make_tenant

import leaks
from conftest import KEY
from servers import DEADLINE_S
from tenantry.audit.replay import (
    ReplayResult,
    _Target,
    prepare_for_audit,
    replay,
    replay_findings,
)
from tenantry.host import Host
from tenantry.middleware.authentication import Authentication
from tenantry.tenants.clients import hash_client_key
from tenantry.tenants.model import Tenant

pytestmark = pytest.mark.live

MakeAuthenticated = Callable[..., tuple[Tenant, str]]


@pytest.fixture(name="make_authenticated")
def _make_authenticated(host: Host) -> MakeAuthenticated:
    """Return a function that creates a tenant with `CLIENTS`, which may accept extra keys."""

    def make(name: str, *foreign_keys: str, **keys: object) -> tuple[Tenant, str]:
        client_keys = enumerate([name, *foreign_keys])
        clients = {f"client{number}": hash_client_key(key) for number, key in client_keys}
        return prepare_for_audit(make_tenant(host, name, CLIENTS=clients, **keys))

    return make


@pytest.fixture(name="accept_anybody")
def _accept_anybody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patch authentication to accept everybody, as a faulty endpoint could."""
    monkeypatch.setattr(Authentication, "_client", lambda *_: "anybody")


def test_no_tenant_accepts_what_another_signed_with_the_same_key(
    host: Host,
) -> None:
    """Ten tenants with the same secret key reject one another's sessions."""
    tenants = [(make_tenant(host, f"t{number}", SECRET_KEY=KEY), "") for number in range(10)]

    result = replay(build(host, *tenants))

    assert ReplayResult(pair_count=90) == result


def test_sessions_of_all_other_tenants_are_replayed(host: Host) -> None:
    """If three apps share one session interface, the audit finds each pair of apps."""
    names = ("acme", "globex", "initech")
    tenants = build(host, *[(make_tenant(host, name, SECRET_KEY=KEY), "") for name in names])
    for audited in tenants[1:]:
        audited.app.session_interface = tenants[0].app.session_interface

    result = replay(tenants)

    pairs = {(item.source, item.target) for item in result.accepted if item.kind == "session"}
    assert {(source, target) for source in names for target in names if source != target} == pairs


def test_a_tenant_in_maintenance_is_replayed_to_its_app(
    host: Host,
) -> None:
    """For a tenant in maintenance, the audit sends replayed requests to the app, not the host."""
    tenants = [(make_tenant(host, name, MAINTENANCE=True), "") for name in ("acme", "globex")]

    assert ReplayResult(pair_count=2) == replay(build(host, *tenants))


def test_a_client_key_is_accepted_only_by_its_tenant(
    make_authenticated: MakeAuthenticated,
    host: Host,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each client key works at one tenant only, and the audit's test requests are not logged."""
    tenants = [
        make_authenticated("acme", MAINTENANCE=True),
        make_authenticated("globex", OIDC=leaks.ISSUER),
        prepare_for_audit(make_tenant(host, "initech", OIDC=leaks.ISSUER)),
    ]

    result = replay(build(host, *tenants))

    assert (ReplayResult(pair_count=6), []) == (result, caplog.records)


def test_a_client_key_that_two_tenants_accept_is_found(
    make_authenticated: MakeAuthenticated, host: Host
) -> None:
    """The audit finds a client key that two tenants accept, because it tries each key."""
    acme = make_authenticated("acme")
    globex = make_authenticated("globex", acme[1])

    result = replay(build(host, acme, globex))

    assert [("client key", "acme", "globex")] == result.accepted


@pytest.mark.usefixtures("accept_anybody")
def test_broken_authentication_is_found(make_authenticated: MakeAuthenticated, host: Host) -> None:
    """The audit finds apps that accept requests without a key or with another tenant's key."""
    tenants = build(host, make_authenticated("acme"), make_authenticated("globex"))

    result = replay(tenants)

    found = {finding.id: finding.tenants for finding in replay_findings(result, tenants)}
    assert ["acme", "globex"] == result.unauthenticated
    assert ("globex", "acme") == found["replay:client-key"]


@pytest.mark.usefixtures("accept_anybody")
def test_broken_authentication_is_found_behind_limits(
    make_authenticated: MakeAuthenticated, host: Host
) -> None:
    """The audit builds tenants without rate limits, which would answer before authentication."""
    limits = {"RATE_LIMIT": "1/minute", "MAX_CONCURRENT_REQUESTS": 1}

    result = replay(
        build(host, *[make_authenticated(name, **limits) for name in ("acme", "globex")])
    )

    assert (["acme", "globex"], {}) == (result.unauthenticated, result.unproven)


def test_a_tenant_that_answers_too_early_is_unproven(
    make_authenticated: MakeAuthenticated, host: Host
) -> None:
    """If a tenant answers 503 to a replayed key, the audit reports the result as unproven."""
    tenant, key = make_authenticated("acme")
    limited = tenant.model_copy(update={"max_concurrent_requests": 0})

    result = replay(build(host, (limited, key), make_authenticated("globex")))

    assert {"acme": "it answers 503 before it checks a client key"} == result.unproven


def test_an_app_that_blocks_is_unproven(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """An app that answers no request does not stop the audit of the other tenants."""
    released = threading.Event()
    tenants = build(host, *[(make_tenant(host, name), "") for name in ("acme", "globex")])
    tenants[0].app.before_request_funcs[None] = [lambda: released.wait(DEADLINE_S) and None]
    monkeypatch.setattr("tenantry.audit.replay.ANSWER_S", 0.5)

    result = replay(tenants)

    released.set()
    assert {"acme": "it does not answer within 0.5 s"} == result.unproven


def test_ninety_foreign_client_keys_prove_something(
    make_authenticated: MakeAuthenticated, host: Host
) -> None:
    """The host's limit of failed attempts does not end the replay of many tenants' keys."""
    tenant, key = make_authenticated("acme")
    tenants = build(host, (tenant, key))
    others = [replace(tenants[0], client_key=f"{number:032d}") for number in range(90)]

    target = _Target(tenants[0], "localhost", None)

    assert [] == target._accepted_keys(others)
    assert "" == target.problem
