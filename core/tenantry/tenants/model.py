"""Defines a tenant: the validated, immutable content of one tenant file.

The fields of `Tenant` are the keys of a tenant file. A test compares the table in
`tenants/README.md` with the descriptions and defaults of these fields.
"""

import copy
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    SecretStr,
    ValidationInfo,
    field_validator,
)

from tenantry.database.options import parse_options
from tenantry.database.url import check_database_url, parse_database_url
from tenantry.endpoints.app_migrations import migrations_folder
from tenantry.endpoints.app_reference import parse_app
from tenantry.grammar import (
    check_host_name,
    check_named_prefix,
    check_own_host_name,
    check_url_prefix,
)
from tenantry.tenants.address import Address
from tenantry.tenants.clients import Clients, parse_clients
from tenantry.tenants.openid import OpenId, parse_openid

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

BLUEPRINTS_LIMIT = 100
"""Maximum number of endpoints per tenant. Each endpoint adds about 1 ms to the build of the app."""

MIN_SECRET_KEY_CHARS = 32
"""Minimum length of `SECRET_KEY`. 32 hexadecimal digits have 128 bits, which nobody can guess."""

_HOW_TO_CREATE = "create one: python -c 'import secrets; print(secrets.token_hex(32))'"

_WELL_KNOWN_SECRETS = frozenset({
    "secret!", "secret", "secretkey", "secret_key", "secret-key", "changeme", "change-me",
    "change_me", "dev", "development", "test", "testing", "password", "default", "key", "mykey",
    "you-will-never-guess", "super-secret", "supersecret", "top-secret", "hard to guess string",
    # Flask's documentation uses the following two keys as examples.
    "192b9bdd22ab9ed4d12e236c78afcb9a393ec15f71bbf5dc987d54727823bcbf",
    '_5#y2l"f4q8z\\n\\xec]/',
})  # fmt: skip

_RATE = (
    r"\s*[1-9][0-9]{0,11}\s*(?:/|per)\s*(?:[1-9][0-9]{0,5})?\s*"
    r"(?:second|minute|hour|day|month|year)s?\s*"
)
_RATES = re.compile(rf"{_RATE}(?:[,;|]{_RATE})*", re.IGNORECASE)
"""The notation of the `limits` library (`limits.util.EXPR`), without zeros."""


def check_secret(value: str) -> str:
    """Return the secret key, or raise a `ValueError` if it is too weak to sign sessions."""
    if value.strip().lower() in _WELL_KNOWN_SECRETS:
        raise ValueError(f"is a well-known secret; {_HOW_TO_CREATE}")
    if len(value) < MIN_SECRET_KEY_CHARS:
        raise ValueError(
            f"has {len(value)} characters; expected at least {MIN_SECRET_KEY_CHARS}; "
            f"{_HOW_TO_CREATE}"
        )
    return value


def _check_secret(value: SecretStr) -> SecretStr:
    check_secret(value.get_secret_value())
    return value


def _check_rate_limit(value: str) -> str:
    if not _RATES.fullmatch(value):
        raise ValueError(
            "expected a rate like '100/minute', '5 per 2 seconds' or '10/second; 1000/day', "
            "in seconds, minutes, hours, days, months or years"
        )
    return value


def _check_maintenance(value: object) -> object:
    if not isinstance(value, bool | str):
        raise ValueError("expected True, False or a message for the clients")  # noqa: TRY004 - pydantic expects ValueError
    return value


def _check_app_dir(value: str) -> str:
    path = Path(value).absolute()
    if not path.is_dir():
        raise ValueError("there is no such folder")
    return sys.intern(str(path))  # thousands of tenants have the same folder


def _check_app(value: str) -> str:
    parse_app(value)
    return value


def _list_to_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _check_prefix(value: str, info: ValidationInfo) -> str:
    # If `HOSTS` is invalid, the data has no hosts, and one problem is enough.
    check = check_named_prefix if info.data.get("hosts", True) else check_url_prefix
    return check(value)


_Prefixes = Annotated[
    tuple[Annotated[str, AfterValidator(check_url_prefix)], ...], BeforeValidator(_list_to_tuple)
]
_HostNames = Annotated[
    tuple[Annotated[str, AfterValidator(check_own_host_name)], ...], BeforeValidator(_list_to_tuple)
]


