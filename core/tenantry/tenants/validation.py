"""Turns the content of one tenant file into a `Tenant`, or into a list of problems.

The module `uniqueness` compares the tenants with each other.
"""

import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tenantry.database.url import default_database_url
from tenantry.endpoints.app_reference import find_app, parse_app
from tenantry.endpoints.finding import find_endpoint
from tenantry.errors import (
    ApplicationError,
    EndpointError,
    Problem,
    TenantFileError,
    TenantFileTimeoutError,
)
from tenantry.grammar import (
    check_named_prefix,
    check_own_host_name,
    check_tenant_name,
    check_url_prefix,
    host_name,
)
from tenantry.observability.redaction import redact, redact_value, secrets_in
from tenantry.settings import HostSettings, environment_variable
from tenantry.tenants.address import Address
from tenantry.tenants.file import FileContent, display_path, printable
from tenantry.tenants.loader import RUN_TIMEOUT_S, LoadedFile, Loader
from tenantry.tenants.model import BLUEPRINTS_LIMIT, DEFAULTS, KEYS, Tenant
from tenantry.tenants.problems import invalid_value, unknown_keys, unsafe_keys

_EXAMPLES = {info.alias: info.examples for info in Tenant.model_fields.values() if info.alias}

_NO_ENTRIES: Mapping[str, Any] = {}
"""An empty dict that all tenants share, which no code may change. A read-only mapping would be
safer, but cannot be pickled."""

_NO_FIELDS: set[str] = set()
"""An empty set that all tenants share in place of pydantic's set of given fields. No code reads the
set."""


_DNS_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
"""A label that every DNS server and certificate authority accepts, without underscores."""


@dataclass(frozen=True)
class RejectedTenant:
    """A tenant file that is not served, with all its problems."""

    name: str
    address: Address | None
    """The address of the rejected tenant, or None if it is unknown or belongs to another tenant."""
    problems: tuple[Problem, ...]
    digest: str = ""
    """SHA-256 of the rejected file's content."""
    has_timed_out: bool = False
    """Whether the file exceeded its time limit. With more time, the file might finish."""

    @property
    def prefix(self) -> str | None:
        """The prefix of the address, or None."""
        return None if self.address is None else self.address.prefix

    @property
    def reason(self) -> str:
        """Every problem of the tenant file, on one line."""
        return " ".join(str(problem) for problem in self.problems)


@dataclass(frozen=True)
class DisabledTenant:
    """A tenant file with `ENABLED = False`, which the host treats as missing."""

    name: str
    file: str
    """The path of the tenant file, for messages."""
    address: Address | None
    """The address of the disabled tenant, or None if it is unknown."""
    endpoints: tuple[str, ...]
    """The endpoints that the tenant file names, including endpoints that do not exist."""
    problems: tuple[Problem, ...] = ()
    """The problems to fix before the tenant can be enabled."""
    digest: str = ""

    @property
    def prefix(self) -> str | None:
        """The prefix of the address, or None."""
        return None if self.address is None else self.address.prefix


ValidationResult = Tenant | RejectedTenant | DisabledTenant
"""The result of validating one tenant file, before a comparison with other tenants."""


def validate_file(
    content: FileContent, settings: HostSettings, loader: Loader, timeout_s: float = RUN_TIMEOUT_S
) -> ValidationResult:
    """Run and validate the content of a tenant file, without raising an exception."""
    path = content.path
    has_timed_out = False
    try:
        return _result(load_content(content, loader, timeout_s), settings)
    except TenantFileError as error:
        problems = error.problems
        has_timed_out = isinstance(error, TenantFileTimeoutError)
    except Exception as error:  # noqa: BLE001 - a bug in Tenantry affects only this tenant
        kind = type(error).__name__
        text = f"cannot be validated ({kind}). This is an error in Tenantry; please report it."
        problems = (Problem(display_path(path), text),)
    name, address = printable(path.stem), _address(path.stem, {})
    return RejectedTenant(name, address, problems, content.digest, has_timed_out)


