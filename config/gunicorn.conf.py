"""`gunicorn -c config/gunicorn.conf.py`: the configuration that comes with Tenantry.

The module `tenantry.server.gunicorn_conf` contains each setting with its reason. To change a
setting, assign a new value below the import.
"""

from tenantry.server.gunicorn_conf import *  # noqa: F403 - gunicorn reads the names of this module
