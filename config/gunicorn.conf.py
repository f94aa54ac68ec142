"""`gunicorn -c config/gunicorn.conf.py`: the configuration that comes with Tenantry.

Each setting, with its reason, is in `tenantry.server.gunicorn_conf`. Assign below to change one.
"""

from tenantry.server.gunicorn_conf import *  # noqa: F403 - gunicorn reads the names of this module
