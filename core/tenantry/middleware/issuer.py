"""The keys of an OpenID Connect issuer, fetched over the network, cached and refreshed.

No request waits long for an issuer. A separate thread fetches the keys, one fetch at a time. A
request that needs the new keys waits for at most `PATIENCE_S` after the start of the fetch.

The module uses `http.client`, which follows no redirects and uses no proxies. Fetching two small
documents does not need an HTTP library.
"""

import io
import json
import logging
import math
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import closing
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any, Generic, TypeVar, cast
from urllib.parse import urlsplit

from tenantry.observability.redaction import redact_value
from tenantry.tenants.openid import OpenId, check_url, is_loopback

REFRESH_S = 300.0
"""Age in seconds at which keys are refreshed in the background, so that a withdrawn key soon stops
working."""

OLD_S = 3600.0
"""Age in seconds from which a request waits for new keys instead of using the old keys. Keys become
this old if a tenant gets no requests, or if the issuer is down."""

UNKNOWN_PAUSE_S = 30.0
"""Minimum seconds between two fetches because of unknown key IDs, which any client can invent."""

PATIENCE_S = 1.0
"""Seconds after the start of a fetch at which requests stop waiting, because a waiting request
holds a thread. A fetch usually takes 0.1 s to 0.5 s."""

FIRST_BACK_OFF_S = 1.0
MAX_BACK_OFF_S = 60.0
"""Maximum seconds between two fetches. Each failed fetch doubles the pause, up to this maximum."""

DOCUMENT_TIMEOUT_S = 5.0
"""Time limit in seconds for one document, from opening the connection to the last byte."""

DOCUMENT_BYTES = 256 << 10
"""Maximum size of one document in bytes. Documents of large identity providers have 20 KiB."""

_logger = logging.getLogger(__name__)

Keys = TypeVar("Keys")


class IssuerError(Exception):
    """The issuer cannot be reached, or sends an unusable response. The message names the URL."""


