"""Signed tokens for links in mails, forms and invitations: `from tenantry import serializer`.

The salt contains the tenant's name, so only the tenant that made a token can verify the token, even
if another tenant has the same `SECRET_KEY`. Tokens that a key of `SECRET_KEY_FALLBACKS` signed
still verify.
"""

from flask import current_app
from itsdangerous import URLSafeTimedSerializer


def serializer(purpose: str) -> URLSafeTimedSerializer:
    """Return the object that signs and verifies the current app's tokens for one purpose.

    A token verifies only for the purpose that the token was made for, such as
    `serializer("reset-password")`. The serializer's `loads` takes `max_age` in seconds and raises
    `itsdangerous.BadData` for an invalid token.

    Raises:
        RuntimeError: no app context is active.
    """
    config = current_app.config
    # itsdangerous signs with the last key, so `SECRET_KEY` comes after the fallbacks.
    keys = [*(config["SECRET_KEY_FALLBACKS"] or ()), config["SECRET_KEY"]]
    salt = f"tenantry.token.{current_app.import_name}.{purpose}"
    return URLSafeTimedSerializer(keys, salt=salt)
