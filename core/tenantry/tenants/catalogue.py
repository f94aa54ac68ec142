"""The catalogue: what the tenants folder says, file by file and as a set.

Reads and judges; builds nothing, serves nothing.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from tenantry.endpoints.loading import find_endpoint
from tenantry.errors import EndpointError, Problem, TenantFileError, TenantFileTimeoutError
from tenantry.grammar import check_tenant_name, check_url_prefix
from tenantry.observability.redaction import redact, secrets_in
from tenantry.tenants.file import (
    FileContent,
    display_path,
    list_tenant_files,
    printable,
    read_content,
)
from tenantry.tenants.loader import RUN_TIMEOUT_S, LoadedFile, Loader
from tenantry.tenants.model import BLUEPRINTS_LIMIT, Tenant, parse_tenant
from tenantry.tenants.uniqueness import AcceptedTenants, Conflict

CLASHES_SHOWN = 8
"""So many are told of one tenant: its prefix may be above those of 10,000."""


@dataclass(frozen=True)
class RejectedTenant:
    """A tenant file that is not served, and every reason."""

    name: str
    prefix: str | None
    """Where it would be mounted; None when that place belongs to a tenant that is served."""
    problems: tuple[Problem, ...]
    digest: str = ""
    """SHA-256 of the content that was rejected."""
    is_hung: bool = False
    """It did not finish in the loader's time: with more time it might."""

    @property
    def reason(self) -> str:
        """Every problem, on one line."""
        return " ".join(str(problem) for problem in self.problems)


@dataclass(frozen=True)
class DisabledTenant:
    """A tenant file with `ENABLED = False`: whatever else it says, as if it were not there."""

    name: str
    file: str
    """Its path, as messages show it."""
    prefix: str | None
    """Where it would be mounted; None when that cannot be told."""
    endpoints: tuple[str, ...]
    """Those that it names, whether they exist or not."""
    problems: tuple[Problem, ...] = ()
    """What will have to be mended before it can be enabled."""
    digest: str = ""


ValidationResult = Tenant | RejectedTenant | DisabledTenant
"""What becomes of one file's content, by itself."""


@dataclass(frozen=True)
class Catalogue:
    """One look at the tenants folder. Every file is in exactly one of the three."""

    tenants: tuple[Tenant, ...] = ()
    rejected: tuple[RejectedTenant, ...] = ()
    disabled: tuple[DisabledTenant, ...] = ()

    @property
    def problems(self) -> list[Problem]:
        """Every problem of the rejected, in the order of names."""
        return [problem for one in self.rejected for problem in one.problems]


def scan_tenants(
    folder: Path,
    data_dir: Path,
    loader: Loader,
    only: Collection[str] = (),
    *,
    rank: Callable[[Tenant], int] = lambda _: 0,
) -> Catalogue:
    """Load, validate and compare every tenant file of `folder`. Raises nothing for a bad file.

    Given names in `only`, it is as if no other file were there.

    Of two that clash, the one of the lower `rank` is accepted, else the first in name order.

    Raises:
        OSError: the folder cannot be read.
    """
    claims = AcceptedTenants()
    accepted: list[Tenant] = []
    good: list[Tenant] = []
    disabled: list[DisabledTenant] = []
    rejected: list[RejectedTenant] = []
    for path in list_tenant_files(folder):
        if only and path.stem not in only:
            continue
        result = validate_file(read_content(path), data_dir, loader)
        if isinstance(result, RejectedTenant):
            rejected.append(result)
        elif isinstance(result, DisabledTenant):
            disabled.append(result)
        else:
            good.append(result)
    for tenant in sorted(good, key=rank):  # stable: the order of names within one
        if clashes := claims.conflicts(tenant):
            rejected.append(rejection_of(tenant, clashes))
        else:
            claims.add(tenant)
            accepted.append(tenant)
    accepted.sort(key=lambda one: one.name)
    rejected.sort(key=lambda one: one.name)
    placed = tuple(_without_taken_prefix(one, claims) for one in rejected)
    return Catalogue(tuple(accepted), placed, tuple(disabled))


def rejection_of(tenant: Tenant, clashes: Iterable[Conflict]) -> RejectedTenant:
    """Return the rejection of a tenant that claims what others have."""
    problems = tuple(clash.problem for clash in islice(clashes, CLASHES_SHOWN))
    return RejectedTenant(tenant.name, tenant.url_prefix, problems, tenant.digest)


