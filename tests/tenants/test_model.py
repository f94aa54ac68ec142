"""The keys of a tenant file are validated, and problems are explained."""

from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from pydantic import ValidationError

from conftest import KEY
from tenantry.errors import TenantFileError
from tenantry.planned import PLANNED_KEYS
from tenantry.tenants.model import KEYS, Tenant
from tenantry.tenants.problems import is_one_edit_away
from tenantry.tenants.validation import parse_tenant

GOOD: dict[str, Any] = {"SECRET_KEY": KEY, "BLUEPRINTS": ["landing"]}


def _parse(name: str = "acme", **keys: Any) -> Tenant:
    return parse_tenant(name, GOOD | keys, file="tenants/acme.py", data_dir=Path("/data"))


def _problems(name: str = "acme", **keys: Any) -> list[str]:
    """Return the problems of a tenant with the given keys, without the file's name."""
    try:
        _parse(name, **keys)
    except TenantFileError as error:
        return [str(problem).removeprefix("tenants/acme.py: ") for problem in error.problems]
    return []


def test_two_keys_are_enough() -> None:
    """A tenant file needs only a secret key and an endpoint; all other keys have defaults."""
    tenant = _parse()

    assert ("acme", "/acme", "sqlite:////data/acme/acme.sqlite3", ("landing",)) == (
        tenant.app_name,
        tenant.url_prefix,
        str(tenant.database_url),
        tenant.blueprints,
    )


