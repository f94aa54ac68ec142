"""The host's settings: one typed class, read from `TENANTRY_…` environment variables.

Each field has its unit and reason in its description; the README's table is checked against them.
"""

import difflib
import ipaddress
import os
import re
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

PREFIX = "TENANTRY_"

_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST_NAME = re.compile(rf"\.?{_LABEL}(?:\.{_LABEL})*")

_STORAGE = re.compile(r"memory://|rediss?://(?!$)[^/?#\s]*(?:/[0-9]*)?(?:\?[^#\s]*)?")
_STORAGE_EXPECTED = "expected memory:// or redis://HOST:PORT/NUMBER, like redis://127.0.0.1:6379/0"

_SECRET_FIELDS = frozenset({"admin_token", "rate_limit_storage"})


class SettingsError(ValueError):
    """A `TENANTRY_…` variable is unknown or ill-typed; one line, naming each and the remedy."""


class HostSettings(BaseSettings):
    """The settings of one host, frozen once read. Build it with `read_settings`."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, env_ignore_empty=True)

    tenants_dir: Path = Field(
        Path("tenants"),
        description="Folder of the tenant files, and of nothing else: each `<name>.py` is served.",
    )
    data_dir: Path = Field(
        Path("instance"),
        description="Folder of run-time data; `<data>/<name>/` belongs to that tenant alone.",
    )
    only: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Names of the tenants that this host serves, comma-separated, for a process "
        "of their own; unset: all.",
    )
    max_active: int = Field(
        1000,
        ge=1,
        description="Instances kept built in one process, which bounds its memory; the least "
        "recently used leave first.",
    )
    idle_timeout_s: float = Field(
        3600.0,
        gt=0,
        allow_inf_nan=False,
        description="Seconds without a request after which an instance is put to sleep, to "
        "free its memory.",
    )
    db_connections: int = Field(
        20,
        ge=1,
        description="Open database connections over all tenants of one process; a PostgreSQL "
        "server takes 100 of all its clients.",
    )
    max_concurrent_requests: int | None = Field(
        None,
        ge=1,
        description="Requests in flight per tenant, over all workers, so that none takes every "
        "thread; unset: a fair share.",
    )
    deadline_s: float = Field(
        30.0,
        gt=0,
        allow_inf_nan=False,
        description="Seconds after which a request is reported and its slot counts as stuck: "
        "before proxies give up, at 60.",
    )
    deadline_action: Literal["report", "answer"] = Field(
        "report",
        description="What happens then besides the report: `report`, nothing; `answer`, the client "
        "gets 504 if nothing has been sent yet.",
    )
    drain_timeout_s: float = Field(
        30.0,
        gt=0,
        allow_inf_nan=False,
        description="Seconds that a retired instance may take to finish its requests; then "
        "they are cut, so that no old code serves for ever.",
    )
    rate_limit_storage: str = Field(
        "memory://",
        repr=False,  # it may hold a password
        description="Where rates are counted: `memory://`, or `redis://…`, which several hosts "
        "can share.",
    )
    trusted_proxies: int = Field(
        0,
        ge=0,
        description="How many proxies in front are believed their `X-Forwarded-…`; 0: none, for "
        "clients can send it too.",
    )
    trusted_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Host names that are answered, comma-separated, without ports (`.a.org`: with "
        "subdomains); unset: any, also one that a client made up.",
    )
    admin_bind: str = Field(
        "127.0.0.1:8001",
        description="Listener of the operators' pages, `HOST:PORT`, where no client reaches them; "
        "`off`: none.",
    )
    admin_token: str | None = Field(
        None,
        min_length=16,
        repr=False,
        description="Password of the dashboard, at least 16 characters, too long to guess; "
        "unset: made on its first start.",
    )
    log_format: Literal["console", "json"] = Field(
        "console", description="`console` for people, `json` for machines: one object per line."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info",
        description="The least severe level that is logged: `debug`, `info`, `warning` or `error`.",
    )

    @field_validator("only", "trusted_hosts", mode="before")
    @classmethod
    def _split_names(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(name.strip() for name in value.split(",") if name.strip())
        return value

    @field_validator("trusted_hosts")
    @classmethod
    def _check_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            _check_host_name(name)
        return value

    @field_validator("rate_limit_storage")
    @classmethod
    def _check_storage(cls, value: str) -> str:
        if not _STORAGE.fullmatch(value):
            raise ValueError(_STORAGE_EXPECTED)
        if value != "memory://":
            if find_spec("redis") is None:
                raise ValueError("that needs a library: pip install 'tenantry[redis]'")
            _check_redis(value)
        return value

    @field_validator("admin_bind")
    @classmethod
    def _check_bind(cls, value: str) -> str:
        if value != "off":
            parse_bind(value)
        return value

    @property
    def admin_address(self) -> tuple[str, int] | None:
        """IP address and port of the admin listener; None when it is off."""
        return None if self.admin_bind == "off" else parse_bind(self.admin_bind)


def parse_bind(value: str) -> tuple[str, int]:
    """Split `HOST:PORT` into an IP address and a port.

    Raises:
        ValueError: not of that form. A name other than `localhost` is refused, because what it
            resolves to is not known before the listener is open.
    """
    host, _, port = value.rpartition(":")
    host = "127.0.0.1" if host == "localhost" else host.strip("[]")
    try:
        address = str(ipaddress.ip_address(host))
    except ValueError:
        raise ValueError("expected an IP address and a port, like 127.0.0.1:8001") from None
    if not (re.fullmatch("[0-9]{1,5}", port) and 1 <= int(port) <= 65535):  # noqa: PLR2004 - TCP
        raise ValueError("expected a port from 1 to 65535 after the colon")
    return address, int(port)


def _check_redis(url: str) -> None:
    """Refuse a URL with which no connection could even be tried: each tenant would fail by it."""
    from redis import ConnectionPool  # noqa: PLC0415 - an extra, and 0.1 s

    try:
        ConnectionPool.from_url(url).make_connection()  # which connects to nothing yet
    except (ValueError, TypeError, AttributeError):
        raise ValueError(_STORAGE_EXPECTED) from None  # the library's text may hold the password


def _check_host_name(name: str) -> None:
    if "/" in name or re.fullmatch(r"[^:]+:\d*|\[.*\]:\d*", name):
        raise ValueError(f"write {name!r} without a scheme, a path and a port, like shop.a.org")
    if name.startswith("[") and name.endswith("]"):
        with suppress(ValueError):
            ipaddress.IPv6Address(name[1:-1])
            return
    if not _HOST_NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no host name; write it like shop.a.org, .a.org or [::1]")


def read_settings() -> HostSettings:
    """Read the settings from the environment.

    Raises:
        SettingsError: naming every unknown or ill-typed variable at once.
    """
    problems = [_unknown(name) for name in sorted(os.environ) if _is_unknown(name)]
    try:
        settings = HostSettings()
    except ValidationError as error:
        problems += [_ill_typed(str(e["loc"][0]), e["input"], e["msg"]) for e in error.errors()]
    if problems:
        raise SettingsError(" ".join(problems))
    return settings


def variable(field: str) -> str:
    """Return the environment variable of a field: `data_dir` is `TENANTRY_DATA_DIR`."""
    return PREFIX + field.upper()


def _is_unknown(name: str) -> bool:
    return name.startswith(PREFIX) and name[len(PREFIX) :].lower() not in HostSettings.model_fields


def _unknown(name: str) -> str:
    # Without the prefix, which would make any two names look alike.
    close = difflib.get_close_matches(name[len(PREFIX) :].lower(), HostSettings.model_fields, n=1)
    known = ", ".join(variable(field) for field in HostSettings.model_fields)
    hint = f"did you mean {variable(close[0])}?" if close else f"Settings: {known}."
    return f"{name}: no such setting; {hint}"


def _ill_typed(field: str, found: object, message: str) -> str:
    shown = "a value" if field in _SECRET_FIELDS else repr(found)
    text = message.removeprefix("Value error, ").partition(", unable to parse")[0]
    text = text.replace("Input should be", "expected").replace("String should have", "expected")
    text = text.replace("a valid integer", "an integer").replace("a valid ", "a ")
    return f"{variable(field)}: found {shown}; {text}."
