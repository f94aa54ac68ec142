"""A tenant: the validated, frozen content of one tenant file.

The fields are the keys of a tenant file; the README's table is checked against them.
"""

import copy
from collections.abc import Collection, Mapping
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
    ValidationError,
    ValidationInfo,
    field_validator,
)

from tenantry.database.url import check_database_url, default_database_url, parse_database_url
from tenantry.errors import Problem, TenantFileError
from tenantry.grammar import check_host_name, check_tenant_name, check_url_prefix
from tenantry.observability.redaction import redact_value, secrets_in
from tenantry.tenants.clients import Clients, parse_clients
from tenantry.tenants.fields import check_maintenance, check_rate_limit, check_secret
from tenantry.tenants.openid import OpenId, parse_openid
from tenantry.tenants.problems import problems_of, unknown_keys, unsafe

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

BLUEPRINTS_LIMIT = 100
"""Each endpoint costs about 1 ms of every build; a longer list is a mistake."""


def _plain_list(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _check_secret(value: SecretStr) -> SecretStr:
    check_secret(value.get_secret_value())
    return value


def _parse_clients(value: object, info: ValidationInfo) -> Clients | None:
    return parse_clients(value, info.data["name"], info.data.get("blueprints"))


_Secret = Annotated[SecretStr, AfterValidator(_check_secret)]


class Tenant(BaseModel):
    """The content of one version of one tenant file. Frozen; shared freely between threads."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", populate_by_name=True)

    name: str
    file: str = Field("", description="The file it came from, as messages show it.")
    digest: str = Field("", description="SHA-256 of that file's bytes.")
    keys_with_secrets: tuple[str, ...] = Field(
        (),
        description="Keys that hold a secret, as only `secret()` could tell.",
    )
    flask: Mapping[str, Any] = Field(
        default_factory=dict, repr=False, description="Every other key, for `app.config`."
    )

    app_name: str = Field(
        "",
        alias="APP_NAME",
        max_length=200,
        examples=["Acme Ltd"],
        description="What people call it.",
        json_schema_extra={"default": "the tenant's name"},
    )
    url_prefix: Annotated[str, AfterValidator(check_url_prefix)] = Field(
        alias="URL_PREFIX",
        examples=["/acme"],
        description="Where it is mounted.",
        json_schema_extra={"default": "`/<name>`"},
    )
    secret_key: _Secret = Field(
        alias="SECRET_KEY",
        examples=[],
        description="Signs sessions; at least 32 characters, its own.",
        json_schema_extra={"default": "required"},
    )
    secret_key_fallbacks: Annotated[tuple[_Secret, ...], BeforeValidator(_plain_list)] = Field(
        (),
        alias="SECRET_KEY_FALLBACKS",
        description="Old keys that still verify.",
        json_schema_extra={"default": "`[]`"},
    )
    database_uri: SecretStr = Field(
        alias="DATABASE_URI",
        description="SQLAlchemy URL of its own database.",
        json_schema_extra={"default": "`sqlite:///<data>/<name>/<name>.sqlite3`"},
    )
    blueprints: Annotated[tuple[str, ...], BeforeValidator(_plain_list)] = Field(
        alias="BLUEPRINTS",
        examples=[["landing"]],
        description="Enabled endpoints: `landing` comes with Tenantry; a dotted name is an "
        "importable package of the same form.",
        json_schema_extra={"default": "required"},
    )
    enabled: bool = Field(
        True,
        alias="ENABLED",
        examples=[True],
        description="`False`: as if the file were not there.",
    )
    maintenance: Annotated[bool | str, BeforeValidator(check_maintenance)] = Field(
        False,
        alias="MAINTENANCE",
        examples=["Back at noon."],
        description="True or a message: every request gets 503 with `Retry-After`.",
    )
    max_concurrent_requests: int | None = Field(
        None,
        alias="MAX_CONCURRENT_REQUESTS",
        ge=1,
        examples=[8],
        description="Requests in flight at once, over all workers.",
        json_schema_extra={"default": "host setting"},
    )
    rate_limit: Annotated[str, AfterValidator(check_rate_limit)] | None = Field(
        None,
        alias="RATE_LIMIT",
        examples=["100/minute"],
        description="Requests per time, in the notation of the `limits` library: `10/second; "
        "1000/day`.",
        json_schema_extra={"default": "none"},
    )
    max_content_length: int = Field(
        16 << 20,
        alias="MAX_CONTENT_LENGTH",
        ge=0,
        examples=[1048576],
        description="Bytes of a request body; more gets 413, chunked or not.",
        json_schema_extra={"default": "16 MiB"},
    )
    trusted_hosts: Annotated[
        tuple[Annotated[str, AfterValidator(check_host_name)], ...] | None,
        BeforeValidator(_plain_list),
    ] = Field(
        None,
        alias="TRUSTED_HOSTS",
        examples=[["shop.example.org"]],
        description="Host names that are answered, without ports (`.a.org`: with subdomains); "
        "another one gets 400.",
        json_schema_extra={"default": "host setting"},
    )
    deadline_s: float | None = Field(
        None,
        alias="DEADLINE_S",
        gt=0,
        allow_inf_nan=False,
        examples=[30.0],
        description="Seconds after which a request is reported.",
        json_schema_extra={"default": "host setting"},
    )
    deadline_action: Literal["report", "answer"] | None = Field(
        None,
        alias="DEADLINE_ACTION",
        examples=["answer"],
        description="`report`, or `answer`: the client gets 504 if nothing has been sent yet.",
        json_schema_extra={"default": "host setting"},
    )
    clients: Annotated[Clients | None, PlainValidator(_parse_clients)] = Field(
        None,
        alias="CLIENTS",
        repr=False,
        description='Client name → `"sha256:…"`, or a dict with `key`, `endpoints`, `methods`, '
        "`expires`: only these clients get in.",
        json_schema_extra={"default": "none: open"},
    )
    oidc: Annotated[OpenId | None, PlainValidator(parse_openid)] = Field(
        None,
        alias="OIDC",
        description="`issuer` and `audience`, optionally `jwks_uri` and `claims`: clients with "
        "such a token get in.",
        json_schema_extra={"default": "none"},
    )
    quota_bytes: int | None = Field(
        None,
        alias="QUOTA_BYTES",
        ge=1,
        examples=[1073741824],
        description="Bytes that the tenant's data folder may hold.",
        json_schema_extra={"default": "none"},
    )
    audit_accept: dict[str, str] = Field(
        default_factory=dict,
        alias="AUDIT_ACCEPT",
        examples=[{"finding": "reason"}],
        description="Finding id → reason: shown as accepted.",
        json_schema_extra={"default": "`{}`"},
    )

    @field_validator("blueprints")
    @classmethod
    def _check_blueprints(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("expected at least one endpoint, like ['landing']")
        if len(value) > BLUEPRINTS_LIMIT:
            raise ValueError(
                f"expected at most {BLUEPRINTS_LIMIT} endpoints, not {len(value):,}; remove some"
            )
        twice = sorted({name for name in value if value.count(name) > 1})
        if twice:
            raise ValueError(f"{', '.join(map(repr, twice))} given more than once; keep one")
        return value

    @field_validator("database_uri")
    @classmethod
    def _check_database_uri(cls, value: SecretStr) -> SecretStr:
        check_database_url(value.get_secret_value())
        return value

    @property
    def database_url(self) -> "URL":
        """The parsed `DATABASE_URI`; printing it masks the password."""
        return parse_database_url(self.database_uri.get_secret_value())

    def config(self) -> dict[str, Any]:
        """Return a copy of every key for `app.config`, secrets in the clear."""
        keys = {key: _in_the_clear(getattr(self, field)) for field, key in KEYS.items()}
        return keys | copy.deepcopy(dict(self.flask))


KEYS: Mapping[str, str] = {
    field: info.alias for field, info in Tenant.model_fields.items() if info.alias
}
"""Field → key, in the order of the documentation."""

_EXAMPLES: Mapping[str, list[Any] | None] = {
    info.alias: info.examples for info in Tenant.model_fields.values() if info.alias
}


def parse_tenant(
    name: str,
    values: Mapping[str, Any],
    *,
    file: str = "",
    digest: str = "",
    data_dir: Path,
    secrets: Collection[str] = (),
    is_development: bool = False,
) -> Tenant:
    """Validate the upper-case names of one tenant file.

    Args:
        name: the stem of its file.
        values: the keys and what they hold.
        file: the path that messages name.
        digest: of the file's bytes.
        data_dir: where its default database and folder are.
        secrets: what `secret()` returned to the file.
        is_development: allow `DEBUG` and `TESTING`.

    Raises:
        TenantFileError: with every problem at once, in the order of the documentation.
    """
    known = set(KEYS.values())
    problems = list(unknown_keys(file, [key for key in values if key not in known], KEYS.values()))
    if not is_development:
        problems += unsafe(name, file, values)
    prefix = f"/{name}"
    try:
        check_tenant_name(name)
    except ValueError as error:
        problems.append(Problem(file, f"{error}; rename the file."))
        prefix = "/a"  # one problem is enough: this file has no place anyway
    flask = {key: value for key, value in values.items() if key not in known}
    defaults = {
        "APP_NAME": name,
        "URL_PREFIX": prefix,
        "DATABASE_URI": default_database_url(data_dir, name),
    }
    given = {key: values[key] for key in known & values.keys()}
    try:
        tenant = Tenant.model_validate(
            {"name": name, "file": file, "digest": digest, "flask": flask,
             "keys_with_secrets": _keys_with_secrets(values, secrets)} | defaults | given
        )  # fmt: skip
    except ValidationError as error:
        hidden = [*secrets, *secrets_in(values)]
        shown = {key: redact_value("", value, hidden) for key, value in values.items()}
        for details in error.errors():
            seen = details | {"input": redact_value("", details["input"], hidden)}
            problems += problems_of(file, shown, seen, _EXAMPLES)
    if problems:
        raise TenantFileError(problems)
    return _compact(tenant)


def _keys_with_secrets(values: Mapping[str, Any], secrets: Collection[str]) -> tuple[str, ...]:
    """Return the keys of which only the secrets tell that something in them must not be shown."""
    if not secrets:
        return ()
    pairs = [
        (key, redact_value(key, value), redact_value(key, value, secrets))
        for key, value in values.items()
    ]
    # Not every value can be compared (a signalling NaN); one that nothing is masked in is itself.
    return tuple(key for key, plain, masked in pairs if plain is not masked and plain != masked)


def _compact(tenant: Tenant) -> Tenant:
    """Return the same tenant in half the memory: 10,000 of them may be known.

    pydantic gives each a dictionary and a set of the fields that were given; attributes that are
    set one by one share their names with those of all others.
    """
    compact = Tenant.__new__(Tenant)
    for field, value in vars(tenant).items():
        object.__setattr__(compact, field, _NO_ENTRIES if value == {} else value)
    for slot, value in (("fields_set", _NOT_TOLD), ("extra", None), ("private", None)):
        object.__setattr__(compact, f"__pydantic_{slot}__", value)
    return compact


_NO_ENTRIES: Mapping[str, Any] = {}
"""One for all empty mappings; nobody writes in one, and a read-only one could not be pickled."""

_NOT_TOLD: set[str] = set()
"""Which fields were given is nowhere asked. A frozen tenant never writes it; copies get theirs."""


def _in_the_clear(value: Any) -> Any:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, Clients | OpenId):
        return value.plain()
    if isinstance(value, tuple):
        return [_in_the_clear(item) for item in value]
    return dict(value) if isinstance(value, Mapping) else value
