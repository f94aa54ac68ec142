"""Provides `tenantry.serializer`, which signs tokens for links in emails, forms and invitations.

The salt of a token contains the name of the tenant. Therefore, a tenant rejects the tokens of all
other tenants, even if two tenants have the same `SECRET_KEY`. Tokens that were signed with a key in
`SECRET_KEY_FALLBACKS` are valid.
"""

from flask import current_app
from itsdangerous import URLSafeTimedSerializer

from tenantry.database.session import database_of


def serializer(purpose: str) -> URLSafeTimedSerializer:
    """Return an object that signs and verifies tokens of the current app for one purpose.

    A token is valid only for the purpose for which it was created, as in
    `serializer("reset-password")`. The method `loads` accepts `max_age` in seconds, and raises
    `itsdangerous.BadData` for an invalid token.

    Raises:
        RuntimeError: there is no app context.
    """
    config = current_app.config
    # The library itsdangerous signs with the last key, so `SECRET_KEY` comes after the fallbacks.
    keys = [*(config["SECRET_KEY_FALLBACKS"] or ()), config["SECRET_KEY"]]
    tenant = database_of(current_app).owner
    salt = f"tenantry.token.tenant.{tenant}.{purpose}"
    return URLSafeTimedSerializer(keys, salt=salt)