class Issuer(Generic[Keys]):
    """The cached keys of one tenant's issuer. Thread-safe. Needs no closing.

    Args:
        read: fetches the keys. `read` runs on a separate thread, and may raise any exception.
        tenant: the tenant's name, for the log.
        clock: returns monotonic seconds.
    """

    def __init__(
        self,
        read: Callable[[], Keys],
        tenant: str,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read = read
        self._tenant = tenant
        self._clock = clock
        self._lock = threading.Lock()  # the lock protects the keys and the state of the fetch
        self._keys: Keys | None = None
        self._read_at = 0.0
        self._next_at = -math.inf  # no fetch starts before this time
        self._back_off_s = FIRST_BACK_OFF_S
        self._reading: _Reading | None = None

    def keys(self, are_enough: Callable[[Keys], bool]) -> Keys | None:
        """Return the keys of the issuer, or None if no keys are known.

        If the known keys are too old or `are_enough` rejects them, and a fetch is due, the method
        waits for the fetch.
        """
        with self._lock:
            keys, now = self._keys, self._clock()
            age_s = now - self._read_at
            is_good = keys is not None and age_s < OLD_S and are_enough(keys)
            if is_good and age_s < REFRESH_S:
                return keys
            reading = self._begin(now)
        if is_good or reading is None:
            return keys
        reading.is_done.wait(max(0.0, reading.began + PATIENCE_S - now))
        with self._lock:
            return self._keys

    def retry_after_s(self) -> int:
        """Return the seconds after which a client can retry a request."""
        with self._lock:
            pause_s = 0.0 if self._reading else self._next_at - self._clock()
        return max(1, math.ceil(min(pause_s, MAX_BACK_OFF_S)))

    def _begin(self, now: float) -> "_Reading | None":
        """Return the running fetch, or start one; None if no fetch is due."""
        if self._reading is None and now >= self._next_at:
            reading = _Reading(now)
            thread = threading.Thread(
                target=self._run, args=(reading,), name="tenantry-issuer", daemon=True
            )
            try:
                thread.start()
            except RuntimeError as error:  # no thread is available; this counts as a failed fetch
                self._failed(error)
                return None
            self._reading = reading
        return self._reading

    def _run(self, reading: "_Reading") -> None:
        try:
            keys = self._read()
        except Exception as error:  # noqa: BLE001 - a network or a document can cause any exception
            with self._lock:
                self._failed(error)
        else:
            with self._lock:
                self._keys = keys
                self._read_at = self._clock()
                self._next_at = self._read_at + UNKNOWN_PAUSE_S
                self._back_off_s = FIRST_BACK_OFF_S
            _logger.info("issuer.keys_read", extra={"tenant": self._tenant})
        finally:
            with self._lock:
                self._reading = None
            reading.is_done.set()

    def _failed(self, error: Exception) -> None:
        is_told = isinstance(error, IssuerError)
        reason = redact_value("", str(error)) if is_told else type(error).__name__
        facts = {
            "tenant": self._tenant,
            "reason": reason,
            "retry_in_s": self._back_off_s,
            "has_keys": self._keys is not None,
        }
        self._next_at = self._clock() + self._back_off_s
        self._back_off_s = min(2 * self._back_off_s, MAX_BACK_OFF_S)
        _logger.error("issuer.read_failed", extra=facts)


class _Reading:
    """One attempt to fetch the keys."""

    def __init__(self, began: float) -> None:
        self.began = began
        self.is_done = threading.Event()


def read_key_set(openid: OpenId, *, timeout_s: float = DOCUMENT_TIMEOUT_S) -> list[dict[str, Any]]:
    """Return the JSON Web Keys of an issuer, unparsed (RFC 7517 §5).

    Raises:
        IssuerError: the issuer cannot be reached in time, or does not send a key set.
    """
    uri = openid.jwks_uri or _discovered(openid, timeout_s)
    keys = read_document(uri, timeout_s=timeout_s).get("keys")
    if not isinstance(keys, list):
        raise IssuerError(f"{uri} is not a set of keys")
    return [key for key in keys if isinstance(key, dict)]


def _discovered(openid: OpenId, timeout_s: float) -> str:
    """Return the URL of the issuer's keys (OpenID Connect Discovery §4)."""
    url = openid.issuer.removesuffix("/") + "/.well-known/openid-configuration"
    document = read_document(url, timeout_s=timeout_s)
    if document.get("issuer") != openid.issuer:  # OpenID Connect Discovery §4.3
        raise IssuerError(f"{url} belongs to another issuer: its 'issuer' is not {openid.issuer!r}")
    is_local = is_loopback(urlsplit(openid.issuer).hostname)
    try:
        return check_url(document.get("jwks_uri"), is_local_allowed=is_local)
    except ValueError as error:
        raise IssuerError(f"the 'jwks_uri' in {url} is not usable: {error}") from error


def read_document(url: str, *, timeout_s: float = DOCUMENT_TIMEOUT_S) -> dict[str, Any]:
    """Return the JSON object at a URL that `check_url` has accepted.

    Raises:
        IssuerError: the document does not arrive in time, complete and with status 200.
    """
    try:
        data = _read(url, time.monotonic() + timeout_s, timeout_s)
        document = json.loads(data)
    except (OSError, HTTPException) as error:
        raise IssuerError(f"{url} cannot be read: {str(error) or type(error).__name__}") from error
    except (ValueError, RecursionError) as error:
        raise IssuerError(f"{url} is not JSON") from error
    if not isinstance(document, dict):
        raise IssuerError(f"{url} is not a JSON object")
    return document


def _read(url: str, deadline: float, timeout_s: float) -> bytes:
    parts = urlsplit(url)
    host, path = parts.hostname or "", parts.path or "/"
    connection = (
        HTTPSConnection(host, parts.port, timeout=timeout_s, context=ssl.create_default_context())
        if parts.scheme == "https"
        else HTTPConnection(host, parts.port, timeout=timeout_s)
    )
    with closing(connection):
        connection.connect()
        with closing(connection.sock) as opened:
            connection.sock = cast(socket.socket, _TimedSocket(opened, deadline))
            target = f"{path}?{parts.query}" if parts.query else path
            connection.request("GET", target, headers={"Accept": "application/json"})
            response = connection.getresponse()
            if response.status != HTTPStatus.OK:
                hint = "; redirects are not followed" if 300 <= response.status < 400 else ""  # noqa: PLR2004 - 3xx
                raise IssuerError(f"{url} answers {response.status}{hint}")
            data = response.read(DOCUMENT_BYTES + 1)
    if len(data) > DOCUMENT_BYTES:
        raise IssuerError(f"{url} has more than {DOCUMENT_BYTES:,} bytes")
    return data


class _TimedSocket:
    """The socket methods that `http.client` needs, with one deadline for the whole response.

    The timeout of a plain socket restarts with every received byte.
    """

    def __init__(self, opened: socket.socket, deadline: float) -> None:
        self._opened = opened
        self._deadline = deadline

    def sendall(self, data: bytes) -> None:
        self._opened.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        del mode
        return io.BufferedReader(_TimedReader(self._opened, self._deadline))

    def close(self) -> None:
        """Do nothing, because `http.client` closes the socket before the end of the response."""


class _TimedReader(io.RawIOBase):
    def __init__(self, opened: socket.socket, deadline: float) -> None:
        self._opened = opened
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("timed out")
        self._opened.settimeout(left_s)
        return self._opened.recv_into(buffer)
