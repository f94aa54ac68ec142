"""The host's settings, read from `TENANTRY_…` environment variables.

The description of each field gives the unit of the setting and its reason. A test compares the
descriptions with the settings table in the documentation.
"""

import difflib
import ipaddress
import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from tenantry.grammar import MAX_PORT, check_host_name, check_own_host_name
from tenantry.planned import PLANNED, PLANNED_SETTINGS

PREFIX = "TENANTRY_"

ANY_ADDRESS = ("0.0.0.0", "::")  # noqa: S104 - the code compares these addresses and does not bind to them
"""The addresses that stand for every address of the machine."""

ForwardedHeader = Literal["for", "proto", "host", "port", "prefix"]
"""The last part of the name of an `X-Forwarded-…` header, in lower case, such as `proto`."""

_STORAGE = re.compile(r"memory://|rediss?://(?!$)[^/?#\s]*(?:/[0-9]*)?(?:\?[^#\s]*)?")
_STORAGE_EXPECTED = "expected memory:// or redis://HOST:PORT/NUMBER, like redis://127.0.0.1:6379/0"

_SECRET_FIELDS = frozenset({"rate_limit_storage"})
"""Settings that can contain a password, so that error messages never show their values."""


class SettingsError(ValueError):
    """A `TENANTRY_…` variable is unknown or invalid. The message says how to fix the variable."""


class HostSettings(BaseSettings):
    """The settings of one host.

    The settings are immutable. `read_settings` reads the settings from the environment.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, env_ignore_empty=True)

    tenants_dir: Path = Field(
        Path("tenants"),
        description="Folder with the tenant files. Each `<name>.py` file is one tenant.",
    )
    data_dir: Path = Field(
        Path("instance"),
        description="Folder for runtime data. `<data>/<name>/` belongs to the tenant `<name>`.",
    )
    app_dir: Annotated[Path, AfterValidator(Path.absolute)] = Field(
        Path(),
        validate_default=True,
        description="Folder with your own applications and endpoints. Each tenant has its own copy "
        "of every module in this folder. A relative path is relative to the folder in which the "
        "host starts.",
        json_schema_extra={"default": "`.`"},
    )
    only: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Comma-separated names of the tenants to serve, for tenants that need a host "
        "of their own. Unset: all tenants.",
    )
    max_active: int = Field(
        1000,
        ge=1,
        description="Maximum number of apps that one process keeps in memory. Above this number, "
        "the host closes the least recently used app.",
    )
    idle_timeout_s: float = Field(
        3600.0,
        gt=0,
        allow_inf_nan=False,
        description="Seconds without a request after which the host closes a tenant's app to free "
        "memory. The next request rebuilds the app.",
    )
    db_connections: int = Field(
        20,
        ge=1,
        description="Maximum number of open database connections in one process, shared by all "
        "tenants. By default, a PostgreSQL server accepts 100 connections in total.",
    )
    max_concurrent_requests: int | None = Field(
        None,
        ge=1,
        description="Maximum number of concurrent requests per tenant, across all workers, so that "
        "no tenant takes every thread. Unset: a fair share that depends on the load.",
    )
    deadline_s: float = Field(
        30.0,
        gt=0,
        allow_inf_nan=False,
        description="Seconds after which the host reports a request and counts it as stuck. Most "
        "proxies time out after 60 s.",
    )
    deadline_action: Literal["report", "answer"] = Field(
        "report",
        description="What the host does when a request exceeds its deadline. `report` only logs "
        "the request; `answer` also sends 504 if the response has not started.",
    )
    drain_timeout_s: float = Field(
        30.0,
        gt=0,
        allow_inf_nan=False,
        description="Seconds that a replaced app has to finish its requests. The host then cuts "
        "off the remaining requests, so that old code does not run forever.",
    )
    rate_limit_storage: str = Field(
        "memory://",
        repr=False,  # can contain a password
        description="Where `RATE_LIMIT` counts requests: `memory://` (per host), or `redis://…`, "
        "which several hosts can share.",
    )
    trusted_proxies: int = Field(
        0,
        ge=0,
        description="Number of trusted proxies in front of the host. With 0, the host ignores "
        "`X-Forwarded-…` headers, because any client can send them.",
    )
    trusted_headers: Annotated[tuple[ForwardedHeader, ...], NoDecode] = Field(
        ("for", "proto"),
        description="Comma-separated `X-Forwarded-…` headers that the host believes from the "
        "trusted proxies: `for`, `proto`, `host`, `port`, `prefix`. Name only headers that your "
        "proxy replaces, because proxies pass on other headers as the client sent them.",
    )
    trusted_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Comma-separated host names, without ports, that the host answers to "
        "(`.example.org` includes subdomains). Unset: any name, even one that a client made up.",
    )
    host_pattern: str | None = Field(
        None,
        description="Host name of each tenant that sets neither `HOSTS` nor `URL_PREFIX`, such as "
        "`{name}.apps.example.org`. Unset: these tenants answer at `/<name>`.",
    )
    admin_bind: str = Field(
        "127.0.0.1:8001",
        description="`IP:PORT` of the operators' listener, which clients must not be able to "
        "reach. `off` disables this listener.",
    )
    admin_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Comma-separated host names, without ports, that the operators' listener "
        "answers to, in addition to IP addresses and `localhost`. With any other name, a website "
        "could read the operators' pages through an operator's browser (DNS rebinding).",
    )
    log_format: Literal["console", "json"] = Field(
        "console",
        description="`console` writes text for people; `json` writes one JSON object per line.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info",
        description="Minimum severity of log lines: `debug`, `info`, `warning` or `error`.",
    )

    @field_validator("only", "trusted_hosts", "trusted_headers", "admin_hosts", mode="before")
    @classmethod
    def _split_names(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(name.strip() for name in value.split(",") if name.strip())
        return value

    @field_validator("trusted_hosts", "admin_hosts")
    @classmethod
    def _check_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            try:
                check_host_name(name)
            except ValueError as error:
                raise ValueError(f"{name!r}: {error}") from None
        return value

    @field_validator("host_pattern")
    @classmethod
    def _check_pattern(cls, value: str | None) -> str | None:
        if value is not None:
            if value.partition(".")[0].count("{name}") != 1 or value.count("{") != 1:
                raise ValueError(
                    "expected {name} once, in the first label, like {name}.apps.example.org"
                )
            check_own_host_name(value.replace("{name}", "a"))
            value = value.lower()
        return value

    @field_validator("rate_limit_storage")
    @classmethod
    def _check_storage(cls, value: str) -> str:
        if not _STORAGE.fullmatch(value):
            raise ValueError(_STORAGE_EXPECTED)
        if value != "memory://":
            if find_spec("redis") is None:
                raise ValueError("Redis needs a library: pip install 'tenantry[redis]'")
            _check_redis(value)
        return value

    @field_validator("admin_bind")
    @classmethod
    def _check_bind(cls, value: str) -> str:
        if value != "off":
            parse_bind(value)
        return value

    @property
    def folders_without_code(self) -> tuple[str, ...]:
        """The folders in which no tenant's code is looked up."""
        return str(self.data_dir.absolute()), str(self.tenants_dir.absolute())

    @property
    def admin_address(self) -> tuple[str, int] | None:
        """IP address and port of the operators' listener; None if `admin_bind` is `off`."""
        return None if self.admin_bind == "off" else parse_bind(self.admin_bind)

    @property
    def is_admin_public(self) -> bool:
        """Whether every network address of the machine reaches the operators' listener."""
        return self.admin_address is not None and self.admin_address[0] in ANY_ADDRESS


