"""Sends a new app its first request, and finds the endpoint of a request."""

from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from flask import Flask, got_request_exception
from werkzeug.exceptions import HTTPException
from werkzeug.test import Client

from tenantry.endpoints.loading import LOADED_ENDPOINTS
from tenantry.http.environ import HEAD_CHECKED_FOR
from tenantry.tenants.model import Tenant


@dataclass(frozen=True)
class ProbeAnswer:
    """The answer of an app to its first request. Any answer means that the app serves."""

    status: int
    error: BaseException | None = None
    """The exception that the app has handled, or None."""


def check_app(app: Flask) -> ProbeAnswer:
    """Send the app an `OPTIONS` request, which ends Flask's setup phase, and return the answer.

    Raises:
        BaseException: the app gave no answer.
    """
    raised: list[BaseException] = []

    def note(_: object, exception: BaseException) -> None:
        raised.append(exception)

    names = app.config.get("HOSTS") or app.config["TRUSTED_HOSTS"] or ["localhost"]
    host = names[0].removeprefix(".")
    checked = {HEAD_CHECKED_FOR: app.name}
    with got_request_exception.connected_to(note, app):
        client = Client(app.wsgi_app)
        try:
            answer = client.options("/", base_url=f"http://{host}/", environ_overrides=checked)
        except Exception as error:
            if error not in raised:
                raise
            # With `DEBUG` or `TESTING`, Flask raises an exception that it has handled.
            return ProbeAnswer(HTTPStatus.INTERNAL_SERVER_ERROR, error)
        answer.close()
    return ProbeAnswer(answer.status_code, raised[0] if raised else None)


def endpoint_finder(app: Flask, tenant: Tenant) -> Callable[[dict[str, Any]], str | None]:
    """Return a function that finds the endpoint of a request in its WSGI environ.

    The function matches URLs in the same way as the app. The result is "" for a route that belongs
    to no endpoint, such as `static`, and None if the app would answer with a redirect, 404 or 405.
    """
    loaded = app.extensions[LOADED_ENDPOINTS]
    names = {one.blueprint.name: name for one, name in zip(loaded, tenant.blueprints, strict=True)}

    def endpoint_of(environ: dict[str, Any]) -> str | None:
        try:
            adapter = app.create_url_adapter(app.request_class(environ, populate_request=False))
            matched = None if adapter is None else adapter.match()[0]
        except HTTPException:
            return None
        return None if matched is None else names.get(str(matched).partition(".")[0], "")

    return endpoint_of
