"""The keys `CLIENTS` and `OIDC` of a tenant file are validated, and problems are explained."""

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from conftest import KEY
from tenantry.errors import TenantFileError
from tenantry.tenants.clients import (
    CLIENTS_LIMIT,
    Client,
    Clients,
    hash_client_key,
    key_digest,
    new_client_key,
)
from tenantry.tenants.model import Tenant
from tenantry.tenants.openid import OpenId
from tenantry.tenants.validation import parse_tenant

PLAIN = "a key that must not be shown"
HASH = hash_client_key(PLAIN)
DIGEST = key_digest(PLAIN.encode())
OTHER = hash_client_key("another")


def parsed(**keys: Any) -> Tenant:
    """Return a valid tenant with the given keys."""
    values = {"SECRET_KEY": KEY, "BLUEPRINTS": ["landing", "images"]} | keys
    return parse_tenant("acme", values, data_dir=Path("instance"))


def problems(**keys: Any) -> list[str]:
    """Return the problems of a tenant with the given keys, without the file's name."""
    try:
        parsed(**keys)
    except TenantFileError as error:
        return [str(problem).removeprefix(": ") for problem in error.problems]
    return []


def test_a_new_key_is_unique_and_recognizable() -> None:
    """A new client key has 256 random bits and a prefix that secret scanners can recognize."""
    keys = [new_client_key(), new_client_key()]

    assert [True, True] == [bool(re.fullmatch(r"tenantry_[0-9a-f]{64}", key)) for key in keys]
    assert keys[0] != keys[1]


def test_an_open_tenant_has_no_clients() -> None:
    """A tenant without `CLIENTS` and `OIDC` admits everybody."""
    assert (None, None) == (parsed().clients, parsed(CLIENTS=None, OIDC=None).oidc)


def test_a_client_is_a_hash_or_a_dict() -> None:
    """A client in `CLIENTS` is the hash of a key, or a dict with limits and several hashes."""
    limited = {"key": [HASH, OTHER], "endpoints": ["images"], "methods": ["GET"]}

    tenant = parsed(CLIENTS={"web": HASH.upper().replace("SHA", "sha"), "mobile@eu": limited | {
        "key": [OTHER], "expires": "2027-01-31"}})  # fmt: skip

    end = datetime(2027, 1, 31, 23, 59, 59, 999999, UTC)
    mobile = Client("mobile@eu", (key_digest(b"another"),), ("images",), ("GET",), end)
    assert Clients((Client("web", (DIGEST,)), mobile)) == tenant.clients
    assert 2 == len(parsed(CLIENTS={"a": limited}).clients.all[0].digests)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("written", "end"),
    [
        ("2027-01-31T12:00+02:00", datetime(2027, 1, 31, 10, tzinfo=UTC)),
        ("2027-01-31T12:00", datetime(2027, 1, 31, 12, tzinfo=UTC)),
        (datetime(2027, 1, 31), datetime(2027, 1, 31, tzinfo=UTC)),  # noqa: DTZ001 - users write dates without a time zone
        ("9999-12-31", datetime(9999, 12, 31, 23, 59, 59, 999999, UTC)),
        ("2020-01-01T00:00Z", datetime(2020, 1, 1, tzinfo=UTC)),
    ],
)
def test_an_expiry_without_a_zone_is_in_utc(written: object, end: datetime) -> None:
    """The expiry date of a client is in UTC unless it has a time zone, and may be in the past."""
    clients = parsed(CLIENTS={"a": {"key": HASH, "expires": written}}).clients

    assert clients is not None
    assert end == clients.all[0].expires


def test_config_has_the_form_of_a_tenant_file() -> None:
    """`config()` returns clients in a form that is valid in a tenant file."""
    clients = {
        "web": {"key": [HASH]},
        "old": {"key": [OTHER], "methods": ["GET"], "expires": "2027-01-31T10:00:00+00:00"},
    }
    oidc = {
        "issuer": "https://a.org/",
        "audience": ["shop"],
        "jwks_uri": "https://a.org/k?v=1",
        "claims": {"role": ["a", True]},
    }

    tenant = parsed(CLIENTS=clients, OIDC=oidc)

    assert (clients, oidc) == (tenant.config()["CLIENTS"], tenant.config()["OIDC"])
    assert tenant.config() == parsed(**tenant.config()).config()
    assert HASH not in repr(tenant)