def load_content(
    content: FileContent, loader: Loader, timeout_s: float = RUN_TIMEOUT_S
) -> LoadedFile:
    """Run the content of a tenant file, and return the values that it sets.

    Raises:
        TenantFileError: the file's name is invalid, or the file cannot be read or run to its end.
    """
    try:
        check_tenant_name(content.path.stem)
    except ValueError as error:
        problem = Problem(display_path(content.path), f"{error}; rename the file.")
        raise TenantFileError([problem]) from error
    if content.error is not None:
        raise content.error
    return loader.load(content.path, content.source, timeout_s)


def _result(loaded: LoadedFile, settings: HostSettings) -> ValidationResult:
    problems: tuple[Problem, ...] = ()
    try:
        tenant = validate_loaded(loaded, settings)
        if tenant.enabled:
            return tenant
    except TenantFileError as error:
        problems = error.problems
    address = _address(loaded.name, loaded.values, settings.host_pattern)
    if loaded.values.get("ENABLED") is False:
        return DisabledTenant(
            name=loaded.name,
            file=loaded.file,
            address=address,
            endpoints=tuple(item for item in _blueprints(loaded.values) if isinstance(item, str)),
            problems=problems,
            digest=loaded.digest,
        )
    return RejectedTenant(loaded.name, address, problems, loaded.digest)


def validate_loaded(loaded: LoadedFile, settings: HostSettings) -> Tenant:
    """Return the tenant that a file describes, enabled or disabled.

    Raises:
        TenantFileError: the file has problems, such as an endpoint that does not exist. The error
            contains all problems.
    """
    problems = list(loaded.problems)
    tenant: Tenant | None = None
    try:
        tenant = parse_tenant(
            loaded.name,
            loaded.values,
            file=loaded.file,
            digest=loaded.digest,
            data_dir=settings.data_dir,
            app_dir=settings.app_dir,
            secrets=loaded.secrets,
            host_pattern=settings.host_pattern,
        )
        problems += _names_of_the_host(tenant, settings)
    except TenantFileError as error:
        # A key whose value is not plain data already has a problem, so the key is not also reported
        # as missing.
        reported = {problem.key for problem in problems}
        problems += [problem for problem in error.problems if problem.key not in reported]
    app_dir = _app_dir(loaded.values, settings)
    problems += _missing_app(loaded.file, loaded.values.get("APP"), app_dir)
    problems += _missing_endpoints(loaded.file, _blueprints(loaded.values), app_dir)
    if tenant is not None:
        problems += _migrations_in_data(tenant, settings.data_dir)
    if tenant is None or problems:
        secrets = [*loaded.secrets, *secrets_in(loaded.values)]
        raise TenantFileError(
            replace(problem, text=redact(problem.text, secrets)) for problem in problems
        )
    return tenant