def _without_taken_prefix(rejected: RejectedTenant, claims: AcceptedTenants) -> RejectedTenant:
    """Leave a rejected file its prefix, unless an accepted tenant is there, above or below it."""
    if rejected.prefix is None or claims.is_free(rejected.prefix):
        return rejected
    return replace(rejected, prefix=None)


def validate_file(
    content: FileContent, data_dir: Path, loader: Loader, timeout_s: float = RUN_TIMEOUT_S
) -> ValidationResult:
    """Run and validate one file's content; its endpoints must exist. Raises nothing for it."""
    path = content.path
    try:
        return _validate_values(load_content(content, loader, timeout_s), data_dir)
    except TenantFileError as error:
        prefix, is_hung = _prefix_of(path.stem, {}), isinstance(error, TenantFileTimeoutError)
        return RejectedTenant(printable(path.stem), prefix, error.problems, content.digest, is_hung)
    except Exception as error:  # noqa: BLE001 - what nobody thought of costs this tenant only
        text = f"cannot be judged ({type(error).__name__}): a fault of Tenantry, please report it."
        problem = Problem(display_path(path), text)
        return RejectedTenant(
            printable(path.stem), _prefix_of(path.stem, {}), (problem,), content.digest
        )


def load_content(
    content: FileContent, loader: Loader, timeout_s: float = RUN_TIMEOUT_S
) -> LoadedFile:
    """Run one file's content, if its name may be a tenant's.

    Raises:
        TenantFileError: the file is misnamed, cannot be read or does not run to its end.
    """
    try:
        check_tenant_name(content.path.stem)
    except ValueError as error:
        problem = Problem(display_path(content.path), f"{error}; rename the file.")
        raise TenantFileError([problem]) from error
    if content.error is not None:
        raise content.error
    return loader.load(content.path, content.source, timeout_s)


def _validate_values(loaded: LoadedFile, data_dir: Path) -> ValidationResult:
    """Validate what a file says; every problem in one go."""
    name, values = loaded.name, loaded.values
    problems: tuple[Problem, ...] = ()
    try:
        tenant = validate_loaded(loaded, data_dir)
        if tenant.enabled:
            return tenant
    except TenantFileError as error:
        problems = error.problems
    prefix = _prefix_of(name, values)
    if values.get("ENABLED") is False:
        listed = _items(values.get("BLUEPRINTS"))
        endpoints = tuple(one for one in listed if isinstance(one, str))
        return DisabledTenant(name, loaded.file, prefix, endpoints, problems, loaded.digest)
    return RejectedTenant(name, prefix, problems, loaded.digest)


def validate_loaded(loaded: LoadedFile, data_dir: Path) -> Tenant:
    """Return the tenant that a file describes, enabled or not.

    Raises:
        TenantFileError: with every problem at once.
    """
    file, values, problems = loaded.file, loaded.values, list(loaded.problems)
    tenant: Tenant | None = None
    try:
        tenant = parse_tenant(
            loaded.name,
            values,
            file=file,
            digest=loaded.digest,
            data_dir=data_dir,
            secrets=loaded.secrets,
        )
    except TenantFileError as error:
        refused = {problem.key for problem in problems}  # "is missing" would be a second one
        problems += [problem for problem in error.problems if problem.key not in refused]
    problems += _missing_endpoints(file, values.get("BLUEPRINTS"))
    if tenant is None or problems:
        hidden = [*loaded.secrets, *secrets_in(values)]
        raise TenantFileError(replace(one, text=redact(one.text, hidden)) for one in problems)
    return tenant


def _prefix_of(name: str, values: Mapping[str, Any]) -> str | None:
    """Return where a file would be mounted, as far as that can be told."""
    for prefix in (values.get("URL_PREFIX"), f"/{name}"):
        try:
            if isinstance(prefix, str):
                check_tenant_name(name)
                return check_url_prefix(prefix)
        except ValueError:
            continue
    return None


def _items(blueprints: object) -> Sequence[object]:
    """Return the endpoints that are named; none where that is a problem of its own."""
    if isinstance(blueprints, list | tuple) and len(blueprints) <= BLUEPRINTS_LIMIT:
        return blueprints
    return ()


def _missing_endpoints(file: str, blueprints: object) -> Iterator[Problem]:
    for place, endpoint in enumerate(_items(blueprints)):
        try:
            if isinstance(endpoint, str):
                find_endpoint(endpoint)
        except EndpointError as error:
            yield Problem(file, str(error), f"BLUEPRINTS[{place}]")