def test_valid_values_are_accepted() -> None:
    """A tenant file may contain all keys of Tenantry, and other upper-case keys for Flask."""
    good: list[dict[str, Any]] = [
        {"APP_NAME": "Acmé Ltd"},
        {"URL_PREFIX": "/a/b-1/c_2/0"},
        {"URL_PREFIX": "/" + "a" * 63},
        {"SECRET_KEY_FALLBACKS": [KEY[::-1]]},
        {"BLUEPRINTS": ["landing", "extra.shop"]},
        {"BLUEPRINTS": ("landing",)},
        {"ENABLED": False},
        {"MAINTENANCE": "Back at noon."},
        {"MAX_CONCURRENT_REQUESTS": 1},
        {"RATE_LIMIT": "100/minute"},
        {"RATE_LIMIT": "5 per 2 seconds; 100/Day|7/3hours, 1 per month"},
        {"MAX_CONTENT_LENGTH": 0},
        {"TRUSTED_HOSTS": [".example.org", "[::1]", "192.0.2.1", "web_1", "LOCALHOST"]},
        {"DEADLINE_S": 5},
        {"CLIENTS": None},
        {"AUDIT_ACCEPT": {"finding": "reason"}},
        {"DEBUG": False},
        {"SESSION_COOKIE_SECURE": True},
        {"MAIL_SERVER": "localhost"},
    ]

    assert [] == [problem for keys in good for problem in _problems(**keys)]


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("APP_NAME", 7, "found int 7; expected a string; write APP_NAME = 'Acme Ltd'."),
        ("APP_NAME", "a" * 201, f"found str '{'a' * 59}…; expected at most 200 characters;"),
        ("APP_NAME", "\ud800", "found str '\\ud800'; expected text;"),
        ("URL_PREFIX", "/a/b/c/d/e", "found '/a/b/c/d/e'; expected 1 to 4 segments"),
        ("URL_PREFIX", "/a\n", "found '/a\\n'; expected 1 to 4 segments"),
        ("URL_PREFIX", "/healthz", "found '/healthz'; /healthz is reserved for proxies"),
        ("URL_PREFIX", ["/a"], "found list ['/a']; expected a string; write URL_PREFIX = '/acme'."),
        ("SECRET_KEY", "a" * 31, "has 31 characters; expected at least 32; create one: python -c"),
        ("SECRET_KEY", " ChangeMe\n", "is a well-known secret; create one: python -c"),
        ("SECRET_KEY", KEY.encode(), "found bytes; expected a string; write: from tenantry import"),
        ("SECRET_KEY_FALLBACKS", KEY, "found str; expected a list;"),
        ("BLUEPRINTS", {"landing"}, "found set {'landing'}; expected a list;"),
        ("ENABLED", "no", "found str 'no'; expected True or False; write ENABLED = True."),
        ("ENABLED", 1, "found int 1; expected True or False;"),
        ("MAINTENANCE", 1, "found 1; expected True, False or a message"),
        ("MAX_CONCURRENT_REQUESTS", 0, "found int 0; expected at least 1;"),
        ("MAX_CONCURRENT_REQUESTS", 2.0, "found float 2.0; expected an integer;"),
        ("RATE_LIMIT", 100, "found int 100; expected a string; write RATE_LIMIT = '100/minute'."),
        ("RATE_LIMIT", "", "found ''; expected a rate like '100/minute'"),
        ("RATE_LIMIT", "100/fortnight", "found '100/fortnight'; expected a rate like"),
        ("RATE_LIMIT", "0/minute", "found '0/minute'; expected a rate like"),
        ("RATE_LIMIT", "1/second;", "found '1/second;'; expected a rate like"),
        ("RATE_LIMIT", "10 minutes", "found '10 minutes'; expected a rate like"),
        ("MAX_CONTENT_LENGTH", True, "found bool True; expected an integer;"),
        ("MAX_CONTENT_LENGTH", -1, "found int -1; expected at least 0;"),
        ("TRUSTED_HOSTS", "a.org", "found str 'a.org'; expected a list;"),
        ("DEADLINE_S", 0, "found int 0; expected more than 0; write DEADLINE_S = 30.0."),
        ("DEADLINE_S", float("nan"), "found float nan; expected a finite number;"),
        ("DEADLINE_S", float("inf"), "found float inf; expected a finite number;"),
        ("DEADLINE_ACTION", "interrupt", "found str 'interrupt'; expected 'report' or 'answer';"),
        ("CLIENTS", {}, "expected a dict of client name → 'sha256:…' with at least one client"),
        ("OIDC", "https://a.org", "expected a dict, like {'issuer': "),
        ("QUOTA_BYTES", "1 GB", "found str '1 GB'; expected an integer;"),
        ("AUDIT_ACCEPT", ["a"], "found list ['a']; expected a dict;"),
        ("DATABASE_URI", None, "found None; expected a string; see 'DATABASE_URI'"),
        ("DEBUG", 1, "shows the code and its secrets to clients; remove it. For development: "),
    ],
)
def test_an_invalid_value_is_one_problem(key: str, value: Any, problem: str) -> None:
    """The error for an invalid value is one line that names the key, the value and the remedy."""
    problems = _problems(**{key: value})

    assert [True] == [one.startswith(f"'{key}': {problem}") for one in problems]


