"""The process in which `probe` has tenants built; run as a module, imported by nobody.

Reads one frame, the pickled tenants and their data folder, and writes a line of JSON for each:
`{}` when it has started, `{"routes"}` for each good one, else `{"text", "endpoint"}`. An endpoint
may do to this process what it likes.
"""

import gc
import json
import os
import pickle
from pathlib import Path
from typing import Any

from tenantry.app.factory import check_app, close_app, create_app
from tenantry.errors import EndpointError
from tenantry.observability.redaction import redact_in_scope, secret_scope
from tenantry.tenants.loader_child import read_frame
from tenantry.tenants.model import Tenant


def main() -> None:
    """Build each tenant that stdin names, and end."""
    requests, answers = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)  # what endpoints print is no answer
    request = read_frame(requests)
    if request is None:
        return
    tenants, data_dir = pickle.loads(request)  # noqa: S301 - from the process that started this one
    gc.freeze()
    os.write(answers, b"{}\n")
    for tenant in tenants:
        os.write(answers, json.dumps(build(tenant, data_dir)).encode() + b"\n")
    os._exit(0)  # what endpoints left behind, threads and exit functions, holds nobody up


def build(tenant: Tenant, data_dir: Path) -> dict[str, Any]:
    """Build a tenant's app as a host would, and drop it; return its routes, or why it cannot be."""
    try:
        app = create_app(tenant, data_dir=data_dir)
        try:
            with secret_scope(app.config):
                with app.test_request_context():  # as a host name would have it: SERVER_NAME = 7
                    pass
                check_app(app)
            routes = [
                f"{method} {rule.rule}"
                for rule in app.url_map.iter_rules()
                for method in sorted(rule.methods or ())
            ]
        finally:
            close_app(app)
    except EndpointError as error:
        return {"text": str(error), "endpoint": error.name}
    except BaseException as error:  # noqa: BLE001 - a key of Flask may make it raise anything
        return {"text": _text(error), "endpoint": None}
    return {"routes": routes}


def _text(error: BaseException) -> str:
    try:
        text = " ".join(f"{type(error).__name__}: {error}".split())
    except BaseException:  # noqa: BLE001 - its own __str__ may raise
        return type(error).__name__
    return redact_in_scope(text.removesuffix(":"), error)


if __name__ == "__main__":
    main()
