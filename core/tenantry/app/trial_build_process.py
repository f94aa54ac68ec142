"""Runs in the child process that `trial_build.py` starts. No other module imports this module.

The child process reads the pickled tenants and the data folder from stdin, and writes `{}` to
stdout. After each build, the child process writes a line with a JSON object. The JSON object
contains `routes` and `note` or, if the build failed, `text` and `part`.
"""

import gc
import json
import os
import pickle
from http import HTTPStatus
from pathlib import Path
from typing import Any

from tenantry.app.factory import close_app, create_app
from tenantry.app.probe import ProbeAnswer, check_app
from tenantry.app.trial_build import APP
from tenantry.endpoints.loading import describe_failure
from tenantry.errors import ApplicationError, EndpointError
from tenantry.observability.redaction import secret_scope
from tenantry.tenants.loader_child import read_frame
from tenantry.tenants.model import Tenant


def main() -> None:
    """Build each tenant from stdin, write the results, and exit."""
    requests, answers = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)  # the redirect keeps output of endpoints from the parent process
    request = read_frame(requests)
    if request is None:
        return
    tenants, data_dir = pickle.loads(request)  # noqa: S301 - the parent wrote it
    gc.freeze()
    os.write(answers, b"{}\n")
    for tenant in tenants:
        os.write(answers, json.dumps(build(tenant, data_dir)).encode() + b"\n")
    os._exit(0)  # `os._exit` does not wait for threads and exit handlers of endpoints


def build(tenant: Tenant, data_dir: Path) -> dict[str, Any]:
    """Build and close a tenant's app.

    Return the routes of the app, or the reason for the failure.
    """
    try:
        app = create_app(tenant, data_dir=data_dir)
        try:
            with secret_scope(app.config):
                # Creating a context makes Flask report an invalid value, such as SERVER_NAME = 7.
                with app.test_request_context():
                    pass
                note = _note(check_app(app))
            routes = [
                f"{method} {rule.rule}"
                for rule in app.url_map.iter_rules()
                for method in sorted(rule.methods or ())
            ]
        finally:
            close_app(app)
    except EndpointError as error:
        return {"text": str(error), "part": error.name}
    except ApplicationError as error:
        return {"text": str(error), "part": APP}
    except BaseException as error:  # noqa: BLE001 - an app may raise anything
        return {"text": describe_failure(error, tenant.blueprints), "part": None}
    return {"routes": routes, "note": note}


def _note(answer: ProbeAnswer) -> str:
    """Return what an operator should know about an answer, without secrets, or ""."""
    if answer.status < HTTPStatus.INTERNAL_SERVER_ERROR:
        return ""
    reason = "" if answer.error is None else f": {describe_failure(answer.error, ())}"
    return f"answers the host's first request, OPTIONS /, with {answer.status}{reason}"
