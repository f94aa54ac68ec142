"""Tenantry finds cookie names that browsers reject under a tenant's URL prefix."""

from typing import Any

import pytest

from tenantry.tenants.cookie_names import find_lost_cookies


@pytest.mark.parametrize(
    ("config", "lost"),
    [
        ({"SESSION_COOKIE_NAME": "__Host-session"}, ["SESSION_COOKIE_NAME"]),
        ({"SESSION_COOKIE_NAME": "__host-session"}, ["SESSION_COOKIE_NAME"]),
        ({"SESSION_COOKIE_NAME": "__Host-Http-s"}, ["SESSION_COOKIE_NAME"]),
        (
            {"SESSION_COOKIE_NAME": "__Host-s", "SESSION_COOKIE_SECURE": True},
            ["SESSION_COOKIE_NAME"],
        ),
        ({"SESSION_COOKIE_NAME": "__Secure-s"}, ["SESSION_COOKIE_NAME"]),
        ({"SESSION_COOKIE_NAME": "__Http-s"}, ["SESSION_COOKIE_NAME"]),
        ({"SESSION_COOKIE_NAME": "__Secure-s", "SESSION_COOKIE_SECURE": True}, []),
        ({"REMEMBER_COOKIE_NAME": "__Secure-r"}, ["REMEMBER_COOKIE_NAME"]),
        ({"JWT_ACCESS_COOKIE_NAME": "__Host-j"}, ["JWT_ACCESS_COOKIE_NAME"]),
        ({"JWT_ACCESS_COOKIE_NAME": "__Secure-j"}, []),
        ({"SESSION_COOKIE_NAME": "session", "OTHER_COOKIE_NAME": None, "TITLE": "__Host-x"}, []),
    ],
)
def test_a_prefix_that_the_path_or_the_scheme_breaks_is_found(
    config: dict[str, Any], lost: list[str]
) -> None:
    """`__Host-` needs the path `/`, which a tenant's cookie never has; `__Secure-` needs HTTPS."""
    assert lost == [key for key, _ in find_lost_cookies(config)]
