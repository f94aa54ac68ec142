"""A sample tenant. Its secret is made on first use; for your own, run `tenantry new NAME`."""

from tenantry import secret

APP_NAME = "Globex"
SECRET_KEY = secret("GLOBEX_SECRET_KEY", create=True)
BLUEPRINTS = ["landing", "images"]
