"""A sample tenant. Its secret is made on first use; for your own, run `tenantry new NAME`."""

from tenantry import secret

APP_NAME = "Initech"
SECRET_KEY = secret("INITECH_SECRET_KEY", create=True)
URL_PREFIX = "/clients/initech"
BLUEPRINTS = ["landing"]
