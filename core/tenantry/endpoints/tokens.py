"""Signed tokens for links in mails, forms and invitations: `from tenantry import serializer`.

The salt contains the tenant's name, so a token verifies at its own tenant only, even if another
tenant has the same `SECRET_KEY`. Keys in `SECRET_KEY_FALLBACKS` still verify.
"""

from flask import current_app
from itsdangerous import URLSafeTimedSerializer


def serializer(purpose: str) -> URLSafeTimedSerializer:
    """Return the object that signs and verifies the current app's tokens for one purpose.

    A token verifies for its own purpose only: `serializer("reset-password")`. `loads` takes
    `max_age` in seconds and raises `itsdangerous.BadData` for an invalid token.

    Raises:
        RuntimeError: there is no app context.
    """
    config = current_app.config
    # itsdangerous signs with the last key.
    keys = [*(config["SECRET_KEY_FALLBACKS"] or ()), config["SECRET_KEY"]]
    salt = f"tenantry.token.{current_app.import_name}.{purpose}"
    return URLSafeTimedSerializer(keys, salt=salt)
