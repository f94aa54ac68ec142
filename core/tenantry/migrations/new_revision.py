"""Writes a new revision of an endpoint, from a comparison of its models with a tenant's database.

The models run in a child process (`autogenerate`), as migrations do. The comparison changes
nothing, and creates no database.
"""

import json
import os
import re
import sqlite3
import subprocess
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tenantry.database.url import is_in_memory, parse_database_url
from tenantry.endpoints.finding import find_endpoint
from tenantry.errors import EndpointError, TenantryError
from tenantry.migrations.revisions import (
    REVISION_CHARS,
    Branch,
    compare,
    describe_unknown,
    format_revisions,
    read_branches,
)
from tenantry.migrations.runner import MigrationRunner, MigrationTarget
from tenantry.migrations.version_table import (
    describe_unreachable,
    read_versions,
    sqlite_file_exists,
)
from tenantry.private_code.search import folders_of
from tenantry.python_process import describe_exit, python_command
from tenantry.tenants.model import Tenant

TIMEOUT_S = 60.0
"""Time limit in seconds for importing the models and comparing them, and for a trial database."""

SLUG_CHARS = 40
"""Maximum length of the message in the name of a revision file."""

_EMPTY_DATABASE = "sqlite://"

_TEMPLATE = '''\
"""{message}"""

{imports}

revision = "{revision}"
down_revision = {down_revision}
branch_labels = {branch_labels}
depends_on = None


def upgrade() -> None:
    """Change the tables to the models of this revision."""
{upgrade}


def downgrade() -> None:
    """Change the tables back."""
{downgrade}
'''


@dataclass(frozen=True)
class AutogenerateRequest:
    """A request to compare the models of an endpoint with a database."""

    tenant: str
    endpoint: str
    folder: str
    """The folder of the endpoint's package."""
    app_dir: str | None
    url: str
    options: dict[str, Any]
    """The tenant's `DATABASE_OPTIONS`."""
    owned: list[str]
    """The tables that the endpoint's revisions create. If no model defines such a table any more,
    the new revision drops the table."""


@dataclass(frozen=True)
class AutogenerateReply:
    """The result of a comparison: the bodies of two functions, which are empty without a change."""

    upgrade: str = ""
    downgrade: str = ""
    dialects: list[str] = field(default_factory=list)
    """The modules of `sqlalchemy.dialects` that the code needs."""
    problem: str = ""


@dataclass(frozen=True)
class NewRevision:
    """A revision file that was written."""

    path: Path
    revision: str
    has_unknown_tables: bool
    """Whether the tables that the former revisions create are unknown, so that none is dropped."""


def create_revision(tenant: Tenant, endpoint: str, message: str) -> NewRevision | None:
    """Write a revision file that brings a tenant's database to an endpoint's models.

    Returns:
        The new revision, or None if the database already agrees with the models.

    Raises:
        TenantryError: the tenant does not enable the endpoint, the database is not at the newest
            revisions, the models cannot be imported, or the file cannot be written.
    """
    package = _own_package(tenant, endpoint)
    branches = read_branches(tenant.blueprints, tenant.app_dir)
    branch = next((one for one in branches if one.endpoint == endpoint), None)
    number = _next_number(package / "migrations", branch)
    revision = _revision_id(endpoint, number)
    parent = _only_head(branch)
    url = _url_at_head(tenant, branches)
    owned = [] if branch is None else _owned_tables(branch)
    request = AutogenerateRequest(
        tenant=tenant.name,
        endpoint=endpoint,
        folder=str(package),
        app_dir=tenant.app_dir,
        url=url,
        options={} if url == _EMPTY_DATABASE else dict(tenant.database_options),
        owned=owned or [],
    )
    reply = _autogenerate(request)
    if not reply.upgrade:
        return None
    path = package / "migrations" / f"{number:04}_{_slug(message)}.py"
    _write(path, _text(message, revision, parent, reply))
    return NewRevision(path, revision, has_unknown_tables=owned is None)


def _own_package(tenant: Tenant, endpoint: str) -> Path:
    """Return the folder of an endpoint that the tenant enables, and that is the author's own."""
    if endpoint not in tenant.blueprints:
        raise TenantryError(
            f"tenant {tenant.name!r} does not enable {endpoint!r}; add it to 'BLUEPRINTS' in "
            f"{tenant.file}. Enabled: {', '.join(tenant.blueprints)}."
        )
    package = find_endpoint(endpoint, tenant.app_dir)
    if package != endpoint:
        raise TenantryError(
            f"endpoint {endpoint!r} comes with Tenantry, and so do its migrations; choose an "
            "endpoint of your own."
        )
    folders = [Path(folder) for folder in folders_of(package, tenant.app_dir)]
    if not any((folder / "models.py").is_file() for folder in folders) and not any(
        (folder / "models/__init__.py").is_file() for folder in folders
    ):
        raise TenantryError(
            f"endpoint {endpoint!r} has no models.py; define its tables there, as classes of a "
            "sqlalchemy.orm.DeclarativeBase."
        )
    return folders[0]


def _next_number(folder: Path, branch: Branch | None) -> int:
    """Return a number that neither a file nor a revision of the endpoint has."""
    revisions = () if branch is None else branch.revisions
    found = [re.match(r"\d+", path.name) for path in folder.glob("*.py")]
    found += [re.search(r"\d+$", revision) for revision in revisions]
    return max((int(match[0]) for match in found if match), default=0) + 1


