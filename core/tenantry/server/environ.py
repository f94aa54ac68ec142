"""The WSGI environ of a request, before the request head is read into it (PEP 3333)."""

import sys
from io import BytesIO
from typing import TYPE_CHECKING, Any
from wsgiref.util import FileWrapper

from tenantry.http.environ import CONNECTION, IS_FOR_OPERATORS
from tenantry.server.connection import Connection

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

_UNIX_NAME, _UNIX_PORT = "localhost", "80"


class EnvironTemplate:
    """The environ keys that all requests of one listener have in common. Immutable.

    Args:
        local: the address of the listening socket.
        is_multiprocess: whether other processes serve the same app.
        is_for_operators: whether the listener is the operators' listener.
        proxy_mode: which PROXY lines are read: `off`, `v1`, `v2` or `auto`.
        is_proxy_trusted: whether a peer may send a PROXY line.
    """

    def __init__(
        self,
        local: Any,
        *,
        is_multiprocess: bool,
        is_for_operators: bool = False,
        proxy_mode: str = "off",
        is_proxy_trusted: "Any" = None,
    ) -> None:
        is_tcp = isinstance(local, tuple)
        self.proxy_mode = "" if proxy_mode == "off" else proxy_mode
        self.is_proxy_trusted = is_proxy_trusted
        self._environ: WSGIEnvironment = {
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": True,
            "wsgi.multiprocess": is_multiprocess,
            "wsgi.run_once": False,
            "wsgi.file_wrapper": FileWrapper,
            "SERVER_SOFTWARE": "tenantry",
            "SERVER_NAME": local[0] if is_tcp else _UNIX_NAME,
            "SERVER_PORT": str(local[1]) if is_tcp else _UNIX_PORT,
            "SCRIPT_NAME": "",
        }
        if is_for_operators:
            self._environ[IS_FOR_OPERATORS] = True

    def new_environ(self, connection: Connection) -> "WSGIEnvironment":
        """Return the environ of a connection's next request."""
        environ = self._environ.copy()
        peer = connection.peer
        if type(peer) is tuple:
            environ["REMOTE_ADDR"] = peer[0]
            environ["REMOTE_PORT"] = str(peer[1])
        else:  # the listener is a Unix socket
            environ["REMOTE_ADDR"] = ""
        if connection.proxied:
            environ |= connection.proxied
        environ["wsgi.input"] = BytesIO()
        environ[CONNECTION] = connection
        return environ