def test_an_audience_or_a_claim_can_be_one_value() -> None:
    """A single audience or claim means the same as a list with one item."""
    oidc = {"issuer": "http://127.0.0.1:80", "audience": "shop", "claims": {"role": "a"}}

    assert OpenId("http://127.0.0.1:80", ("shop",), None, (("role", ("a",)),)) == parsed(
        OIDC=oidc
    ).oidc  # fmt: skip


@pytest.mark.parametrize(
    ("clients", "problem"),
    [
        ({}, "'CLIENTS': expected a dict of client name → 'sha256:…' with at least one client"),
        (HASH, "'CLIENTS': expected a dict of client name"),
        ({"mobile": PLAIN}, "'CLIENTS['mobile']': is not the hash of a key; expected 'sha256:'"),
        ({"mobile": b"x"}, "'CLIENTS['mobile']': expected 'sha256:…', or a list"),
        ({"mobile": None}, "'CLIENTS['mobile']': expected 'sha256:…', or a list"),
        (
            {"mobile": {}},
            "'CLIENTS['mobile']': has no 'key'; create a key: tenantry key acme mobile.",
        ),
        ({"a b": HASH}, "'CLIENTS': contains an invalid client name; expected 1 to 64"),
        ({7: HASH}, "'CLIENTS': contains an invalid client name; expected 1 to 64"),
        (
            {new_client_key(): "a"},
            "'CLIENTS': contains an invalid client name; expected 1 to 64",
        ),
        (
            {"a": HASH, "b": HASH},
            "'CLIENTS['b']': has the same key as client 'a'; give each client its own.",
        ),
        ({"a": []}, "'CLIENTS['a']': expected 'sha256:…', or a list of 1 to 5 of them; create"),
        ({"a": [HASH, PLAIN]}, "'CLIENTS['a'][1]': is not the hash of a key"),
        ({"a": {"key": PLAIN}}, "'CLIENTS['a']['key']': is not the hash of a key"),
        ({"a": {"key": [PLAIN]}}, "'CLIENTS['a']['key'][0]': is not the hash of a key"),
        ({"a": {"key": [HASH] * 6}}, "'CLIENTS['a']['key']': expected 'sha256:…', or a list of"),
        (
            {"a": {"key": HASH, "endpoint": ["x"]}},
            "'CLIENTS['a']['endpoint']': unknown key; did you mean 'endpoints'?",
        ),
        (
            {"a": {"key": HASH, 7: 7}},
            "'CLIENTS['a'][7]': unknown key; expected one of: key, endpoints, methods, expires.",
        ),
        (
            {"a": {"key": HASH, "endpoints": ["image"]}},
            "'CLIENTS['a']['endpoints'][0]': 'image' is not in 'BLUEPRINTS'; did you",
        ),
        (
            {"a": {"key": HASH, "endpoints": "images"}},
            "'CLIENTS['a']['endpoints']': expected a list of at least one name",
        ),
        (
            {"a": {"key": HASH, "endpoints": []}},
            "'CLIENTS['a']['endpoints']': expected a list of at least one name; to allow all",
        ),
        (
            {"a": {"key": HASH, "methods": ["get"]}},
            "'CLIENTS['a']['methods'][0]': 'get' is not a method; did you mean 'GET'?",
        ),
        (
            {"a": {"key": HASH, "methods": ["BREW"]}},
            "'CLIENTS['a']['methods'][0]': 'BREW' is not a method; expected one of: GET, HEAD",
        ),
        (
            {"a": {"key": HASH, "methods": [7]}},
            "'CLIENTS['a']['methods'][0]': found int; expected a name.",
        ),
        (
            {"a": {"key": HASH, "expires": "2027-02-30"}},
            "'CLIENTS['a']['expires']': expected a date like '2027-01-31'",
        ),
        (
            {"a": {"key": HASH, "expires": 1800000000}},
            "'CLIENTS['a']['expires']': expected a date like '2027-01-31'",
        ),
        (
            {str(place): HASH for place in range(CLIENTS_LIMIT + 1)},
            "'CLIENTS': expected at most 500 clients, not 501; use OIDC.",
        ),
    ],
)
def test_a_bad_client_is_one_problem_with_its_place(clients: Any, problem: str) -> None:
    """The error for an invalid client names the exact place, and shows no client key."""
    found = problems(CLIENTS=clients)

    assert [True] == [one.startswith(problem) for one in found], found
    assert PLAIN not in str(found)


