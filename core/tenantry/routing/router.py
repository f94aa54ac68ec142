"""The routing snapshot: which mount answers which path.

Werkzeug's `DispatcherMiddleware` matches in the same way, but its loop is quadratic in the number
of segments: a path of 2,000 segments took 5.35 ms instead of 2.8 µs (Werkzeug 3.1.9). It also reads
its mapping twice, so a removal in between is a `KeyError`.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from tenantry.grammar import PREFIX_SEGMENTS
from tenantry.routing.mount import Mount

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


class Router:
    """Sends each request to the mount whose prefix its path begins with, or to `fallback`.

    The map is replaced as a whole and never changed. A request reads the reference once, without a
    lock, so it sees one snapshot.
    """

    def __init__(self, fallback: "WSGIApplication") -> None:
        self._fallback = fallback
        self._mounts: tuple[Mount, ...] = ()
        self._by_prefix: dict[str, Mount] = {}

    @property
    def mounts(self) -> tuple[Mount, ...]:
        """Every mount, sorted by name. Those without a prefix are included."""
        return self._mounts

    def replace(self, mounts: Iterable[Mount]) -> None:
        """Route to `mounts` from the next request on. Closes nothing.

        If two mounts have the same prefix, the last one gets the requests.
        """
        mounts = tuple(mounts)
        self._by_prefix = {mount.prefix: mount for mount in mounts if mount.prefix is not None}
        self._mounts = tuple(sorted(mounts, key=lambda mount: mount.name))

    def at(self, prefix: str) -> Mount | None:
        """Return the mount at exactly this prefix."""
        return self._by_prefix.get(prefix)

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Answer one request. Whole segments count, as they are: nothing is normalized.

        No prefix has more than `PREFIX_SEGMENTS`, so a request costs at most as many lookups.
        """
        by_prefix, path, end = self._by_prefix, environ.get("PATH_INFO", ""), 0
        for _ in range(PREFIX_SEGMENTS):
            end = path.find("/", end + 1)
            prefix = path if end < 0 else path[:end]
            mount = by_prefix.get(prefix)
            if mount is not None:
                environ["SCRIPT_NAME"] = environ.get("SCRIPT_NAME", "") + prefix
                environ["PATH_INFO"] = path[len(prefix) :]
                return mount(environ, start_response)
            if end < 0:
                break
        return self._fallback(environ, start_response)
