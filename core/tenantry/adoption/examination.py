"""Examines an application in child processes, with throw-away data, and returns the verdict.

One child process builds the application as two tenants and watches it. If both builds succeed,
another child process audits two tenants. At the end, the throw-away folder is removed, and all
processes that the application started are killed.
"""

import os
import pickle
import secrets
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from tenantry.adoption.fact import Fact, read_fact
from tenantry.adoption.verdict import Verdict, judge
from tenantry.app.trial_build import BUILD_TIMEOUT_S, START_TIMEOUT_S, throw_away_folder
from tenantry.app.trial_process import TrialProcess
from tenantry.settings import PREFIX
from tenantry.tenants.model import Tenant
from tenantry.tenants.validation import parse_tenant

TENANTS = ("first", "second")
"""The names of the two tenants, which messages contain."""

AUDIT_TIMEOUT_S = 60.0
"""Maximum duration of the audit in seconds. The audit of two tenants usually takes 2 s."""

_WATCH = "from tenantry.adoption.watch_process import main; main()"


def examine(app: str, app_dir: Path, audit_code: str) -> Verdict:
    """Return whether an application can be a tenant.

    The application can change no file outside of a throw-away folder. Connections to servers are
    not prevented.

    Args:
        app: a value of `APP` whose module exists.
        app_dir: the folder that contains the module.
        audit_code: Python code that audits the tenants of the settings in its environment. It reads
            the pickled throw-away folder from stdin, and writes facts to stdout.

    Raises:
        TenantFileError: the value of `APP` or of `APP_DIR` is invalid.
    """
    with _throw_away_host(app, app_dir) as (tenants, folder, environment):
        facts, failure = _watch(tenants, folder, environment)
        if not failure and all(fact.kind != "twice" for fact in facts):
            audited, failure = _audit(audit_code, folder, environment)
            facts += audited
    return judge(app, facts, failure)


@contextmanager
def _throw_away_host(
    app: str, app_dir: Path
) -> Iterator[tuple[list[Tenant], Path, dict[str, str]]]:
    """Yield two tenants, a folder for all of their data, and an environment for processes."""
    with throw_away_folder() as folder:
        tenants_dir, data_dir, temporary = (folder / name for name in ("tenants", "data", "tmp"))
        for path in (tenants_dir, data_dir, temporary):
            path.mkdir(mode=0o700)
        tenants = []
        for name in TENANTS:
            values = {"SECRET_KEY": secrets.token_hex(), "APP": app, "APP_DIR": str(app_dir)}
            file = tenants_dir / f"{name}.py"
            file.write_text("".join(f"{key} = {value!r}\n" for key, value in values.items()))
            tenants.append(parse_tenant(name, values, file=str(file), data_dir=data_dir))
        own = {name: one for name, one in os.environ.items() if not name.startswith(PREFIX)}
        own |= {
            f"{PREFIX}TENANTS_DIR": str(tenants_dir),
            f"{PREFIX}DATA_DIR": str(data_dir),
            "TMPDIR": str(temporary),
            "XDG_CACHE_HOME": str(temporary / "cache"),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        try:
            yield tenants, folder, own
        finally:
            _kill_processes(folder)


def _watch(
    tenants: list[Tenant], folder: Path, environment: Mapping[str, str]
) -> tuple[list[Fact], str]:
    """Return the facts about an application, and why it cannot be built, or ""."""
    request = pickle.dumps((tenants, folder, folder / "data"))
    facts, end = _facts(_WATCH, request, environment, BUILD_TIMEOUT_S)
    failed = next((fact for fact in facts if fact.kind == "failed"), None)
    phase = next((fact for fact in reversed(facts) if fact.kind == "phase"), Fact("phase", "build"))
    reason = end or (failed.subject if failed else "")
    if not reason:
        return facts, ""
    if phase.subject == "request":
        return facts, f"while it answers the request GET /, it {end or f'raises {reason}'}"
    reason = f"while it is built, it {reason}" if end else reason
    if phase.detail == TENANTS[1]:
        return [*facts, Fact("twice", reason.rstrip("."))], ""
    return facts, reason


def _audit(code: str, folder: Path, environment: Mapping[str, str]) -> tuple[list[Fact], str]:
    facts, end = _facts(code, pickle.dumps(folder), environment, AUDIT_TIMEOUT_S)
    failed = next((fact for fact in facts if fact.kind == "failed"), None)
    reason = failed.subject if failed else f"it {end} during the audit" if end else ""
    return facts, reason


def _facts(
    code: str, request: bytes, environment: Mapping[str, str], timeout_s: float
) -> tuple[list[Fact], str]:
    """Run a child process. Return its facts, and how it ended if it ended too early, or "".

    Args:
        code: the Python code that the process runs.
        request: what the process reads.
        environment: the environment variables.
        timeout_s: the maximum duration of each phase.
    """
    facts: list[Fact] = []
    deadline = time.monotonic() + START_TIMEOUT_S
    with TrialProcess(code, request, dict(environment)) as process:
        while True:
            line = process.next_line(max(deadline - time.monotonic(), 0))
            try:
                fact = read_fact(line or b"")
            except ValueError:
                return facts, process.describe_end(timeout_s)
            if fact.kind == "done":
                return facts, ""
            facts.append(fact)
            if fact.kind == "phase":
                deadline = time.monotonic() + timeout_s


def _kill_processes(folder: Path) -> None:
    """Kill the processes that use a throw-away folder, such as servers that detach themselves.

    Each process of the application has the folder in its environment.
    """
    mark = f"={folder}/".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # the process has ended, or belongs to another user
            if mark in (entry / "environ").read_bytes() and int(entry.name) != os.getpid():
                os.kill(int(entry.name), signal.SIGKILL)
