"""A sample tenant. The host creates its secret on first use.

To create a tenant of your own, run `tenantry new NAME`.
"""

from tenantry import secret

APP_NAME = "Acme"
SECRET_KEY = secret("ACME_SECRET_KEY", create=True)
BLUEPRINTS = ["landing"]
