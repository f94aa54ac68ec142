"""The host's settings come from the environment, and all mistakes are reported together."""

from pathlib import Path

import pytest

from tenantry.planned import PLANNED_SETTINGS
from tenantry.settings import (
    HostSettings,
    SettingsError,
    environment_variable,
    parse_bind,
    read_settings,
)


def test_no_variable_is_needed() -> None:
    """A host needs no settings. By default, operators' pages listen on the loopback interface."""
    settings = read_settings()

    assert (Path("tenants"), Path("instance")) == (settings.tenants_dir, settings.data_dir)
    assert ("127.0.0.1", 8001) == settings.admin_address


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("tenants_dir", "/srv/tenants", Path("/srv/tenants")),
        ("max_active", "12", 12),
        ("idle_timeout_s", "1.5", 1.5),
        ("trusted_hosts", "a.org, .b.org,", ("a.org", ".b.org")),
        ("trusted_hosts", "[::1], 192.0.2.1", ("[::1]", "192.0.2.1")),
        ("trusted_hosts", "", ()),
        ("only", "acme, globex", ("acme", "globex")),
        ("admin_bind", "off", "off"),
        ("rate_limit_storage", "rediss://:key@cache:6380/1", "rediss://:key@cache:6380/1"),
        ("log_format", "json", "json"),
        ("max_concurrent_requests", "", None),
    ],
)
def test_a_variable_sets_its_field(
    monkeypatch: pytest.MonkeyPatch, field: str, text: str, value: object
) -> None:
    """Each setting is read from an environment variable, `TENANTRY_` and its upper-case name.

    An empty variable counts as unset.
    """
    monkeypatch.setenv(environment_variable(field), text)

    assert value == getattr(read_settings(), field)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("DATA_DIRS", "x", "no such setting; did you mean TENANTRY_DATA_DIR?"),
        ("XYZ", "x", "no such setting; Settings: TENANTRY_TENANTS_DIR, "),
        ("FLEET", "postgresql://a", "comes with a later version of Tenantry; remove it."),
        ("FLEETS", "postgresql://a", "no such setting; did you mean TENANTRY_FLEET?"),
        ("MAX_ACTIVE", "many", "found 'many'; expected an integer."),
        ("MAX_ACTIVE", "0", "found '0'; expected greater than or equal to 1."),
        ("DEADLINE_S", "-1", "found '-1'; expected greater than 0."),
        ("DEADLINE_S", "inf", "found 'inf'; expected a finite number."),
        ("IDLE_TIMEOUT_S", "nan", "found 'nan'; expected a finite number."),
        ("LOG_FORMAT", "xml", "found 'xml'; expected 'console' or 'json'."),
        ("ADMIN_BIND", "8001", "found '8001'; expected an IP address and a port"),
        ("ADMIN_BIND", "127.0.0.1:99999", "expected a port from 1 to 65535"),
        ("ADMIN_BIND", "127.0.0.1:0", "expected a port from 1 to 65535"),
        ("TRUSTED_HOSTS", "a.org,b.org:80", "'b.org:80': expected a host name without a port"),
        ("TRUSTED_HOSTS", "[::1]:80", "'[::1]:80': expected a host name without a port"),
        (
            "TRUSTED_HOSTS",
            "https://a.org",
            "'https://a.org': expected a host name without a",
        ),
        ("TRUSTED_HOSTS", "a b", "'a b': expected a host name, like 'shop.example.org'"),
        ("TRUSTED_HOSTS", "[::g]", "'[::g]': expected a host name, like 'shop.example.org'"),
        ("TRUSTED_HOSTS", "*", "'*': expected a host name, like 'shop.example.org'"),
        ("ADMIN_HOSTS", "ops.org:80", "'ops.org:80': expected a host name without a port"),
        ("TRUSTED_HEADERS", "for,forwarded", "expected 'for', 'proto', 'host', 'port' or 'prefix'"),
        ("RATE_LIMIT_STORAGE", "redis", "expected memory:// or redis://"),
        ("RATE_LIMIT_STORAGE", "redis://localhost:abc", "like redis://127.0.0.1:6379/0."),
        ("RATE_LIMIT_STORAGE", "redis://localhost:6379/first", "like redis://127.0.0.1:6379/0."),
        ("RATE_LIMIT_STORAGE", "redis://localhost?no=1", "like redis://127.0.0.1:6379/0."),
        ("RATE_LIMIT_STORAGE", "redis://[::1", "like redis://127.0.0.1:6379/0."),
    ],
)
def test_a_mistake_names_the_variable_and_the_remedy(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, message: str
) -> None:
    """The error for an invalid setting is one line that names the variable and what it expects."""
    monkeypatch.setenv(f"TENANTRY_{name}", text)

    with pytest.raises(SettingsError) as caught:
        read_settings()

    assert str(caught.value).startswith(f"TENANTRY_{name}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_mistake_is_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """All unknown and invalid variables are reported in one error."""
    names = ["TENANTRY_COLOUR", "TENANTRY_DATADIR", "TENANTRY_DEADLINE_S", "TENANTRY_MAX_ACTIVE"]
    for name in names:
        monkeypatch.setenv(name, "x")

    with pytest.raises(SettingsError) as caught:
        read_settings()

    assert names == [name for name in names if f"{name}: " in str(caught.value)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("RATE_LIMIT_STORAGE", "reddis://:hunter2@cache:6379"),
        ("RATE_LIMIT_STORAGE", "redis://:hunter2@cache:hunter2"),
    ],
)
def test_a_message_contains_no_secret(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    """The error for an invalid setting never shows a value that may contain a password."""
    monkeypatch.setenv(f"TENANTRY_{name}", text)

    with pytest.raises(SettingsError) as caught:
        read_settings()

    assert f"TENANTRY_{name}: found a value; " in str(caught.value)
    assert (False, None, None) == (
        "hunter2" in str(caught.value),
        caught.value.__cause__,
        caught.value.__context__,
    )


def test_settings_print_no_secret() -> None:
    """The `repr` of the settings does not show the password of the rate storage."""
    settings = HostSettings(rate_limit_storage="redis://:hunter2@cache")

    assert "hunter2" not in repr(settings)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8001", ("127.0.0.1", 8001)),
        ("localhost:8001", ("127.0.0.1", 8001)),
        ("[::1]:8001", ("::1", 8001)),
        ("0.0.0.0:65535", ("0.0.0.0", 65535)),
    ],
)
def test_a_listener_is_an_address_and_a_port(text: str, address: tuple[str, int]) -> None:
    """`ADMIN_BIND` accepts an IPv4 address, an IPv6 address in brackets, or `localhost`."""
    assert address == parse_bind(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "8001",
        ":8001",
        "127.0.0.1",
        "127.0.0.1:",
        "127.0.0.1:0",
        "host:80",
        "127.0.0.1:-1",
        "::1",
    ],
)
def test_anything_else_is_not_a_listener(text: str) -> None:
    """`ADMIN_BIND` rejects any host name except `localhost`, and an address without a port."""
    with pytest.raises(ValueError, match="expected"):
        parse_bind(text)


@pytest.mark.parametrize("field", PLANNED_SETTINGS)
def test_a_setting_of_a_later_version_is_rejected(
    monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    """A setting that is planned for a later version is rejected without showing its value."""
    monkeypatch.setenv(environment_variable(field), "hunter2")

    with pytest.raises(SettingsError) as caught:
        read_settings()

    expected = f"{environment_variable(field)}: comes with a later version of Tenantry; remove it."
    assert expected == str(caught.value)


def test_no_setting_is_both_built_and_planned() -> None:
    """No setting is in both the list of existing settings and the list of planned settings."""
    assert set() == HostSettings.model_fields.keys() & set(PLANNED_SETTINGS)


def test_only_proxies_headers_that_proxies_usually_replace_are_trusted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By default, the host believes `X-Forwarded-For` and `X-Forwarded-Proto` only."""
    by_default = read_settings().trusted_headers
    monkeypatch.setenv("TENANTRY_TRUSTED_HEADERS", "for, host")

    assert [("for", "proto"), ("for", "host")] == [by_default, read_settings().trusted_headers]


@pytest.mark.parametrize(
    ("bind", "is_public"),
    [("0.0.0.0:1", True), ("[::]:1", True), ("127.0.0.1:1", False), ("off", False)],
)
def test_a_wildcard_makes_the_operators_listener_public(bind: str, is_public: bool) -> None:
    """The operators' listener is public only on an address that means all addresses."""
    assert is_public == HostSettings(admin_bind=bind).is_admin_public
