"""Reads the revision files of endpoints and applications, and compares them with a database.

A host with thousands of tenants reads revisions at every build. Therefore, this module parses
revision files without executing them, and does not import Alembic.
"""

import ast
import os
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from tenantry.endpoints.finding import available_endpoints, find_endpoint
from tenantry.errors import EndpointError
from tenantry.private_code.search import folders_of
from tenantry.private_code.snapshot import copy_of

REVISION_CHARS = 32
"""Maximum length of a revision ID: Alembic's column `version_num` is a VARCHAR(32)."""

RevisionState = Literal["at head", "behind", "ahead"]

# Pattern of the names of files that Alembic loads.
_REVISION_FILE = re.compile(r"(?!\.#|__init__).*\.py")


@dataclass(frozen=True)
class Branch:
    """The revisions of one endpoint or of an existing application: an Alembic branch."""

    endpoint: str
    """The endpoint's name. For an application, the path of the folder `MIGRATIONS`."""
    app_dir: str | None
    """The `APP_DIR` in which the endpoint was looked up."""
    folder: Path
    revisions: frozenset[str]
    heads: frozenset[str]
    is_of_app: bool = False
    """Whether the revisions belong to an application, whose own `env.py` runs them."""


@dataclass(frozen=True)
class RevisionStatus:
    """The result of comparing the revisions of a database with the revisions in the code."""

    state: RevisionState
    """Whether the tables match the code.

    If the tables of any endpoint are older than the code, the state is `behind`. If no tables are
    older but the tables of any endpoint are newer, the state is `ahead`.
    """
    current: frozenset[str]
    """Revisions of the database that exist in the code."""
    heads: frozenset[str]
    unknown: frozenset[str] = frozenset()
    """Revisions of the database that newer code may have written.

    Tenantry does not upgrade a database that has revisions of newer code.
    """


def read_branches(
    endpoints: Iterable[str], app_dir: str | None, migrations: str | None = None
) -> tuple[Branch, ...]:
    """Return the branches of all endpoints with tables, in the order of `endpoints`.

    Args:
        endpoints: the names in `BLUEPRINTS`.
        app_dir: the tenant's `APP_DIR`.
        migrations: the tenant's `MIGRATIONS`, whose branch comes last.

    Raises:
        EndpointError: an endpoint does not exist, a revision file cannot be parsed, or two files
            have the same revision ID.
    """
    branches: list[Branch] = []
    owners: dict[str, str] = {}
    found = [branch for name in endpoints for branch in _branches_of(name, app_dir)]
    if migrations is not None:
        found += _branch_in(Path(migrations, "versions"), migrations, app_dir, is_of_app=True)
    for branch in found:
        name = branch.endpoint
        for revision in sorted(branch.revisions & owners.keys()):
            raise EndpointError(
                name,
                f"{_describe(name, is_of_app=branch.is_of_app)}: endpoint {owners[revision]!r} "
                f"also has a revision {revision!r}; begin the id of the endpoint with its name.",
            )
        owners |= dict.fromkeys(branch.revisions, name)
        branches.append(branch)
    return tuple(branches)


def heads_of(branches: Iterable[Branch]) -> frozenset[str]:
    """Return the newest revisions of all branches."""
    return frozenset[str]().union(*(branch.heads for branch in branches))


def compare(branches: Collection[Branch], versions: Collection[str]) -> RevisionStatus:
    """Compare the revisions in the table `alembic_version` with the code.

    Revisions of endpoints that the tenant no longer enables are ignored.
    """
    of_code = frozenset[str]().union(*(branch.revisions for branch in branches))
    current = of_code.intersection(versions)
    foreign = _without_bundled(frozenset(versions) - of_code)
    unknown = frozenset[str]()
    is_behind = False
    for branch in branches:
        if branch.heads <= current:
            continue
        has_started = bool(branch.revisions & current)
        newer = set() if has_started else {each for each in foreign if _may_belong(each, branch)}
        unknown |= newer
        is_behind = is_behind or not newer
    state: RevisionState = "behind" if is_behind else "ahead" if unknown else "at head"
    return RevisionStatus(state, current, heads_of(branches), unknown)


def _without_bundled(revisions: frozenset[str]) -> frozenset[str]:
    """Return the revisions, except revisions of endpoints that come with Tenantry."""
    if not revisions:
        return revisions
    bundled = read_branches(available_endpoints(), None)
    return revisions.difference(*(branch.revisions for branch in bundled))


def _may_belong(revision: str, branch: Branch) -> bool:
    """Whether a revision may come from a newer version of an endpoint.

    If all known revisions of the endpoint begin with its name, a newer revision must also begin
    with the name.
    """
    has_name = _name_pattern(branch.endpoint).match
    return bool(has_name(revision)) or not all(has_name(known) for known in branch.revisions)


