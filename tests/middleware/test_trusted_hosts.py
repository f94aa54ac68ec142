"""The check of host names, on WSGI environs."""

import pytest
from werkzeug.test import create_environ

from tenantry.middleware.trusted_hosts import TrustedHosts


def _status(names: tuple[str, ...], host: str | None) -> int:
    """Return the status of the refusal of a request for a host name, or 200."""
    environ = create_environ("/")
    environ.pop("HTTP_HOST")
    if host is not None:
        environ["HTTP_HOST"] = host
    refusal = TrustedHosts(names).refuse(environ)
    return 200 if refusal is None else refusal[0].status


@pytest.mark.parametrize(
    ("names", "host", "status"),
    [
        ((), "anything.test", 200),
        (("acme.test",), "acme.test", 200),
        (("acme.test",), "ACME.test:8000", 200),
        (("ACME.test",), "acme.test.", 200),
        (("acme.test",), "www.acme.test", 400),
        (("acme.test",), "evilacme.test", 400),
        (("acme.test",), "acme.test.evil.test", 400),
        (("acme.test",), None, 400),
        ((".acme.test",), "acme.test", 200),
        ((".acme.test",), "www.acme.test", 200),
        ((".acme.test",), "a.b.acme.test:80", 200),
        ((".acme.test",), "evilacme.test", 400),
        (("globex.test", "acme.test"), "acme.test", 200),
        (("[::1]",), "[::1]:8000", 200),
    ],
)
def test_only_trusted_hosts_are_accepted(
    names: tuple[str, ...], host: str | None, status: int
) -> None:
    """A trusted name matches itself, a leading dot adds subdomains, an empty list allows all."""
    assert status == _status(names, host)


def test_a_refusal_does_not_list_the_trusted_hosts() -> None:
    """The 400 for an unknown host contains no host name."""
    refusal = TrustedHosts(("acme.test",)).refuse(create_environ("/", "http://evil.test"))

    assert refusal is not None
    body = refusal[0].render({})[2]
    assert (False, False) == (b"acme" in body, b"evil" in body)
