"""Where an issuer's keys come from: read over the network, kept, and read again in time.

No request waits long for an issuer: reading runs on a thread of its own, one at a time, and a
request that needs it waits until it is `PATIENCE_S` old, whatever the network does.

It reads with the standard library: two small documents an hour are no reason for an HTTP library,
and http.client follows no redirect and asks no proxy.
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
"""Age at which keys are read again while requests go on with them: a withdrawn one ends soon."""

OLD_S = 3600.0
"""Age at which a request waits for newer ones first: a tenant that slept for days has these."""

UNKNOWN_PAUSE_S = 30.0
"""Between two readings because of keys that nobody knows: anybody can make some up."""

PATIENCE_S = 1.0
"""How old a reading may get before requests stop waiting for it; a usual one takes 0.1 s to 0.5 s.
A request that waits holds a thread that other tenants may need."""

FIRST_BACK_OFF_S = 1.0
MAX_BACK_OFF_S = 60.0
"""Pauses after failed readings double up to this: an issuer that is back is noticed in a minute."""

DOCUMENT_TIMEOUT_S = 5.0
"""For one document, from the connection to its last byte."""

DOCUMENT_BYTES = 256 << 10
"""Of one document; those of the large providers have 20 KiB."""

_logger = logging.getLogger(__name__)

Keys = TypeVar("Keys")


class IssuerError(Exception):
    """The issuer cannot be reached, or its answer is of no use. The text says which address."""


class Issuer(Generic[Keys]):
    """The keys of one tenant's issuer. Thread-safe; needs no closing: its thread ends by itself.

    Args:
        read: gets the keys; runs on a thread of its own; raises whatever it likes.
        tenant: its name, for the log.
        clock: seconds.
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
        self._lock = threading.Lock()  # protects all below
        self._keys: Keys | None = None
        self._read_at = 0.0
        self._next_at = -math.inf  # no reading before
        self._back_off_s = FIRST_BACK_OFF_S
        self._reading: _Reading | None = None

    def keys(self, are_enough: Callable[[Keys], bool]) -> Keys | None:
        """Return the keys that are known; None where none are.

        Those that are old, or not enough, are read again first, if it is time to: the call waits
        for that until the reading is `PATIENCE_S` old.
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
        """Return when to come again, in whole seconds."""
        with self._lock:
            pause_s = 0.0 if self._reading else self._next_at - self._clock()
        return max(1, math.ceil(min(pause_s, MAX_BACK_OFF_S)))

    def _begin(self, now: float) -> "_Reading | None":
        """Return the reading that runs, or a new one; None where it is too early for one."""
        if self._reading is None and now >= self._next_at:
            reading = _Reading(now)
            thread = threading.Thread(
                target=self._run, args=(reading,), name="tenantry-issuer", daemon=True
            )
            try:
                thread.start()
            except RuntimeError as error:  # no more threads: as good as out of reach
                self._failed(error)
                return None
            self._reading = reading
        return self._reading

    def _run(self, reading: "_Reading") -> None:
        try:
            keys = self._read()
        except Exception as error:  # noqa: BLE001 - whatever a network or a document can cause
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
        _logger.error("issuer.not_read", extra=facts)


class _Reading:
    """One attempt, from its thread's start to its end."""

    def __init__(self, began: float) -> None:
        self.began = began
        self.is_done = threading.Event()


def read_key_set(openid: OpenId, *, timeout_s: float = DOCUMENT_TIMEOUT_S) -> list[dict[str, Any]]:
    """Return the JSON Web Keys of an issuer, as it says them (RFC 7517 §5).

    Raises:
        IssuerError: it cannot be reached in time, or says no such thing.
    """
    uri = openid.jwks_uri or _discovered(openid, timeout_s)
    keys = read_document(uri, timeout_s=timeout_s).get("keys")
    if not isinstance(keys, list):
        raise IssuerError(f"{uri} is no set of keys")
    return [key for key in keys if isinstance(key, dict)]


def _discovered(openid: OpenId, timeout_s: float) -> str:
    """Return where the keys are (OpenID Connect Discovery §4)."""
    url = openid.issuer.removesuffix("/") + "/.well-known/openid-configuration"
    document = read_document(url, timeout_s=timeout_s)
    if document.get("issuer") != openid.issuer:  # §4.3
        raise IssuerError(f"{url} is another issuer's: its 'issuer' is not {openid.issuer!r}")
    is_local = is_loopback(urlsplit(openid.issuer).hostname)
    try:
        return check_url(document.get("jwks_uri"), is_local_allowed=is_local)
    except ValueError as error:
        raise IssuerError(f"the 'jwks_uri' in {url} is no good: {error}") from error


def read_document(url: str, *, timeout_s: float = DOCUMENT_TIMEOUT_S) -> dict[str, Any]:
    """Return the JSON object at an address that `check_url` found good.

    Raises:
        IssuerError: it does not come whole, in time and with status 200.
    """
    try:
        data = _read(url, time.monotonic() + timeout_s, timeout_s)
        document = json.loads(data)
    except (OSError, HTTPException) as error:
        raise IssuerError(f"{url} cannot be read: {str(error) or type(error).__name__}") from error
    except (ValueError, RecursionError) as error:
        raise IssuerError(f"{url} is no JSON") from error
    if not isinstance(document, dict):
        raise IssuerError(f"{url} is no JSON object")
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
    """What http.client needs of a socket, with one deadline for all that comes.

    A socket's own time-out begins again with every byte.
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
        """Do nothing: http.client closes it while the response is still being read."""


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
