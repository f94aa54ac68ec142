"""The catalogue: what the tenants folder says, file by file and as a set.

Reads and judges; builds nothing, serves nothing.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from core.database_url import database_identity
from core.endpoints import find_endpoint
from core.errors import EndpointError, Problem, TenantFileError
from core.loader import LoadedFile, Loader, display_path, printable
from core.tenant import BLUEPRINTS_LIMIT, NAME, PREFIX, RESERVED_SEGMENTS, Tenant, parse_tenant


@dataclass(frozen=True)
class Rejected:
    """A tenant file that is not served, and every reason."""

    name: str
    prefix: str | None
    """Where it would be mounted; None when that place belongs to a tenant that is served."""
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class Catalogue:
    """One look at the tenants folder. Every file is in exactly one of the three."""

    tenants: tuple[Tenant, ...] = ()
    rejected: tuple[Rejected, ...] = ()
    disabled: tuple[Tenant, ...] = ()

    @property
    def problems(self) -> list[Problem]:
        """Every problem, in the order of names."""
        return [problem for one in self.rejected for problem in one.problems]


def tenant_paths(folder: Path) -> list[Path]:
    """Return the paths of the tenant files in `folder`, by name; empty if there is no folder."""
    try:
        paths = sorted(folder.iterdir())
    except OSError:
        return []
    return [path for path in paths if path.suffix == ".py" and path.name[0] not in "._"]


def scan_tenants(folder: Path, data_dir: Path, loader: Loader) -> Catalogue:
    """Load, validate and compare every tenant file of `folder`. Raises nothing for a bad file."""
    good: list[Tenant] = []
    rejected: list[Rejected] = []
    for path in tenant_paths(folder):
        result = read_tenant(path, data_dir, loader)
        if isinstance(result, Rejected):
            rejected.append(result)
        else:
            good.append(result)
    enabled = [tenant for tenant in good if tenant.enabled]
    accepted, clashing = _without_clashes(enabled)
    taken = {tenant.url_prefix for tenant in accepted}
    every = sorted(_placed([*rejected, *clashing], taken), key=lambda one: one.name)
    disabled = tuple(tenant for tenant in good if not tenant.enabled)
    return Catalogue(tuple(accepted), tuple(every), disabled)


def read_tenant(path: Path, data_dir: Path, loader: Loader) -> Tenant | Rejected:
    """Load and validate one file; its endpoints must exist. Raises nothing for a bad file."""
    try:
        return _judge(path, data_dir, loader)
    except Exception as error:  # noqa: BLE001 - what nobody thought of costs this tenant only
        text = f"cannot be judged ({type(error).__name__}): a fault of Tenantry, please report it."
        return Rejected(
            printable(path.stem),
            _prefix_of(path.stem, None),
            (Problem(display_path(path), text),),
        )


def _judge(path: Path, data_dir: Path, loader: Loader) -> Tenant | Rejected:
    loaded: LoadedFile | None = None
    try:
        if not NAME.fullmatch(path.stem):
            _refuse_name(path)
        loaded = loader.load(path)
        tenant = parse_tenant(
            loaded.name, loaded.values, file=loaded.file, digest=loaded.digest, data_dir=data_dir
        )
    except TenantFileError as error:
        said = [] if loaded is None else loaded.values.get("BLUEPRINTS")
        missing = tuple(_missing_endpoints(display_path(path), said))
        problems = error.problems + missing
        return Rejected(printable(path.stem), _prefix_of(path.stem, loaded), problems)
    missing = tuple(_missing_endpoints(tenant.file, tenant.blueprints))
    return Rejected(tenant.name, tenant.url_prefix, missing) if missing else tenant


def _refuse_name(path: Path) -> None:
    text = "a tenant's name begins with a-z and has a-z, 0-9, _ and -, at most 63; rename the file."
    raise TenantFileError([Problem(display_path(path), text)])


def _prefix_of(name: str, loaded: LoadedFile | None) -> str | None:
    """Return where a rejected file would be mounted, as far as that can be told."""
    said = loaded.values.get("URL_PREFIX") if loaded is not None else None
    if (
        isinstance(said, str)
        and PREFIX.fullmatch(said)
        and said.split("/")[1] not in RESERVED_SEGMENTS
    ):
        return said
    return f"/{name}" if NAME.fullmatch(name) else None


def _missing_endpoints(file: str, blueprints: object) -> Iterator[Problem]:
    if not isinstance(blueprints, list | tuple) or len(blueprints) > BLUEPRINTS_LIMIT:
        return  # a problem of its own
    for place, endpoint in enumerate(blueprints):
        try:
            if isinstance(endpoint, str):
                find_endpoint(endpoint)
        except EndpointError as error:
            yield Problem(file, str(error), f"BLUEPRINTS[{place}]")


def _placed(rejected: Iterable[Rejected], taken: set[str]) -> Iterator[Rejected]:
    """Give each rejected file its prefix, unless a served tenant is there, above it or below it."""
    for one in rejected:
        free = one.prefix is not None and not _overlapping(one.prefix, taken)
        yield one if free else Rejected(one.name, None, one.problems)


def _without_clashes(tenants: Sequence[Tenant]) -> tuple[list[Tenant], list[Rejected]]:
    """Compare the tenants as a set: of two that clash, the first in name order is accepted."""
    accepted: list[Tenant] = []
    clashing: list[Rejected] = []
    owners: dict[tuple[str, ...], Tenant] = {}
    prefixes: dict[str, Tenant] = {}
    for tenant in tenants:
        marks = list(_marks(tenant))
        problems = [
            Problem(tenant.file, _clash(key, owners[mark]), key)
            for key, mark in marks
            if mark in owners
        ]
        problems += _prefix_clashes(tenant, prefixes)
        if problems:
            clashing.append(Rejected(tenant.name, tenant.url_prefix, tuple(problems)))
            continue
        accepted.append(tenant)
        owners.update({mark: tenant for _, mark in marks})
        prefixes[tenant.url_prefix] = tenant
        for outer in _outer(tenant.url_prefix):
            prefixes.setdefault(outer + "/", tenant)
    return accepted, clashing


def _marks(tenant: Tenant) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield, with its key, what no other tenant may have."""
    yield "SECRET_KEY", ("secret", tenant.secret_key.get_secret_value())
    for old in tenant.secret_key_fallbacks:
        yield "SECRET_KEY_FALLBACKS", ("secret", old.get_secret_value())
    database = database_identity(tenant.database_url)
    if database is not None:
        yield "DATABASE_URI", ("database", *database)


