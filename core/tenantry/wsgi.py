"""The WSGI callable for any server: `tenantry.wsgi:application`."""

from tenantry.host import create_host

application = create_host(is_serving=True)