@pytest.mark.parametrize(
    ("key", "value", "place"),
    [
        ("BLUEPRINTS", ["landing", 7], "'BLUEPRINTS[1]': found int 7"),
        ("TRUSTED_HOSTS", ["a.org", "a b"], "'TRUSTED_HOSTS[1]': found 'a b'; expected a host"),
        (
            "TRUSTED_HOSTS",
            ["a.org:80"],
            "'TRUSTED_HOSTS[0]': found 'a.org:80'; expected a host name without a p",
        ),
        (
            "TRUSTED_HOSTS",
            ["[::1]:80"],
            "'TRUSTED_HOSTS[0]': found '[::1]:80'; expected a host name without a p",
        ),
        (
            "TRUSTED_HOSTS",
            ["http://a.org"],
            "'TRUSTED_HOSTS[0]': found 'http://a.org'; expected a host name without",
        ),
        (
            "TRUSTED_HOSTS",
            ["a.org/shop"],
            "'TRUSTED_HOSTS[0]': found 'a.org/shop'; expected a host name without a",
        ),
        ("TRUSTED_HOSTS", ["::1"], "'TRUSTED_HOSTS[0]': found '::1'; expected a host name"),
        ("TRUSTED_HOSTS", ["[::g]"], "'TRUSTED_HOSTS[0]': found '[::g]'; expected a host name"),
        ("TRUSTED_HOSTS", ["a..org"], "'TRUSTED_HOSTS[0]': found 'a..org'; expected a host name"),
        ("TRUSTED_HOSTS", ["a.org."], "'TRUSTED_HOSTS[0]': found 'a.org.'; expected a host name"),
        ("TRUSTED_HOSTS", ["*"], "'TRUSTED_HOSTS[0]': found '*'; expected a host name"),
        ("SECRET_KEY_FALLBACKS", [KEY, "dev"], "'SECRET_KEY_FALLBACKS[1]': is a well-known"),
        ("AUDIT_ACCEPT", {"a": 7}, "'AUDIT_ACCEPT['a']': found int 7"),
        ("AUDIT_ACCEPT", {7: "a"}, "'AUDIT_ACCEPT[7]': found int 7"),
    ],
)
def test_a_problem_inside_a_value_has_its_place(key: str, value: Any, place: str) -> None:
    """The error for an invalid item of a list or dict names its place in Python notation."""
    assert [True] == [one.startswith(place) for one in _problems(**{key: value})]


def test_every_problem_is_reported_at_once() -> None:
    """All problems of a tenant file are reported together."""
    problems = _problems("Acme", BLUEPRINT=[], DEBUG=True, URL_PREFIX="a", BLUEPRINTS=[], ENABLED=0)

    keys = [
        "'BLUEPRINT'",
        "'DEBUG'",
        "a tenant's name",
        "'URL_PREFIX'",
        "'BLUEPRINTS'",
        "'ENABLED'",
    ]
    assert keys == [key for key, one in zip(keys, problems, strict=True) if one.startswith(key)]


@pytest.mark.parametrize("key", ["SECRET_KEY", "SECRET_KEY_FALLBACKS", "DATABASE_URI", "SECRETKEY"])
def test_a_problem_contains_no_secret(key: str) -> None:
    """Error messages never contain values of secret keys, whatever their type."""
    values: list[Any] = ["hunter2", b"hunter2", ["hunter2"], {"hunter2": "hunter2"}]

    problems = [_problems(**{key: value}) for value in values]

    assert [(True, False)] * 4 == [(bool(one), "hunter2" in str(one)) for one in problems]


def test_a_secret_under_another_key_is_not_shown() -> None:
    """A secret in an error message is masked before the message is shortened."""
    secret = f"hunter2-{KEY * 3}"
    values = GOOD | {"URL_PREFIX": secret, "RATE_LIMIT": f"x{secret}", "APP_NAME": [KEY]}

    with pytest.raises(TenantFileError) as refused:
        parse_tenant("acme", values, data_dir=Path("data"), secrets=[secret])

    assert [False, False] == [word in str(refused.value) for word in ("hunter2", KEY[:9])]
    assert "'URL_PREFIX': found '********'; expected" in str(refused.value)


def test_an_invalid_name_is_rejected() -> None:
    """A tenant's name must be safe in folder names, URL prefixes and cookie names."""
    names = ["", "Acme", "9", "-a", "_a", "a b", "a.b", "é", "a" * 64, "a\n"]
    rule = (
        "a tenant's name has 1 to 63 characters of a-z, 0-9, _ and -, and begins with a letter; "
        "rename the file."
    )

    assert {(rule,)} == {tuple(_problems(name)) for name in names}


def test_the_name_of_a_folder_of_the_host_is_rejected() -> None:
    """A tenant cannot be named `secrets`, because `<data>/secrets` holds all tenants' keys."""
    [problem] = _problems("secrets")

    assert problem.startswith("no tenant can be named 'secrets', because the folder <data>/secrets")