def _parse_clients(value: object, info: ValidationInfo) -> Clients | None:
    return parse_clients(value, info.data["name"], info.data.get("blueprints"))


def _parse_database_options(value: object, info: ValidationInfo) -> dict[str, Any]:
    url = info.data.get("database_uri")  # None if the URL is invalid
    return {} if url is None else parse_options(url.get_secret_value(), value)


_SecretKey = Annotated[SecretStr, AfterValidator(_check_secret)]


class Tenant(BaseModel):
    """The content of one version of a tenant file, which is immutable, so threads can share it."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", populate_by_name=True)

    name: str
    file: str = Field("", description="The file's path, as messages show it.")
    digest: str = Field("", description="SHA-256 of the file's bytes.")
    keys_with_secrets: tuple[str, ...] = Field(
        (), description="Keys that contain a value of `secret()`."
    )
    keys_set: tuple[str, ...] = Field((), description="Keys that the file sets.")
    flask: Mapping[str, Any] = Field(
        default_factory=dict,
        repr=False,
        description="All other keys of the tenant file, which go to `app.config` unchanged.",
    )

    app_name: str = Field(
        "",
        alias="APP_NAME",
        max_length=200,
        examples=["Acme Ltd"],
        description="Display name.",
        json_schema_extra={"default": "the tenant's name"},
    )
    hosts: _HostNames = Field(
        (),
        alias="HOSTS",
        examples=[["shop.example.org"]],
        description="Host names of the tenant's own; the tenant answers only under them. The first "
        "is canonical, and the others redirect to it.",
        json_schema_extra={"default": "`[]`"},
    )
    url_prefix: Annotated[str, AfterValidator(_check_prefix)] = Field(
        alias="URL_PREFIX",
        examples=["/acme"],
        description="URL prefix under which the tenant is served. With `HOSTS`, also `/`.",
        json_schema_extra={"default": "`/<name>`; `/` with `HOSTS`"},
    )
    old_hosts: _HostNames = Field(
        (),
        alias="OLD_HOSTS",
        examples=[["old.example.org"]],
        description="Former host names, which redirect to the first name in `HOSTS`.",
        json_schema_extra={"default": "`[]`"},
    )
    old_prefixes: _Prefixes = Field(
        (),
        alias="OLD_PREFIXES",
        examples=[["/old"]],
        description="Former URL prefixes, which redirect to the present address.",
        json_schema_extra={"default": "`[]`"},
    )
    secret_key: _SecretKey = Field(
        alias="SECRET_KEY",
        examples=[],
        description="Key that signs sessions: at least 32 characters, different for each tenant.",
        json_schema_extra={"default": "required"},
    )
    secret_key_fallbacks: Annotated[tuple[_SecretKey, ...], BeforeValidator(_list_to_tuple)] = (
        Field(
            (),
            alias="SECRET_KEY_FALLBACKS",
            description="Old keys that still verify sessions.",
            json_schema_extra={"default": "`[]`"},
        )
    )
    database_uri: SecretStr = Field(
        alias="DATABASE_URI",
        description="SQLAlchemy URL of the tenant's own database.",
        json_schema_extra={"default": "`sqlite:///<data>/<name>/<name>.sqlite3`"},
    )
    database_options: Annotated[dict[str, Any], PlainValidator(_parse_database_options)] = Field(
        default_factory=dict,
        alias="DATABASE_OPTIONS",
        repr=False,
        description="Engine and driver options that a URL cannot express, such as "
        '`{"prepare_threshold": None}` behind a connection pooler in transaction mode.',
        json_schema_extra={"default": "`{}`"},
    )
    app: Annotated[str, AfterValidator(_check_app)] | None = Field(
        None,
        alias="APP",
        examples=["shop:create_app"],
        description="An existing Flask application, which becomes the tenant's app, in gunicorn's "
        "notation: `shop.wsgi:app`, or `shop:create_app('x')` with literals. The endpoints in "
        "`BLUEPRINTS` are registered on it.",
        json_schema_extra={"default": "none"},
    )
    blueprints: Annotated[tuple[str, ...], BeforeValidator(_list_to_tuple)] = Field(
        alias="BLUEPRINTS",
        examples=[["landing"]],
        description="Enabled endpoints. A short name, such as `landing`, is an endpoint that "
        "comes with Tenantry. Any other name is the import name of an endpoint package.",
        json_schema_extra={"default": "required without `APP`"},
    )
    app_dir: Annotated[str, AfterValidator(_check_app_dir)] = Field(
        alias="APP_DIR",
        examples=["/srv/shop"],
        description="Folder from which `APP` and the tenant's own endpoints are imported. Every "
        "module in this folder exists once for each tenant.",
        json_schema_extra={"default": "host setting"},
    )
    migrations: str | None = Field(
        None,
        alias="MIGRATIONS",
        examples=["migrations"],
        description="Alembic or Flask-Migrate folder of `APP`, relative to `APP_DIR`, for "
        "`tenantry db`. The host serves the tenant even while migrations are pending.",
        json_schema_extra={"default": "none"},
    )
    enabled: bool = Field(
        True,
        alias="ENABLED",
        examples=[True],
        description="With `False`, the host ignores the file, as if it did not exist.",
    )
    maintenance: Annotated[bool | str, BeforeValidator(_check_maintenance)] = Field(
        False,
        alias="MAINTENANCE",
        examples=["Back at noon."],
        description="With `True` or a message, every request gets 503 with `Retry-After`.",
    )
    max_concurrent_requests: int | None = Field(
        None,
        alias="MAX_CONCURRENT_REQUESTS",
        ge=1,
        examples=[8],
        description="Maximum number of concurrent requests, across all workers. Requests above the "
        "maximum get 503.",
        json_schema_extra={"default": "host setting"},
    )
    rate_limit: Annotated[str, AfterValidator(_check_rate_limit)] | None = Field(
        None,
        alias="RATE_LIMIT",
        examples=["100/minute"],
        description="Maximum rate of the requests that `CLIENTS` and `OIDC` admit, in the notation "
        "of the `limits` library, such as `10/second; 1000/day`. Requests above the rate get 429.",
        json_schema_extra={"default": "none"},
    )
    max_content_length: int = Field(
        16 << 20,
        alias="MAX_CONTENT_LENGTH",
        ge=0,
        examples=[1048576],
        description="Maximum size of a request body in bytes, chunked or not. A request with a "
        "larger body gets 413.",
        json_schema_extra={"default": "16 MiB"},
    )
    trusted_hosts: Annotated[
        tuple[Annotated[str, AfterValidator(check_host_name)], ...] | None,
        BeforeValidator(_list_to_tuple),
    ] = Field(
        None,
        alias="TRUSTED_HOSTS",
        examples=[["shop.example.org"]],
        description="Host names that the tenant answers to, without ports (`.example.org` includes "
        "subdomains). Requests for any other name get 400.",
        json_schema_extra={"default": "host setting"},
    )
    deadline_s: float | None = Field(
        None,
        alias="DEADLINE_S",
        gt=0,
        allow_inf_nan=False,
        examples=[30.0],
        description="Seconds after which the host reports a request and counts it as stuck.",
        json_schema_extra={"default": "host setting"},
    )
    deadline_action: Literal["report", "answer"] | None = Field(
        None,
        alias="DEADLINE_ACTION",
        examples=["answer"],
        description="What the host does when a request exceeds its deadline. `report` only logs "
        "the request; `answer` also sends 504 if the response has not started.",
        json_schema_extra={"default": "host setting"},
    )
    clients: Annotated[Clients | None, PlainValidator(_parse_clients)] = Field(
        None,
        alias="CLIENTS",
        repr=False,
        description="Clients that the tenant admits, by name. The value is the hash of a key, "
        '`"sha256:…"`, or a dict with `key` and optionally `endpoints`, `methods` and `expires`.',
        json_schema_extra={"default": "none: open"},
    )
    oidc: Annotated[OpenId | None, PlainValidator(parse_openid)] = Field(
        None,
        alias="OIDC",
        description="OpenID Connect issuer whose tokens the tenant accepts: a dict with `issuer` "
        "and `audience`, and optionally `jwks_uri` and `claims`.",
        json_schema_extra={"default": "none"},
    )
    quota_bytes: int | None = Field(
        None,
        alias="QUOTA_BYTES",
        ge=1,
        examples=[1073741824],
        description="Maximum size of the tenant's data folder in bytes. Uploads that would exceed "
        "the size get 507.",
        json_schema_extra={"default": "none"},
    )
    audit_accept: dict[str, str] = Field(
        default_factory=dict,
        alias="AUDIT_ACCEPT",
        examples=[{"finding": "reason"}],
        description="Findings that `tenantry audit` shows as accepted: the reason for each finding "
        "ID.",
        json_schema_extra={"default": "`{}`"},
    )

    @field_validator("blueprints")
    @classmethod
    def _check_blueprints(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        has_app = info.data.get("app", "invalid") is not None
        if not value and not has_app:
            raise ValueError("expected at least one endpoint, like ['landing']")
        if len(value) > BLUEPRINTS_LIMIT:
            raise ValueError(
                f"expected at most {BLUEPRINTS_LIMIT} endpoints, not {len(value):,}; remove some"
            )
        duplicates = sorted({name for name in value if value.count(name) > 1})
        if duplicates:
            names = ", ".join(map(repr, duplicates))
            raise ValueError(f"{names} is listed more than once; keep one")
        return value

    @field_validator("hosts", "old_hosts", "old_prefixes")
    @classmethod
    def _check_former(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        """Check that no address occurs twice, and that former names have a present name."""
        present = (*info.data.get("hosts", ()), info.data.get("url_prefix"))
        for place, item in enumerate(value):
            if item in present or item in value[:place]:
                raise ValueError(f"{item!r} is listed more than once; keep one")
        if value and info.field_name == "old_hosts" and info.data.get("hosts") == ():
            raise ValueError("redirects to 'HOSTS', which is not set; set it, or remove this key")
        return value

    @field_validator("trusted_hosts")
    @classmethod
    def _check_trusted(
        cls, value: tuple[str, ...] | None, info: ValidationInfo
    ) -> tuple[str, ...] | None:
        if value is not None and info.data.get("hosts"):
            raise ValueError("the tenant answers only to the names in 'HOSTS'; remove this key")
        return value

    @field_validator("migrations")
    @classmethod
    def _check_migrations(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None:
            return None
        if info.data.get("app", "invalid") is None:
            raise ValueError(
                "only an existing application has this key; set 'APP', or remove 'MIGRATIONS' "
                "(an endpoint has its own folder migrations)"
            )
        app_dir = info.data.get("app_dir")  # None if the value is invalid
        return value if app_dir is None else str(migrations_folder(value, app_dir))

    @field_validator("database_uri")
    @classmethod
    def _check_database_uri(cls, value: SecretStr) -> SecretStr:
        check_database_url(value.get_secret_value())
        return value

    @property
    def address(self) -> Address:
        """The present and the former addresses of the tenant."""
        return Address(self.url_prefix, self.hosts, self.old_hosts, self.old_prefixes)

    @property
    def has_own_origin(self) -> bool:
        """Whether browsers separate the tenant from all other tenants."""
        return bool(self.hosts) and self.url_prefix == "/"

    @property
    def database_url(self) -> "URL":
        """The parsed `DATABASE_URI`. Converting the URL to text masks the password."""
        return parse_database_url(self.database_uri.get_secret_value())

    def config(self) -> dict[str, Any]:
        """Return a copy of all keys and values for `app.config`, with secrets in plain text."""
        keys = {key: _to_plain(getattr(self, field)) for field, key in KEYS.items()}
        return keys | copy.deepcopy(dict(self.flask))


KEYS: Mapping[str, str] = {
    field: info.alias for field, info in Tenant.model_fields.items() if info.alias
}
"""Maps each field of `Tenant` to a key of a tenant file, in the order of `tenants/README.md`."""

DEFAULTS: Mapping[str, Any] = {
    field: info.default
    for field, info in Tenant.model_fields.items()
    if info.default is None or info.default == () or isinstance(info.default, bool)
}
"""Maps fields of `Tenant` to immutable defaults, which are also attributes of the class. An object
without the field has the default, and 10,000 tenants take less memory."""

for _field, _default in DEFAULTS.items():
    setattr(Tenant, _field, _default)


def _to_plain(value: Any) -> Any:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, Clients | OpenId):
        return value.to_config()
    if isinstance(value, tuple):
        return [_to_plain(item) for item in value]
    return dict(value) if isinstance(value, Mapping) else value
