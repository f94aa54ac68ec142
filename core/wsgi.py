"""The WSGI callable for any server: `core.wsgi:application`."""

from core.host import create_host

application = create_host(is_serving=True)
