"""The host as its clients see it, in process."""

from collections.abc import Callable
from pathlib import Path

import pytest
from werkzeug.test import Client

from core.host import Host


def test_each_tenant_answers_under_its_own_prefix(
    host: Host, client: Client, write_tenant: Callable[..., Path]
) -> None:
    """Two tenants of one host answer their own landing pages."""
    write_tenant("acme")
    write_tenant("globex", URL_PREFIX="/clients/globex")
    host.load()

    answers = [client.get("/acme/?name=Ada"), client.get("/clients/globex/")]

    assert [answer.status_code for answer in answers] == [201, 201]
    assert [answer.get_json()["hello"] for answer in answers] == ["Ada", "guest"]


@pytest.mark.parametrize("path", ["/", "/nobody/", "/acmecorp/", "/ACME/", "//acme/", "/./acme/"])
def test_a_path_under_no_prefix_is_404(
    host: Host, client: Client, write_tenant: Callable[..., Path], path: str
) -> None:
    """Only a whole-segment, same-case prefix reaches a tenant; the rest is the host's 404."""
    write_tenant("acme")
    host.load()

    answer = client.get(path)

    assert (answer.status_code, answer.mimetype) == (404, "application/problem+json")