def revision_problems(branch: Branch) -> list[str]:
    """Return the problems of an endpoint's revision IDs that SQLite does not report."""
    has_name = _name_pattern(branch.endpoint)
    name = branch.endpoint.rpartition(".")[2]
    problems = []
    for revision in sorted(branch.revisions):
        where = f"endpoint {branch.endpoint!r}: the revision {revision!r}"
        if len(revision) > REVISION_CHARS:
            problems.append(
                f"{where} has {len(revision)} characters; PostgreSQL stores at most "
                f"{REVISION_CHARS}: shorten the id."
            )
        if not has_name.match(revision):
            problems.append(
                f"{where} does not begin with the endpoint's name, so that another endpoint could "
                f"have the same id: use an id like {name + '_0001'!r}."
            )
    return problems


def _name_pattern(endpoint: str) -> re.Pattern[str]:
    return re.compile(rf"{re.escape(endpoint.rpartition('.')[2])}(?![a-zA-Z])")


def format_revisions(revisions: Collection[str]) -> str:
    """Format revisions for messages, such as `shop_1, shop_2` or `nothing`."""
    return ", ".join(sorted(revisions)) or "nothing"


def describe_unknown(status: RevisionStatus) -> str:
    """Describe what to do about a database that newer code has written."""
    return (
        f"the database is at {format_revisions(status.unknown)}, which no endpoint here has. Newer "
        "code or a former endpoint wrote it; run the code that has it or, if there is no such "
        "code any more, delete that row from the table alembic_version."
    )


def _branches_of(endpoint: str, app_dir: str | None) -> Iterator[Branch]:
    for package in folders_of(find_endpoint(endpoint, app_dir), app_dir):
        yield from _branch_in(Path(copy_of(package), "migrations"), endpoint, app_dir)


def _branch_in(
    folder: Path, endpoint: str, app_dir: str | None, *, is_of_app: bool = False
) -> Iterator[Branch]:
    try:
        with os.scandir(folder) as entries:
            files = sorted(
                (entry.name, entry.stat().st_mtime_ns)
                for entry in entries
                if _REVISION_FILE.fullmatch(entry.name)
            )
    except (FileNotFoundError, NotADirectoryError):
        return  # the endpoint has no tables
    if files:
        yield _read_branch(endpoint, app_dir, folder, tuple(files), is_of_app=is_of_app)


def _describe(endpoint: str, *, is_of_app: bool) -> str:
    return endpoint if is_of_app else f"endpoint {endpoint!r}"


@lru_cache(maxsize=1000)
def _read_branch(
    endpoint: str,
    app_dir: str | None,
    folder: Path,
    files: tuple[tuple[str, int], ...],
    *,
    is_of_app: bool,
) -> Branch:
    """Return the branch that the revision files define. The branch is cached.

    Args:
        endpoint: the name of the endpoint in `BLUEPRINTS`, or the path in `MIGRATIONS`.
        app_dir: the `APP_DIR` in which the endpoint was looked up.
        folder: the folder of the revision files.
        files: the name and the modification time (in nanoseconds) of each revision file.
        is_of_app: whether `endpoint` is the path in `MIGRATIONS`.
    """
    owner = _describe(endpoint, is_of_app=is_of_app)
    parents: dict[str, tuple[str, ...]] = {}
    for file, _ in files:
        revision, down_revision = _read_revision_file(endpoint, owner, folder / file)
        if revision in parents:
            raise EndpointError(
                endpoint,
                f"{owner}: two files in {folder.name}/ have the revision {revision!r}; "
                "change one of the ids.",
            )
        parents[revision] = down_revision
    followed = {parent for ids in parents.values() for parent in ids}
    if missing := sorted(followed - parents.keys()):
        raise EndpointError(
            endpoint,
            f"{owner}: a file in {folder.name}/ has the down_revision {missing[0]!r}, "
            "but no file has that revision; restore that file.",
        )
    return Branch(
        endpoint,
        app_dir,
        folder,
        frozenset(parents),
        frozenset(parents.keys() - followed),
        is_of_app,
    )


def _read_revision_file(endpoint: str, owner: str, path: Path) -> tuple[str, tuple[str, ...]]:
    """Return the `revision` and the `down_revision` of a revision file, the latter as a tuple."""
    try:
        values = _assigned_literals(path.read_bytes(), names=("revision", "down_revision"))
        revision, parents = values["revision"], values.get("down_revision")
    except (OSError, SyntaxError, ValueError, KeyError) as error:
        raise EndpointError(
            endpoint,
            f"{owner}: cannot read {path.parent.name}/{path.name}: {error!r}; assign plain "
            "values: revision = '…', and down_revision = '…' or None.",
        ) from error
    return str(revision), (parents,) if isinstance(parents, str) else tuple(parents or ())


def _assigned_literals(source: bytes, names: Collection[str]) -> dict[str, Any]:
    """Return the literal values that a module assigns to the given global names."""
    values: dict[str, Any] = {}
    for node in ast.parse(source).body:
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            if isinstance(target, ast.Name) and target.id in names:
                values[target.id] = ast.literal_eval(node.value)
    return values
