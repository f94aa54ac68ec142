"""Runs in the child process that `examination` starts. No other module imports this module.

The child process builds the application as two tenants, requests the start page of each, closes
both, and writes facts to stdout.
"""

import gc
import os
import pickle
from collections.abc import Iterator
from pathlib import Path, PurePath

from flask import Flask

from tenantry.adoption.environment import record_environment
from tenantry.adoption.fact import Fact, FactWriter
from tenantry.adoption.links import check_start_page
from tenantry.adoption.process_state import ProcessState
from tenantry.adoption.watch import Watch
from tenantry.app.factory import close_app, create_app
from tenantry.app.probe import check_app
from tenantry.endpoints.loading import describe_failure
from tenantry.observability.redaction import secret_scope
from tenantry.tenants.loader_child import read_frame
from tenantry.tenants.model import KEYS, Tenant


def main() -> None:
    """Examine the tenants from stdin, write facts, and end the process."""
    requests, answers = os.dup(0), os.dup(1)
    silence_output()
    request = read_frame(requests)
    if request is not None:
        tenants, folder, data_dir = pickle.loads(request)  # noqa: S301 - the parent wrote it
        facts = FactWriter(answers)
        os.register_at_fork(after_in_child=facts.silence)
        _examine(tenants, folder, data_dir, facts)
    os._exit(0)  # `os._exit` does not wait for threads and exit handlers of the application


def silence_output() -> None:
    """Keep the output of the application from the terminal and from the parent process."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)


def _examine(tenants: list[Tenant], folder: Path, data_dir: Path, facts: FactWriter) -> None:
    root = Path.cwd()
    state = ProcessState()
    record_environment(root, facts.write)
    Watch(folder, root, facts.write).begin()
    apps: list[Flask] = []
    for tenant in tenants:
        facts.write(Fact("phase", "build", tenant.name))
        try:
            app = create_app(tenant, data_dir=data_dir)
            apps.append(app)
            with secret_scope(app.config):
                check_app(app)
                facts.write(Fact("phase", "request", tenant.name))
                for fact in (
                    *_settings(app),
                    *check_start_page(app, tenant.name, tenant.url_prefix),
                ):
                    facts.write(fact)
        except BaseException as error:  # noqa: BLE001 - an app may raise anything
            for fact in (one for app in _unfinished_apps() for one in _settings(app)):
                facts.write(fact)
            facts.write(Fact("failed", describe_failure(error, ()), tenant.name))
            break
    for app in apps:
        close_app(app)
    for fact in (*state.changes(), *state.threads_left()):
        facts.write(fact)
    facts.write(Fact("done"))


def _unfinished_apps() -> list[Flask]:
    """Return the Flask objects of a failed build, which the exception's traceback keeps alive."""
    return [one for one in gc.get_objects() if issubclass(type(one), Flask)]


def _settings(app: Flask) -> Iterator[Fact]:
    """Yield each key of the configuration that can name a path, so that a finding names the key."""
    for key, value in [*app.config.items()]:
        if key not in KEYS.values() and isinstance(value, str | PurePath) and str(value):
            path = str(value).removeprefix("sqlite:///")
            yield Fact("setting", key, os.path.realpath(path))
