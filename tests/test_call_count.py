"""The simplest request passes through few of Tenantry's own functions."""

from collections.abc import Callable
from pathlib import Path

from werkzeug.test import create_environ, run_wsgi_app

from call_count import count_served_calls, counting_calls
from tenantry.host import create_host
from tenantry.settings import HostSettings

MAX_CALLS = 70
"""Maximum number of Tenantry's functions, except in server and endpoint, that a request calls."""

MAX_SERVED_CALLS = 60
"""Maximum number of Tenantry's functions that a request calls under Tenantry's server."""


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


def test_a_served_request_calls_few_of_our_functions(
    settings: HostSettings, write_tenant: Callable[..., Path]
) -> None:
    """With the server and all threads, a request calls at most `MAX_SERVED_CALLS` functions."""
    write_tenant("acme")
    host = create_host(settings, is_serving=True)

    calls = count_served_calls(host, b"GET /acme/ HTTP/1.1\r\nHost: a\r\n\r\n")
    host.close()

    assert calls.total() <= MAX_SERVED_CALLS, calls.most_common()
