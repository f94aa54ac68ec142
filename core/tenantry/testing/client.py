"""The fixture `client`, which is not registered if another plugin has a fixture of this name."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from flask import Flask
    from flask.testing import FlaskClient


@pytest.fixture
def client(tenant: "Flask") -> "FlaskClient":
    """Return Flask's test client for the app of the fixture `tenant`.

    Paths are relative to the tenant's address. `CLIENTS`, `OIDC`, `RATE_LIMIT`, `TRUSTED_HOSTS` and
    `MAX_CONTENT_LENGTH` apply as in a host.
    """
    return tenant.test_client()
