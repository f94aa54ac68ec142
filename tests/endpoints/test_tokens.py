"""A signed token is valid only at the tenant that signed it, and only for its purpose."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from flask import Flask
from itsdangerous import BadSignature

from tenantry import serializer
from tenantry.app.factory import close_app, create_app

AppOf = Callable[..., Flask]

KEY, OLD = "k" * 32, "o" * 32


@pytest.fixture(name="app_of")
def _app_of(tmp_path: Path) -> Iterator[AppOf]:
    """Return a function that makes an app by name. All apps have the same secret key."""
    with ExitStack() as closing:

        def make(name: str, **keys: object) -> Flask:
            values = {"APP_NAME": name, "SECRET_KEY": KEY, "BLUEPRINTS": ["landing"]}
            app = create_app(values | keys, data_dir=tmp_path)
            closing.callback(close_app, app)
            return app

        yield make


def token_of(app: Flask) -> str:
    """Return a token that the app has signed."""
    with app.app_context():
        return str(serializer("invite").dumps({"user": "ada"}))


def test_a_token_verifies_at_its_own_tenant(app_of: AppOf) -> None:
    """Verifying a token at the tenant that signed it returns the token's data."""
    app = app_of("acme")
    token = token_of(app)

    with app.app_context():
        assert {"user": "ada"} == serializer("invite").loads(token, max_age=60)


@pytest.mark.parametrize(("tenant", "purpose"), [("globex", "invite"), ("acme", "reset")])
def test_a_token_does_not_verify_elsewhere(app_of: AppOf, tenant: str, purpose: str) -> None:
    """A token is invalid for other purposes, and at other tenants even with the same secret key."""
    token = token_of(app_of("acme"))

    with app_of(tenant).app_context(), pytest.raises(BadSignature):
        serializer(purpose).loads(token)


def test_an_old_key_verifies_and_the_new_one_signs(app_of: AppOf) -> None:
    """After a change of the secret key, old tokens stay valid, and new tokens use the new key."""
    old = app_of("acme", SECRET_KEY=OLD)
    both = app_of("acme", SECRET_KEY_FALLBACKS=[OLD])
    new = app_of("acme")

    with both.app_context():
        assert {"user": "ada"} == serializer("invite").loads(token_of(old))
    with new.app_context():
        assert {"user": "ada"} == serializer("invite").loads(token_of(both))