def parse_tenant(
    name: str,
    values: Mapping[str, Any],
    *,
    file: str = "",
    digest: str = "",
    data_dir: Path,
    app_dir: Path | None = None,
    secrets: Collection[str] = (),
    is_development: bool = False,
    host_pattern: str | None = None,
) -> Tenant:
    """Validate the values that a tenant file sets, without checking whether the endpoints exist.

    Args:
        name: the tenant's name.
        values: the keys of the tenant file and their values.
        file: the path of the tenant file, for messages.
        digest: SHA-256 of the file's bytes.
        data_dir: the folder of the default database.
        app_dir: the host's `APP_DIR`; the current folder if None.
        secrets: the secrets that `secret()` returned to the file.
        is_development: whether to allow `DEBUG` and `TESTING`.
        host_pattern: the host's `HOST_PATTERN`.

    Raises:
        TenantFileError: a key has a problem. The error contains all problems, in the order of the
            keys in `tenants/README.md`.
    """
    known = set(KEYS.values())
    problems = list(unknown_keys(file, values, KEYS.values()))
    if not is_development:
        problems += unsafe_keys(name, file, values)
    prefix = f"/{name}"
    try:
        check_tenant_name(name)
    except ValueError as error:
        problems.append(Problem(file, f"{error}; rename the file."))
        prefix = "/a"  # a valid prefix prevents a second problem with the name
    hosts: list[str] = []
    try:
        hosts = pattern_hosts(name, values, host_pattern)
    except ValueError as error:
        problems.append(Problem(file, str(error)))
    fields = {
        "name": name,
        "file": file,
        "digest": digest,
        "flask": {key: value for key, value in values.items() if key not in known},
        "keys_with_secrets": _keys_with_secrets(values, secrets),
        "keys_set": tuple(values),
        "APP_NAME": name,
        "HOSTS": hosts,
        "URL_PREFIX": "/" if hosts or values.get("HOSTS") else prefix,
        "DATABASE_URI": default_database_url(data_dir, name),
        "APP_DIR": str((app_dir or Path()).absolute()),
    }
    if "APP" in values:
        fields["BLUEPRINTS"] = ()
    try:
        tenant = Tenant.model_validate(fields | {key: values[key] for key in known & values.keys()})
    except ValidationError as error:
        hidden = [*secrets, *secrets_in(values)]
        for details in error.errors():
            problems += invalid_value(file, values, details, _EXAMPLES, hidden)
    if problems:
        raise TenantFileError(problems)
    return _compact(tenant)


def _keys_with_secrets(values: Mapping[str, Any], secrets: Collection[str]) -> tuple[str, ...]:
    """Return the keys whose values contain a secret although the names do not suggest a secret."""
    if not secrets:
        return ()
    pairs = {
        key: (redact_value(key, value), redact_value(key, value, secrets))
        for key, value in values.items()
    }
    # `is not` comes first, because comparing a signaling NaN by value raises an exception.
    return tuple(key for key, (one, other) in pairs.items() if one is not other and one != other)


def _compact(tenant: Tenant) -> Tenant:
    """Return a tenant with the same content that takes half the memory (1.3 KiB).

    A process can hold 10,000 tenants. pydantic keeps a dict and a set of fields on each object. If
    the attributes are set one by one instead, all tenants share the attribute names in memory. This
    holds for up to 29 names (CPython 3.11), so attributes with their defaults are not set.
    """
    compact = Tenant.__new__(Tenant)
    fields = vars(tenant)
    if tenant.app_name == tenant.name:
        fields["app_name"] = tenant.name  # pydantic has copied the default
    for field, value in fields.items():
        if field in DEFAULTS and value is DEFAULTS[field]:
            continue
        object.__setattr__(compact, field, _shared(value))
    for slot, value in (("fields_set", _NO_FIELDS), ("extra", None), ("private", None)):
        object.__setattr__(compact, f"__pydantic_{slot}__", value)
    return compact


def _shared(value: Any) -> Any:
    """Return an equal value that other tenants use, too, if many tenants have such a value."""
    if value == {}:
        return _NO_ENTRIES
    if type(value) is tuple and all(type(one) is str for one in value):
        return _shared_names(value)
    return value


@lru_cache(maxsize=1024)
def _shared_names(names: tuple[str, ...]) -> tuple[str, ...]:
    return names


def pattern_hosts(name: str, values: Mapping[str, Any], pattern: str | None) -> list[str]:
    """Return the host name that the host's `HOST_PATTERN` gives to a tenant, if any.

    Raises:
        ValueError: the tenant's name cannot be part of a host name.
    """
    if pattern is None or "HOSTS" in values or "URL_PREFIX" in values:
        return []
    label = pattern.partition(".")[0].replace("{name}", name)
    if not _DNS_LABEL.fullmatch(label):
        raise ValueError(
            f"{label!r} in the host's TENANTRY_HOST_PATTERN is not a valid label of a host name; "
            "set 'HOSTS'."
        )
    return [pattern.replace("{name}", name)]


