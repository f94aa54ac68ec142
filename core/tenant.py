"""A tenant: the validated, frozen content of one tenant file.

The fields are the keys of a tenant file; the README's table is checked against them.
"""

import copy
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from flask import Flask
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
)
from sqlalchemy.engine import URL

from core.database_url import parse_database_url
from core.errors import Problem, TenantFileError

NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}")
"""A tenant's name: the stem of its file, a folder under `<data>`, a part of cookie names."""

_SEGMENT = r"[a-z0-9][a-z0-9_-]{0,62}"
PREFIX = re.compile(rf"(?:/{_SEGMENT}){{1,4}}")
"""Lower case only, so that no two prefixes differ by case; nothing that a URL would escape."""

RESERVED_SEGMENTS = frozenset(
    {"admin", "health", "healthz", "livez", "metrics", "readyz", "static"}
)
"""First segments that proxies, scrapers and probes in front of the host take for theirs."""

SECRET_KEY_CHARACTERS = 32
"""32 characters of hexadecimal are 128 bits, what HMAC-SHA1 (Flask's session signer) can use."""

BLUEPRINTS_LIMIT = 100
"""Each endpoint costs about 1 ms of every build; a longer list is a mistake."""

_WELL_KNOWN_SECRETS = frozenset({
    "secret!", "secret", "secretkey", "secret_key", "secret-key", "changeme", "change-me",
    "change_me", "dev", "development", "test", "testing", "password", "default", "key", "mykey",
    "you-will-never-guess", "super-secret", "supersecret", "top-secret", "hard to guess string",
    # the examples of Flask's documentation
    "192b9bdd22ab9ed4d12e236c78afcb9a393ec15f71bbf5dc987d54727823bcbf",
    '_5#y2l"f4q8z\\n\\xec]/',
})  # fmt: skip

_FLASK_KEYS = frozenset(Flask.default_config)
_NOT_CHECKED_YET = ("CLIENTS", "OIDC")