def parse_bind(value: str) -> tuple[str, int]:
    """Split `IP:PORT` into an IP address and a port.

    Raises:
        ValueError: the value is not an IP address (or `localhost`) and a port.
    """
    host, _, port = value.rpartition(":")
    host = "127.0.0.1" if host == "localhost" else host.strip("[]")
    try:
        address = str(ipaddress.ip_address(host))
    except ValueError:
        raise ValueError("expected an IP address and a port, like 127.0.0.1:8001") from None
    if not (re.fullmatch("[0-9]{1,5}", port) and 1 <= int(port) <= MAX_PORT):
        raise ValueError("expected a port from 1 to 65535 after the colon")
    return address, int(port)


def _check_redis(url: str) -> None:
    """Raise a `ValueError` if redis-py cannot use the URL, because every tenant would fail."""
    from redis import ConnectionPool  # noqa: PLC0415 - optional, and takes 0.1 s

    try:
        # `make_connection` creates a connection object but does not connect.
        ConnectionPool.from_url(url).make_connection()
    except (ValueError, TypeError, AttributeError):
        # redis-py's own message can contain the password.
        raise ValueError(_STORAGE_EXPECTED) from None


def read_settings() -> HostSettings:
    """Read the settings from the environment.

    Raises:
        SettingsError: at least one variable is unknown or invalid. The message names every unknown
            or invalid variable.
    """
    problems = [_unknown(name) for name in sorted(os.environ) if _is_unknown(name)]
    try:
        settings = HostSettings()
    except ValidationError as error:
        problems += [_invalid(str(e["loc"][0]), e["input"], e["msg"]) for e in error.errors()]
    if problems:
        raise SettingsError(" ".join(problems))
    return settings


def environment_variable(field: str) -> str:
    """Return the environment variable of a field: `TENANTRY_DATA_DIR` for `data_dir`."""
    return PREFIX + field.upper()


def _is_unknown(name: str) -> bool:
    return name.startswith(PREFIX) and _field(name) not in HostSettings.model_fields


def _field(name: str) -> str:
    return name.removeprefix(PREFIX).lower()


def _unknown(name: str) -> str:
    if _field(name) in PLANNED_SETTINGS:
        return f"{name}: {PLANNED}"
    # The comparison ignores the common prefix `TENANTRY_`, which would make any two names similar.
    fields = [*HostSettings.model_fields, *PLANNED_SETTINGS]
    close = difflib.get_close_matches(_field(name), fields, n=1)
    if close:
        hint = f"did you mean {environment_variable(close[0])}?"
    else:
        hint = f"Settings: {', '.join(map(environment_variable, HostSettings.model_fields))}."
    return f"{name}: no such setting; {hint}"


def _invalid(field: str, found: object, message: str) -> str:
    shown = "a value" if field in _SECRET_FIELDS else repr(found)
    text = message.removeprefix("Value error, ").partition(", unable to parse")[0]
    text = text.replace("Input should be", "expected")
    text = text.replace("a valid integer", "an integer").replace("a valid ", "a ")
    return f"{environment_variable(field)}: found {shown}; {text}."