@pytest.mark.parametrize(
    ("oidc", "problem"),
    [
        ("https://a.org", "'OIDC': expected a dict, like {'issuer'"),
        (
            {"audience": "a"},
            "'OIDC': has no 'issuer'; without it, tokens for others would be accepted.",
        ),
        ({"issuer": "https://a.org"}, "'OIDC': has no 'audience'; without it"),
        ({"issuer": "http://a.org", "audience": "a"}, "'OIDC['issuer']': expected an https URL"),
        ({"issuer": "file:///etc", "audience": "a"}, "'OIDC['issuer']': expected an https URL"),
        ({"issuer": "https://", "audience": "a"}, "'OIDC['issuer']': expected an https URL"),
        ({"issuer": "https://a:b", "audience": "a"}, "'OIDC['issuer']': expected an https URL"),
        ({"issuer": "https://[::1", "audience": "a"}, "'OIDC['issuer']': expected an https URL"),
        ({"issuer": "https://a\r\n", "audience": "a"}, "'OIDC['issuer']': expected an https URL"),
        ({"issuer": 7, "audience": "a"}, "'OIDC['issuer']': expected an https URL"),
        (
            {"issuer": "https://u:p@a.org", "audience": "a"},
            "'OIDC['issuer']': expected a URL witho",
        ),
        (
            {"issuer": "https://a.org?x", "audience": "a"},
            "'OIDC['issuer']': expected a URL without",
        ),
        ({"issuer": "https://a.org", "audience": []}, "'OIDC['audience']': expected a string"),
        (
            {"issuer": "https://a.org", "audience": ["a", 7]},
            "'OIDC['audience']': expected a string",
        ),
        (
            {"issuer": "https://a.org", "audience": "a", "jwks_url": "x"},
            "'OIDC['jwks_url']': unknown key; did you mean 'jwks_uri'?",
        ),
        (
            {"issuer": "https://a.org", "audience": "a", "jwks_uri": "ftp://a.org"},
            "'OIDC['jwks_uri']': expected an https URL",
        ),
        (
            {"issuer": "https://a.org", "audience": "a", "claims": ["role"]},
            "'OIDC['claims']': expected a dict of claim",
        ),
        (
            {"issuer": "https://a.org", "audience": "a", "claims": {"role": None}},
            "'OIDC['claims']['role']': expected a string, a number, True or False",
        ),
        (
            {"issuer": "https://a.org", "audience": "a", "claims": {"role": []}},
            "'OIDC['claims']['role']': expected a string, a number",
        ),
        (
            {"issuer": "https://a.org", "audience": "a", "claims": {"exp": 1}},
            "'OIDC['claims']['exp']': is always checked; remove it",
        ),
        (
            {"issuer": "https://a.org", "audience": "a", "claims": {7: 1}},
            "'OIDC['claims'][7]': found int; expected the name of a claim.",
        ),
        (
            {"issuer": "https://a.org", "audience": "a", "claims": {"scope": " "}},
            "'OIDC['claims']['scope']': has an empty value",
        ),
        (
            {"issuer": "https://a.org", "audience": "a", "claims": {"realm..roles": "a"}},
            "'OIDC['claims']['realm..roles']': expected the name of a claim, or a path",
        ),
    ],
)
def test_a_bad_issuer_is_one_problem_with_its_place(oidc: Any, problem: str) -> None:
    """An `OIDC` setting that would admit strangers is rejected."""
    found = problems(OIDC=oidc)

    assert [True] == [one.startswith(problem) for one in found], found


def test_every_problem_of_all_clients_is_reported_at_once() -> None:
    """All problems of all clients are reported together."""
    clients = {
        "a": PLAIN,
        "b": {"key": PLAIN, "expires": "?", "methods": ["X", "GET", 1]},
        "": HASH,
    }

    places = [one.partition(": ")[0] for one in problems(CLIENTS=clients, OIDC={})]

    assert [
        "'CLIENTS['a']'", "'CLIENTS['b']['key']'", "'CLIENTS['b']['methods'][0]'",
        "'CLIENTS['b']['methods'][2]'", "'CLIENTS['b']['expires']'", "'CLIENTS'",
        "'OIDC'", "'OIDC'",
    ] == places  # fmt: skip


def test_clients_are_checked_although_the_endpoints_are_invalid() -> None:
    """Clients are validated even if `BLUEPRINTS` is invalid."""
    found = problems(BLUEPRINTS=[], CLIENTS={"a": {"key": HASH, "endpoints": ["x"]}, "b": "x"})

    assert ["'BLUEPRINTS'", "'CLIENTS['b']'"] == [one.partition(": ")[0] for one in found]
