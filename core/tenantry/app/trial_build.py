"""Builds tenants in a child process, because an endpoint may end or hang its process.

The child process (`trial_build_process.py`) builds one tenant after another and writes one line for
each tenant. If a line is missing, that tenant ended or hung the child process. A new child process
then builds the remaining tenants.
"""

import json
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

from pydantic import SecretStr

from tenantry.app.trial_process import TrialProcess
from tenantry.database.url import default_database_url
from tenantry.errors import Problem
from tenantry.tenants.model import Tenant

BUILD_TIMEOUT_S = 10.0
"""Maximum duration of one trial build in seconds.

Building a tenant usually takes 5 ms, but importing a large library takes seconds.
"""

START_TIMEOUT_S = 30.0
"""Maximum seconds until the child process has started.

On an idle machine, importing Flask takes 0.5 s.
"""

APP = "APP"
"""The key of the part of a tenant that is an existing application."""

Routes = tuple[str, ...]
"""The routes of a tenant without its URL prefix, such as `GET /images/`."""


@dataclass(frozen=True)
class TrialSuccess:
    """Describes a tenant that can be built."""

    routes: Routes
    note: str = ""
    """What an operator should know about the app; usually empty."""


@dataclass(frozen=True)
class TrialFailure:
    """Describes why a tenant cannot be built."""

    text: str
    part: str | None = None
    """The endpoint that caused the failure, or `APP`, or None."""
    is_fatal: bool = False
    """Whether the build ended or hung the child process."""


@dataclass(frozen=True)
class TrialReport:
    """What the trial builds of several tenants have found."""

    problems: Sequence[tuple[Tenant, Problem]]
    notes: Sequence[tuple[Tenant, Problem]]
    """Facts that do not prevent the host from serving the tenant."""


def try_builds(
    tenants: Sequence[Tenant], data_dir: Path, *, only_parts: bool = False
) -> TrialReport:
    """Build each tenant, and return the problems that occur.

    Each endpoint and each application is first built alone, for the first tenant that has it.
    Therefore, an endpoint that hangs takes `BUILD_TIMEOUT_S` only once, even if many tenants enable
    it.

    Args:
        tenants: The tenants to build.
        data_dir: The host's data folder.
        only_parts: Build only the tenants with an endpoint or application whose own build failed.
    """
    parts = {tenant.name: _parts(tenant) for tenant in tenants}
    firsts = {part: trial for name in reversed(parts) for part, trial in parts[name].items()}
    results = dict(zip(firsts, _build_all([*firsts.values()], data_dir), strict=True))
    failed = {part: one for part, one in results.items() if isinstance(one, TrialFailure)}
    fatal = {part: failure for part, failure in failed.items() if failure.is_fatal}
    to_build = [
        tenant
        for tenant in tenants
        if not fatal.keys() & parts[tenant.name].keys()
        and (not only_parts or failed.keys() & parts[tenant.name].keys())
    ]
    names = [tenant.name for tenant in to_build]
    built = dict(zip(names, _build_all(to_build, data_dir), strict=True))
    return TrialReport(
        [
            (tenant, problem)
            for tenant in tenants
            for problem in _problems(tenant, built.get(tenant.name), fatal)
        ],
        [
            (tenant, Problem(tenant.file, f"{one.note}.", APP if tenant.app else "BLUEPRINTS"))
            for tenant in to_build
            if isinstance(one := built[tenant.name], TrialSuccess) and one.note
        ],
    )


def find_routes(tenants: Sequence[Tenant], data_dir: Path) -> list[Routes]:
    """Return the routes of each tenant. A tenant that cannot be built has no routes."""
    results = _build_all(tenants, data_dir)
    return [() if isinstance(result, TrialFailure) else result.routes for result in results]


def _parts(tenant: Tenant) -> dict[str, Tenant]:
    """Return a copy of a tenant for each of its endpoints, and one for its application.

    The keys are the same for all tenants that have the same endpoint or application.
    """
    parts = {
        name: tenant.model_copy(update={"blueprints": (name,), "app": None})
        for name in tenant.blueprints
    }
    if tenant.app is not None:
        parts[_app_part(tenant)] = tenant.model_copy(update={"blueprints": ()})
    return parts