def _revision_id(endpoint: str, number: int) -> str:
    revision = f"{endpoint.rpartition('.')[2]}_{number:04}"
    if len(revision) > REVISION_CHARS:
        raise TenantryError(
            f"the revision ID {revision!r} has {len(revision)} characters; PostgreSQL stores at "
            f"most {REVISION_CHARS}: give the endpoint a shorter name."
        )
    return revision


def _only_head(branch: Branch | None) -> str | None:
    """Return the newest revision of an endpoint, or None for an endpoint without revisions."""
    heads = () if branch is None else tuple(branch.heads)
    if branch is not None and len(heads) > 1:
        raise TenantryError(
            f"endpoint {branch.endpoint!r} has {len(heads)} newest revisions, "
            f"{format_revisions(heads)}; change a down_revision, so that the revisions are one "
            "sequence."
        )
    return heads[0] if heads else None


def _url_at_head(tenant: Tenant, branches: tuple[Branch, ...]) -> str:
    """Return the URL of the tenant's database, or that of an empty one if it does not exist yet.

    Raises:
        TenantryError: the database cannot be read, or is not at the newest revisions.
    """
    text = tenant.database_uri.get_secret_value()
    url = parse_database_url(text)
    is_sqlite = url.get_backend_name() == "sqlite"
    if is_sqlite and is_in_memory(url):
        raise TenantryError(
            f"{tenant.file}: 'DATABASE_URI': a database in memory has no tables to compare with; "
            "name another database."
        )
    try:
        status = compare(branches, read_versions(url, tenant.database_options))
    except Exception as error:  # drivers raise many classes of exceptions
        raise TenantryError(f"tenant {tenant.name!r}: {describe_unreachable(error)}") from error
    if status.state == "ahead":
        raise TenantryError(f"tenant {tenant.name!r}: {describe_unknown(status)}")
    if status.state == "behind":
        raise TenantryError(
            f"the database of tenant {tenant.name!r} is at {format_revisions(status.current)}, and "
            f"its endpoints are at {format_revisions(status.heads)}; first run: tenantry db "
            f"upgrade --tenant {tenant.name}"
        )
    return _EMPTY_DATABASE if is_sqlite and not sqlite_file_exists(url) else text


def _owned_tables(branch: Branch) -> list[str] | None:
    """Return the tables that the revisions of an endpoint create.

    The result is None if the revisions do not run on SQLite.
    """
    with (
        TemporaryDirectory(prefix="tenantry-trial-") as folder,
        MigrationRunner(TIMEOUT_S) as runner,
    ):
        path = Path(folder, "trial.sqlite3")
        lock = path.with_suffix(".lock")
        target = MigrationTarget("trial", f"sqlite:///{path}", (branch,), lock)
        if runner.upgrade(target).state != "migrated":
            return None
        with closing(sqlite3.connect(path)) as connection:
            rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            return sorted({name for (name,) in rows} - {"alembic_version"})


def _autogenerate(request: AutogenerateRequest) -> AutogenerateReply:
    """Compare the models with the database in a child process."""
    command = python_command(f"from {__package__}.autogenerate import main; main()")
    try:
        done = subprocess.run(  # noqa: S603 - the command runs a module of Tenantry
            command,
            input=json.dumps(asdict(request)).encode(),
            stdout=subprocess.PIPE,
            timeout=TIMEOUT_S,
            check=False,
        )
        reply = AutogenerateReply(**json.loads(done.stdout))
    except subprocess.TimeoutExpired:
        reply = AutogenerateReply(problem=f"importing its models takes longer than {TIMEOUT_S:g} s")
    except (ValueError, TypeError):
        end = describe_exit(done.returncode)
        reply = AutogenerateReply(problem=f"its models end their process ({end})")
    if reply.problem:
        raise EndpointError(
            request.endpoint, f"endpoint {request.endpoint!r}: {reply.problem}; fix models.py."
        )
    return reply


def _text(message: str, revision: str, parent: str | None, reply: AutogenerateReply) -> str:
    """Return the content of a revision file."""
    name = revision.rpartition("_")[0]
    return _TEMPLATE.format(
        message=_one_line(message),
        imports=_imports(reply),
        revision=revision,
        down_revision="None" if parent is None else f'"{parent}"',
        branch_labels=f'("{name}",)' if parent is None else "None",
        upgrade=reply.upgrade,
        downgrade=reply.downgrade,
    )


def _imports(reply: AutogenerateReply) -> str:
    is_used = "sa." in f"{reply.upgrade}\n{reply.downgrade}"
    lines = ["import sqlalchemy as sa"] if is_used else []
    lines.append("from alembic import op")
    if reply.dialects:
        lines.append(f"from sqlalchemy.dialects import {', '.join(reply.dialects)}")
    return "\n".join(lines)


def _one_line(message: str) -> str:
    """Return a message as the first line of a docstring."""
    text = " ".join(message.replace("\\", "/").replace('"', "'").split())
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _slug(message: str) -> str:
    words = "_".join(re.findall("[a-z0-9]+", message.lower()))
    return words[:SLUG_CHARS].strip("_") or "revision"


def _write(path: Path, text: str) -> None:
    try:
        if not path.parent.is_dir():
            path.parent.mkdir()
            path.parent.chmod(0o755)  # the host can run as a different user than this command
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "w") as file:
            file.write(text)
        path.chmod(0o644)
    except OSError as error:
        raise TenantryError(f"cannot write {path}: {error.strerror}.") from error