def _names_of_the_host(tenant: Tenant, settings: HostSettings) -> Iterator[Problem]:
    """Yield a problem for each host name of a tenant that belongs to the host."""
    for setting in ("trusted_hosts", "admin_hosts"):
        reserved = {host_name(name) for name in getattr(settings, setting)}
        for key, names in (("HOSTS", tenant.hosts), ("OLD_HOSTS", tenant.old_hosts)):
            for place, name in enumerate(names):
                if name in reserved:
                    text = f"{name} belongs to the host; remove it here or in "
                    variable = environment_variable(setting)
                    yield Problem(tenant.file, f"{text}{variable}.", f"{key}[{place}]")


def _address(name: str, values: Mapping[str, Any], pattern: str | None = None) -> Address | None:
    """Return the address of a tenant file that is not served, or None if it is unknown.

    Invalid parts of the address are left out.
    """
    try:
        check_tenant_name(name)
        default_hosts = pattern_hosts(name, values, pattern)
    except ValueError:
        return None
    hosts = _valid(values.get("HOSTS", default_hosts), check_own_host_name)
    check, default = (check_named_prefix, "/") if hosts else (check_url_prefix, f"/{name}")
    prefixes = _valid([values.get("URL_PREFIX"), default], check)
    if not prefixes:
        return None
    old_hosts = _valid(values.get("OLD_HOSTS"), check_own_host_name) if hosts else ()
    old_prefixes = _valid(values.get("OLD_PREFIXES"), check_url_prefix)
    return Address(prefixes[0], hosts, old_hosts, old_prefixes)


def _valid(values: object, check: Callable[[str], str]) -> tuple[str, ...]:
    """Return the valid items of a list."""
    found: list[str] = []
    for value in values if isinstance(values, list | tuple) else ():
        with suppress(ValueError):
            if isinstance(value, str):
                found.append(check(value))
    return tuple(dict.fromkeys(found))


def _blueprints(values: Mapping[str, Any]) -> Sequence[object]:
    """Return the items of `BLUEPRINTS`, or an empty tuple if the value is not a valid list."""
    blueprints = values.get("BLUEPRINTS")
    if isinstance(blueprints, list | tuple) and len(blueprints) <= BLUEPRINTS_LIMIT:
        return blueprints
    return ()


def _app_dir(values: Mapping[str, Any], settings: HostSettings) -> str:
    """Return the folder in which a tenant file's code is looked up, even if the file is invalid."""
    own = values.get("APP_DIR")
    return str(Path(own).absolute() if isinstance(own, str) else settings.app_dir)


def _missing_app(file: str, app: object, app_dir: str) -> Iterator[Problem]:
    try:
        if isinstance(app, str):
            find_app(parse_app(app), app_dir)
    except ApplicationError as error:
        yield Problem(file, str(error), "APP")
    except ValueError:  # the model reports a value that is not in gunicorn's notation
        return


def _migrations_in_data(tenant: Tenant, data_dir: Path) -> Iterator[Problem]:
    """Yield a problem if a tenant could write the code that `tenantry db` runs."""
    data = Path(os.path.realpath(data_dir))
    if tenant.migrations and Path(os.path.realpath(tenant.migrations)).is_relative_to(data):
        text = (
            f"{tenant.migrations} is in the data folder {data_dir}, where tenants write; move it "
            "to the application's code."
        )
        yield Problem(tenant.file, text, "MIGRATIONS")


def _missing_endpoints(file: str, blueprints: Sequence[object], app_dir: str) -> Iterator[Problem]:
    for place, endpoint in enumerate(blueprints):
        try:
            if isinstance(endpoint, str):
                find_endpoint(endpoint, app_dir)
        except EndpointError as error:
            yield Problem(file, str(error), f"BLUEPRINTS[{place}]")