def _plain_list(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _check_url_prefix(value: str) -> str:
    if not PREFIX.fullmatch(value):
        raise ValueError(
            "expected one to four segments of a-z, 0-9, _ and - (each at most 63 long, not "
            "starting with _ or -), without a slash at the end, like '/acme'"
        )
    first = value.split("/")[1]
    if first in RESERVED_SEGMENTS:
        raise ValueError(
            f"/{first} is what proxies and probes take for theirs; choose another, like '/acme'"
        )
    return value


def _check_secret(value: SecretStr) -> SecretStr:
    text = value.get_secret_value()
    if text.strip().lower() in _WELL_KNOWN_SECRETS:
        raise ValueError(
            "is a well-known secret; make one: python -c "
            "'import secrets; print(secrets.token_hex(32))'"
        )
    if len(text) < SECRET_KEY_CHARACTERS:
        raise ValueError(
            f"has {len(text)} characters, expected at least {SECRET_KEY_CHARACTERS}; make one: "
            "python -c 'import secrets; print(secrets.token_hex(32))'"
        )
    return value


def _check_maintenance(value: object) -> object:
    if not isinstance(value, bool | str):
        raise ValueError("expected True, False or a message for the clients")  # noqa: TRY004 - pydantic's
    return value


def _check_host_name(value: str) -> str:
    if not re.fullmatch(r"\.?[A-Za-z0-9_.:\[\]-]{1,253}", value):
        raise ValueError("expected a host name, like 'shop.example.org' or '.example.org'")
    return value


_Secret = Annotated[SecretStr, AfterValidator(_check_secret)]


class Tenant(BaseModel):
    """The content of one version of one tenant file. Frozen; shared freely between threads."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", populate_by_name=True)

    name: str
    file: str = Field("", description="The file it came from, as messages show it.")
    digest: str = Field("", description="SHA-256 of that file's bytes.")
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
    url_prefix: Annotated[str, AfterValidator(_check_url_prefix)] = Field(
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
        description="Enabled endpoints: `landing` is `core.endpoints.landing`; a dotted name is "
        "an importable package of the same form.",
        json_schema_extra={"default": "required"},
    )
    enabled: bool = Field(
        True,
        alias="ENABLED",
        examples=[True],
        description="`False`: as if the file were not there.",
    )
    maintenance: Annotated[bool | str, BeforeValidator(_check_maintenance)] = Field(
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
    rate_limit: str | None = Field(
        None,
        alias="RATE_LIMIT",
        examples=["100/minute"],
        min_length=3,
        description="Requests per time, in the notation of the `limits` library.",
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
        tuple[Annotated[str, AfterValidator(_check_host_name)], ...] | None,
        BeforeValidator(_plain_list),
    ] = Field(
        None,
        alias="TRUSTED_HOSTS",
        examples=[["shop.example.org"]],
        description="Host names that are answered; another one gets 400.",
        json_schema_extra={"default": "host setting"},
    )
    deadline_s: float | None = Field(
        None,
        alias="DEADLINE_S",
        gt=0,
        examples=[30.0],
        description="Seconds after which a request is reported.",
        json_schema_extra={"default": "host setting"},
    )
    clients: None = Field(
        None,
        alias="CLIENTS",
        description="Named client keys.",
        json_schema_extra={"default": "none: open"},
    )
    oidc: None = Field(
        None,
        alias="OIDC",
        description="OpenID Connect issuer and audience.",
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

    @field_validator("clients", "oidc", mode="before")
    @classmethod
    def _refuse_unchecked(cls, value: object) -> object:
        # Accepting a key that nobody enforces would leave a tenant open that believes itself shut.
        if value is not None:
            raise ValueError(
                "this version does not check clients yet; remove the key, or do not "
                "serve this tenant where strangers reach it"
            )
        return value

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
        parse_database_url(value.get_secret_value())
        return value

    @property
    def database_url(self) -> URL:
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

_SECRET_FIELDS = frozenset(
    {"SECRET_KEY", "SECRET_KEY_FALLBACKS", "DATABASE_URI", "CLIENTS", "OIDC"}
)


def parse_tenant(
    name: str,
    values: Mapping[str, Any],
    *,
    file: str = "",
    digest: str = "",
    data_dir: Path,
    is_development: bool = False,
) -> Tenant:
    """Validate the upper-case names of one tenant file.

    Args:
        name: the stem of its file.
        values: the keys and what they hold.
        file: the path that messages name.
        digest: of the file's bytes.
        data_dir: where its default database and folder are.
        is_development: allow `DEBUG` and `TESTING`.

    Raises:
        TenantFileError: with every problem at once, in the order of the documentation.
    """
    known = set(KEYS.values())
    problems = list(_misspelt(file, [key for key in values if key not in known]))
    if not is_development:
        problems += _unsafe(name, file, values)
    has_name = NAME.fullmatch(name) is not None
    if not has_name:
        problems.append(
            Problem(
                file,
                "a tenant's name begins with a-z and has a-z, 0-9, _ and -, "
                "at most 63; rename the file.",
            )
        )
    flask = {key: value for key, value in values.items() if key not in known}
    defaults = {
        "APP_NAME": name,
        "URL_PREFIX": f"/{name}" if has_name else "/misnamed",
        "DATABASE_URI": f"sqlite:///{(data_dir / name / name).absolute()}.sqlite3",
    }
    given = {key: values[key] for key in known & values.keys()}
    try:
        tenant = Tenant.model_validate(
            {"name": name, "file": file, "digest": digest, "flask": flask} | defaults | given
        )
    except ValidationError as error:
        problems += [_problem(file, values, dict(details)) for details in error.errors()]
    if problems:
        raise TenantFileError(problems)
    return tenant


def _misspelt(file: str, keys: list[str]) -> Iterator[Problem]:
    for key in keys:
        if key in _FLASK_KEYS:
            continue
        near = [known for known in KEYS.values() if is_one_edit_away(key, known)]
        if near:
            yield Problem(file, f"is no key; did you mean '{near[0]}'? Rename it.", key)


def _unsafe(name: str, file: str, values: Mapping[str, Any]) -> Iterator[Problem]:
    for key in ("DEBUG", "TESTING"):
        if values.get(key):
            yield Problem(
                file,
                "shows the code and its secrets to clients; remove it. For development: "
                f"tenantry run {name} -- run --debug",
                key,
            )


def is_one_edit_away(one: str, other: str) -> bool:
    """Whether one insertion, deletion, replacement or swap of neighbours leads to the other."""
    if one == other or abs(len(one) - len(other)) > 1:
        return False
    start = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)
    if start is None:
        return True
    rest, rest_other = one[start:], other[start:]
    return (
        rest[1:] == rest_other[1:]
        or rest[1:] == rest_other
        or rest == rest_other[1:]
        or (rest[:2] == rest_other[1::-1] and rest[2:] == rest_other[2:])
    )


def _problem(file: str, values: Mapping[str, Any], details: dict[str, Any]) -> Problem:
    key, *inner = details["loc"]
    place = key + "".join(f"[{part!r}]" for part in inner if part != "[key]")
    if details["type"] == "missing":
        return Problem(file, f"is missing; {_REMEDIES[key]}", key)
    if details["type"] == "value_error":
        reason = str(details["ctx"]["error"])
        shown = "" if key in _SECRET_FIELDS else f"found {_short(details['input'])}; "
        return Problem(file, f"{shown}{reason}.", place)
    value = details["input"] if inner else values.get(key)
    found = "None" if value is None else type(value).__name__
    if value is not None and key not in _SECRET_FIELDS:
        found += f" {_short(value)}"
    expected = _EXPECTED.get(details["type"])
    text = expected.format(**details.get("ctx", {})) if expected else details["msg"]
    return Problem(file, f"found {found}; expected {text}; {_REMEDIES[key]}", place)


_EXPECTED: Mapping[str, str] = {
    "bool_type": "True or False",
    "dict_type": "a dict",
    "float_type": "a number",
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "at least {ge}",
    "int_type": "an integer",
    "string_too_long": "at most {max_length} characters",
    "string_too_short": "at least {min_length} characters",
    "string_type": "a string",
    "string_unicode": "text",
    "tuple_type": "a list",
}
"""What pydantic's kinds of errors expect, in a tenant file's words."""


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"  # noqa: PLR2004 - one line stays readable


def _remedy(key: str, examples: list[Any] | None) -> str:
    if key == "SECRET_KEY":
        return 'write SECRET_KEY = secret("…"), after: from config import secret.'
    return f"write {key} = {examples[0]!r}." if examples else f"see '{key}' in the README."


_REMEDIES: Mapping[str, str] = {
    info.alias: _remedy(info.alias, info.examples)
    for info in Tenant.model_fields.values()
    if info.alias
}


def _in_the_clear(value: Any) -> Any:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, tuple):
        return [_in_the_clear(item) for item in value]
    return dict(value) if isinstance(value, Mapping) else value