def test_a_misspelt_key_names_the_known_one() -> None:
    """A key that is one edit away from a known key is rejected as a misspelling."""
    meant = {
        "BLUEPRINT": "BLUEPRINTS",
        "DATABASE_URL": "DATABASE_URI",
        "SECRETKEY": "SECRET_KEY",
        "SERCET_KEY": "SECRET_KEY",
        "URLPREFIX": "URL_PREFIX",
        "ENABLE": "ENABLED",
        "TRUSTED_HOST": "TRUSTED_HOSTS",
        "ISOLATIONS": "ISOLATION",
    }

    problems = _problems(**dict.fromkeys(meant, "x"))

    assert problems == [
        f"'{key}': unknown key; did you mean '{known}'? Rename it." for key, known in meant.items()
    ]


@pytest.mark.parametrize("key", PLANNED_KEYS)
def test_a_key_of_a_later_version_is_rejected(key: str) -> None:
    """A key that only later versions of Tenantry support is rejected."""
    problem = f"'{key}': comes with a later version of Tenantry; remove it."

    assert [problem] == _problems(**{key: "process"})


def test_no_key_is_both_built_and_planned() -> None:
    """No key is in both the list of existing keys and the list of planned keys."""
    assert set() == set(KEYS.values()) & set(PLANNED_KEYS)


@pytest.mark.parametrize("key", sorted(Flask.default_config))
def test_flasks_own_keys_are_never_misspelt(key: str) -> None:
    """Flask's own keys are accepted, even if they are one edit away from a key of Tenantry."""
    assert [] == [problem for problem in _problems(**{key: None}) if "unknown key" in problem]


def test_one_edit_is_an_insertion_a_deletion_a_replacement_or_a_swap() -> None:
    """One edit is an insertion, deletion, replacement or swap of one character."""
    others = {"KEYS", "EY", "KAY", "KYE", "EKY", "KEEY", "KEY", "YEK", "KEYED", "SKEYS", "K", ""}

    near = {other for other in others if is_one_edit_away("KEY", other)}

    assert {"KEYS", "EY", "KAY", "KYE", "EKY", "KEEY"} == near
    assert near == {other for other in others if is_one_edit_away(other, "KEY")}


def test_a_tenant_is_frozen() -> None:
    """A `Tenant` object is immutable, because threads share it."""
    tenant = _parse()

    with pytest.raises(ValidationError, match="frozen"):
        setattr(tenant, "app_name", "Globex")  # noqa: B010 - mypy would reject a plain assignment


def test_a_tenant_prints_no_secret() -> None:
    """The `repr` of a tenant contains no secrets."""
    tenant = _parse(DATABASE_URI="sqlite://a:hunter2@/", MAIL_PASSWORD="hunter2")

    assert (False, False) == ("hunter2" in repr(tenant), KEY in repr(tenant))


def test_config_is_a_copy_for_flask() -> None:
    """`config()` returns a copy of all keys for `app.config`."""
    tenant = _parse(MAIL={"to": ["a"]}, SECRET_KEY_FALLBACKS=[KEY[::-1]])
    tenant.config()["MAIL"]["to"].append("b")
    tenant.config()["BLUEPRINTS"].append("b")

    config = tenant.config()

    assert set(KEYS.values()) | {"MAIL"} == config.keys()
    assert ({"to": ["a"]}, ["landing"], KEY, [KEY[::-1]]) == (
        config["MAIL"],
        config["BLUEPRINTS"],
        config["SECRET_KEY"],
        config["SECRET_KEY_FALLBACKS"],
    )


def test_debug_is_allowed_in_development() -> None:
    """On a developer's machine, a tenant may set `DEBUG` and `TESTING`."""
    tenant = parse_tenant(
        "acme", GOOD | {"DEBUG": True}, data_dir=Path("/data"), is_development=True
    )

    assert {"DEBUG": True} == dict(tenant.flask)
