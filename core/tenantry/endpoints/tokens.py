"""Signed tokens of the tenant's own: for links in mails, forms, invitations.

The salt has the tenant's name, so that a token verifies at its own tenant only, even where two
tenants have one `SECRET_KEY`. Old keys verify as long as they stand in `SECRET_KEY_FALLBACKS`.
"""

from flask import current_app
from itsdangerous import URLSafeTimedSerializer


def serializer(purpose: str) -> URLSafeTimedSerializer:
    """Return what signs and verifies the current app's tokens for one purpose.

    A token for one purpose verifies for no other: `serializer("reset-password")`. Its `loads` takes
    `max_age` in seconds and raises `itsdangerous.BadData` for a token that is not good.

    Raises:
        RuntimeError: outside of a request and of an app context.
    """
    config = current_app.config
    keys = [*(config["SECRET_KEY_FALLBACKS"] or ()), config["SECRET_KEY"]]  # the last one signs
    salt = f"tenantry.token.{current_app.import_name}.{purpose}"
    return URLSafeTimedSerializer(keys, salt=salt)
