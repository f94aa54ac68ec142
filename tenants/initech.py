"""A sample tenant. The host creates its secret on first use.

To create a tenant of your own, run `tenantry new NAME`.
"""

from tenantry import secret

APP_NAME = "Initech"
SECRET_KEY = secret("INITECH_SECRET_KEY", create=True)
URL_PREFIX = "/clients/initech"
BLUEPRINTS = ["landing"]