def _app_part(tenant: Tenant) -> str:
    return f"{tenant.app} in {tenant.app_dir}"


def _problems(
    tenant: Tenant, result: TrialFailure | TrialSuccess | None, fatal: Mapping[str, TrialFailure]
) -> Iterator[Problem]:
    for index, name in enumerate(tenant.blueprints):
        if name in fatal:
            text = f"endpoint {name!r} {fatal[name].text}; fix the endpoint."
            yield Problem(tenant.file, text, f"BLUEPRINTS[{index}]")
    if tenant.app is not None and _app_part(tenant) in fatal:
        text = f"application {tenant.app!r} {fatal[_app_part(tenant)].text}; fix the application."
        yield Problem(tenant.file, text, APP)
    if not isinstance(result, TrialFailure):
        return
    if result.part == APP:
        yield Problem(tenant.file, result.text, APP)
    elif result.part in tenant.blueprints:
        index = tenant.blueprints.index(result.part)
        yield Problem(tenant.file, result.text, f"BLUEPRINTS[{index}]")
    else:
        remedy = f"for the traceback, run: tenantry get {tenant.address.url}"
        yield Problem(tenant.file, f"cannot be built: {result.text.rstrip('.')}; {remedy}")


def _build_all(tenants: Sequence[Tenant], data_dir: Path) -> list[TrialFailure | TrialSuccess]:
    """Return the result of each tenant's trial build, in the order of `tenants`."""
    results: list[TrialFailure | TrialSuccess] = []
    with throw_away_folder() as folder:
        trials = [moved(tenant, data_dir, folder) for tenant in tenants]
        while len(results) < len(trials):
            with _Child(trials[len(results) :], folder) as child:
                if not child.is_ready():
                    failure = TrialFailure("the process for trial builds does not start")
                    return results + [failure] * (len(trials) - len(results))
                results += child.results()
    return results


@contextmanager
def throw_away_folder() -> Iterator[Path]:
    """Yield a data folder for builds that change nothing, and remove it after the `with` block."""
    with TemporaryDirectory(prefix="tenantry-trial-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def moved(tenant: Tenant, data_dir: Path, folder: Path) -> Tenant:
    """Return a copy of a tenant whose default database is in another data folder."""
    if tenant.database_uri.get_secret_value() != default_database_url(data_dir, tenant.name):
        return tenant
    uri = SecretStr(default_database_url(folder, tenant.name))
    return tenant.model_copy(update={"database_uri": uri})


class _Child:
    """The child process of trial builds.

    The end of the `with` block kills the process. Not thread-safe.
    """

    def __init__(self, tenants: Sequence[Tenant], data_dir: Path) -> None:
        self._tenants = tenants
        self._process = TrialProcess(
            f"from {__package__}.trial_build_process import main; main()",
            pickle.dumps((tenants, data_dir.absolute())),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.__exit__(*error)

    def is_ready(self) -> bool:
        """Wait for the start of the child process.

        Return False if the process does not start in time.
        """
        return self._process.next_line(START_TIMEOUT_S) == b"{}"

    def results(self) -> Iterator[TrialFailure | TrialSuccess]:
        """Yield the result of each build, up to the first build that ends or hangs the process."""
        for _ in self._tenants:
            line = self._process.next_line(BUILD_TIMEOUT_S)
            try:
                answer = json.loads(line or b"")
                result = (
                    TrialSuccess(tuple(map(str, answer["routes"])), str(answer["note"]))
                    if "routes" in answer
                    else TrialFailure(answer["text"], answer["part"])
                )
            except (ValueError, LookupError, TypeError):  # the output is not a valid line
                yield TrialFailure(self._process.describe_end(BUILD_TIMEOUT_S), is_fatal=True)
                return
            yield result