def _clash(key: str, owner: Tenant) -> str:
    thing = "database" if key == "DATABASE_URI" else "secret key"
    return f"is the {thing} of {owner.file} too; give this tenant its own."


def _prefix_clashes(tenant: Tenant, prefixes: dict[str, Tenant]) -> Iterator[Problem]:
    """Yield the problem if a prefix is taken, or lies inside another's, or another's inside it.

    `prefixes` has each taken prefix, and with a slash behind it each path above one.
    """
    mine = tenant.url_prefix
    if (owner := prefixes.get(mine)) is not None:
        yield Problem(
            tenant.file, f"{mine} is the prefix of {owner.file}; choose another.", "URL_PREFIX"
        )
        return
    inner = prefixes.get(f"{mine}/")
    outer = next((prefixes[above] for above in _outer(mine) if above in prefixes), None)
    other = outer or inner
    if other is not None:
        text = (
            f"{mine} and {other.url_prefix} of {other.file} lie inside one another, and a browser "
            "would send the outer one's cookies to the inner one; choose another."
        )
        yield Problem(tenant.file, text, "URL_PREFIX")


def _outer(prefix: str) -> list[str]:
    """Return the paths above `/a/b/c`: `/a/b` and `/a`."""
    parts = prefix.split("/")
    return ["/".join(parts[:end]) for end in range(len(parts) - 1, 1, -1)]


def _overlapping(prefix: str, taken: set[str]) -> bool:
    return (
        prefix in taken
        or any(outer in taken for outer in _outer(prefix))
        or any(other.startswith(f"{prefix}/") for other in taken)
    )
