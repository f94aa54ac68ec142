"""A sample tenant. Its secret is made on first use; for your own, run `tenantry new NAME`."""

from tenantry import secret

APP_NAME = "Acme"
SECRET_KEY = secret("ACME_SECRET_KEY", create=True)
BLUEPRINTS = ["landing"]
