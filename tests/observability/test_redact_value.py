"""Secret values of a configuration are masked."""

from collections import namedtuple
from pathlib import Path

import pytest

from tenantry.observability.redaction import MASK, redact_value

PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----"


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("API_TOKEN", "x", MASK),
        ("SENTRY_DSN", "x", MASK),
        ("AWS_ACCESS_KEY", "x", MASK),
        ("TOKEN", "", ""),
        ("AWSKEY", "x", MASK),
        ("apiKeys", ["x"], MASK),
        ("BASICAUTH", ("a", "x"), MASK),
        ("LDAP_BINDPWD", b"x", MASK),
        ("LDAP_PASS", "x", MASK),
        ("PIN", 1234, MASK),
        ("KEYBOARD", "qwerty", "qwerty"),
        ("KEYWORDS", ["a"], ["a"]),
        ("MONKEY", "x", "x"),
        ("AUTHOR", "Ada", "Ada"),
        ("BASIC_AUTH_FORCE", True, True),
        ("AUTHORIZATION", "Basic x", MASK),
        ("CACHE_KEY_PREFIX", "acme", "acme"),
        ("BACKEND", b"redis://:pw@host/0", f"redis://:{MASK}@host/0"),
        ("HOOK", "https://h/?api_key=x&page=2", f"https://h/?api_key={MASK}&page=2"),
        ("HOOK", "https://u:p@ss@h/", f"https://u:{MASK}@h/"),
        ("BACKEND", "redis://u:Hunter2/slash@h/0", f"redis://u:{MASK}@h/0"),
        ("BACKENDS", "redis://u:a/b@h or 'redis://h' @", f"redis://u:{MASK}@h or 'redis://h' @"),
        ("PAGE", "http://h:80/a?b=1 a@b", "http://h:80/a?b=1 a@b"),
        ("SIGNER", f"{PEM}\n", f"{MASK}\n"),
        ("SIGNER", f"a {PEM[:-9]}", f"a {MASK}"),
        ("TRUSTED", "-----BEGIN CERTIFICATE-----\nMII", "-----BEGIN CERTIFICATE-----\nMII"),
        ("SENT", ["X: 1", "Bearer ab.c-d_e+f/="], ["X: 1", f"Bearer {MASK}"]),
        ("JWKS_URI", "https://h/keys?code=x&v=1", f"https://h/keys?code={MASK}&v=1"),
        ("COUNTRY", "code=de", "code=de"),
        ("LIBPQ", "host=h password=x dbname=d", f"host=h password={MASK} dbname=d"),
        ("CACHE_URL", "redis://:pw@host/0", f"redis://:{MASK}@host/0"),
        ("MAIL", {"host": "h", "password": "pw"}, {"host": "h", "password": MASK}),
        ("URLS", ["http://u:pw@h/"], [f"http://u:{MASK}@h/"]),
    ],
)
def test_what_is_masked(key: str, value: object, shown: object) -> None:
    """A value is masked if its key looks like a secret; in a URL, only the password is masked."""
    assert shown == redact_value(key, value)


def test_what_holds_no_secret_is_itself() -> None:
    """Masking does not copy a value that contains no secret."""
    point = namedtuple("Point", "x y")(1, [2])  # noqa: PYI024 - users write it like this

    class Stubborn:
        def __str__(self) -> str:
            raise RuntimeError

    for value in (point, {"a": [point]}, Stubborn()):
        assert value is redact_value("PLACE", value, ["secret"])


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("a/b cd", MASK),
        ("see a/b cd.", f"see {MASK}."),
        ("https://h/a%2Fb%20cd", f"https://h/{MASK}"),
        (b"\xffa/b cd", f"\ufffd{MASK}"),
        ({"a/b cd": {("a/b cd", 1)}}, {MASK: {(MASK, 1)}}),
        (Path("/srv/a/b cd"), f"/srv/{MASK}"),
        (1234, MASK),
        (12345, 12345),
        ("xyz", MASK),
        ("wxyz", "wxyz"),
    ],
)
def test_a_known_secret_is_masked_wherever_it_stands(value: object, shown: object) -> None:
    """A known secret is masked wherever it appears, unless it is too short.

    A short secret is masked only if it is the whole value.
    """
    assert shown == redact_value("NAME", value, ["a/b cd", "1234", "xyz"])
