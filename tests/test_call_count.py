"""The simplest request passes through few of Tenantry's own functions."""

from collections.abc import Callable
from pathlib import Path

from werkzeug.test import create_environ, run_wsgi_app

from call_count import counting_calls
from tenantry.host import create_host
from tenantry.settings import HostSettings

MAX_CALLS = 70
"""Maximum number of Tenantry's functions that a request calls outside server and endpoint."""


def test_a_landing_request_calls_few_of_our_functions(
    settings: HostSettings, write_tenant: Callable[..., Path]
) -> None:
    """A request to the landing endpoint calls at most `MAX_CALLS` functions of Tenantry."""
    write_tenant("acme")
    host = create_host(settings, is_serving=True)
    host.load()
    for _ in range(2):
        run_wsgi_app(host, create_environ("/acme/"), buffered=True)

    with counting_calls() as calls:
        _, status, _ = run_wsgi_app(host, create_environ("/acme/"), buffered=True)
    host.close()

    assert "201 CREATED" == status
    assert calls.total() <= MAX_CALLS, calls.most_common()
