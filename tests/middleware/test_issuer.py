"""Reading an issuer's keys: size limits, deadlines, caching, refresh and back-off."""

import contextlib
import datetime as dt
import ipaddress
import json
import logging
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

import tenantry.middleware.issuer
from issuers import DISCOVERY, running_issuer
from issuers import Issuer as RealIssuer
from servers import free_port, wait_until
from tenantry.middleware.issuer import (
    DOCUMENT_BYTES,
    MAX_BACK_OFF_S,
    OLD_S,
    REFRESH_S,
    UNKNOWN_PAUSE_S,
    Issuer,
    IssuerError,
    read_document,
    read_key_set,
)
from tenantry.tenants.openid import OpenId


@pytest.fixture(name="real")
def _real() -> Iterator[RealIssuer]:
    """Return a running issuer."""
    with running_issuer() as issuer:
        yield issuer


# -- reading ------------------------------------------------------------------------------------


def test_keys_are_found_by_discovery_or_at_jwks_uri(real: RealIssuer) -> None:
    """Without `jwks_uri`, finding the issuer's keys takes two requests; with `jwks_uri`, one."""
    openid = OpenId(real.url, ("shop",))

    found = [
        read_key_set(openid),
        read_key_set(OpenId(real.url, ("shop",), f"{real.url}/keys?v=1")),
    ]

    assert [["one"], ["one"]] == [[key["kid"] for key in keys] for keys in found]
    assert [DISCOVERY, "/keys?v=1", "/keys?v=1"] == real.requested_paths


def _discovery(**changes: Any) -> Callable[[str], bytes]:
    return lambda url: json.dumps({"issuer": url, "jwks_uri": f"{url}/keys?v=1"} | changes).encode()


@pytest.mark.parametrize(
    ("path", "reply", "reason"),
    [
        (DISCOVERY, (500, {}, b"{}"), "/.well-known/openid-configuration answers 500"),
        (
            DISCOVERY,
            (302, {"Location": "http://127.0.0.1:1/"}, b""),
            "/.well-known/openid-configuration answers 302; redirects are not followed",
        ),
        (DISCOVERY, (200, {}, b"<html>"), "is not JSON"),
        (DISCOVERY, (200, {}, b"\xff"), "is not JSON"),
        (DISCOVERY, (200, {}, b"[" * 100_000), "is not JSON"),
        (DISCOVERY, (200, {}, b"[]"), "is not a JSON object"),
        (DISCOVERY, (200, {}, b" " * (DOCUMENT_BYTES + 1)), "has more than 262,144 bytes"),
        (DISCOVERY, (200, {"Content-Length": "99"}, b"{}"), "belongs to another issuer"),
        (DISCOVERY, (200, {}, _discovery(issuer="https://else.test")), "belongs to another issuer"),
        (DISCOVERY, (200, {}, _discovery(jwks_uri="http://else.test/")), "'jwks_uri' in"),
        (DISCOVERY, (200, {}, _discovery(jwks_uri=None)), "'jwks_uri' in"),
        (DISCOVERY, (200, {}, _discovery(jwks_uri="file:///etc/passwd")), "'jwks_uri' in"),
        ("/keys?v=1", (200, {}, b'{"keys": {}}'), "/keys?v=1 is not a set of keys"),
        ("/keys?v=1", (404, {}, b""), "/keys?v=1 answers 404"),
    ],
)
def test_an_unusable_answer_is_an_error_with_its_url(
    real: RealIssuer, path: str, reply: tuple[int, dict[str, str], Any], reason: str
) -> None:
    """An answer with a bad status, size or content raises an error that names the requested URL."""
    status, headers, body = reply
    real.replies[path] = status, headers, body(real.url) if callable(body) else body

    with pytest.raises(IssuerError, match=reason.replace("?", r"\?")) as raised:
        read_key_set(OpenId(real.url, ("shop",)))

    assert real.url in str(raised.value)


def test_a_refused_connection_is_an_issuer_error() -> None:
    """A refused connection raises `IssuerError` instead of `OSError`."""
    with pytest.raises(IssuerError, match=r"cannot be read: .*refused"):
        read_document(f"http://127.0.0.1:{free_port()}/")


@pytest.mark.parametrize("part", [b"HTTP/1.1 200 OK\r\n", b"X: y\r\n", b"x"])
def test_a_slow_answer_has_one_deadline(part: bytes) -> None:
    """An issuer that sends single bytes slowly cannot extend the timeout of the whole answer."""
    done = threading.Event()

    def drip(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            if part == b"x":
                connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            while not done.wait(0.02):
                connection.sendall(part[:1] if part == b"x" else part)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=drip, args=(listener,))
        thread.start()
        try:
            with pytest.raises(IssuerError, match="cannot be read"):
                read_document(f"http://127.0.0.1:{listener.getsockname()[1]}/", timeout_s=0.2)
        finally:
            done.set()
            thread.join()


def _certificate(folder: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "issuer")])
    now = dt.datetime.now(dt.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(1))
        .not_valid_after(now + dt.timedelta(1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = folder / "issuer.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return path


def test_https_needs_a_trusted_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A certificate of an unknown authority is rejected; one of a trusted authority is accepted."""
    path = _certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    reply = b'HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n{"keys": []}'

    def serve(listener: socket.socket) -> None:
        for _ in range(2):
            connection, _ = listener.accept()
            with contextlib.suppress(OSError), context.wrap_socket(connection, True) as wrapped:
                wrapped.recv(9999)
                wrapped.sendall(reply)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/"
        with pytest.raises(IssuerError, match="CERTIFICATE_VERIFY_FAILED"):
            read_document(url)
        monkeypatch.setenv("SSL_CERT_FILE", str(path))
        document = read_document(url)
        thread.join()

    assert {"keys": []} == document


# -- caching ------------------------------------------------------------------------------------


class CachedIssuer:
    """An issuer with a clock and answers that the test sets, and a count of the readings."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.keys: set[str] | Exception = {"one"}
        self.readings = 0
        self.may_read = threading.Event()
        self.may_read.set()
        self.issuer: Issuer[set[str]] = Issuer(self.read, "acme", clock=lambda: self.now)

    def read(self) -> set[str]:
        """Return the keys, or raise the error, once `may_read` is set."""
        self.readings += 1
        self.may_read.wait()
        if isinstance(self.keys, Exception):
            raise self.keys
        return self.keys

    def keys_for(self, kid: str = "one") -> set[str] | None:
        """Return the keys that a request with the given key ID gets."""
        return self.issuer.keys(lambda keys: kid in keys)

    def settle(self) -> None:
        """Wait until no reading is in progress."""
        wait_until(lambda: self.issuer._reading is None)


def test_keys_are_read_once_for_many_requests() -> None:
    """The first request reads the keys, and later requests use the cached keys."""
    cached = CachedIssuer()

    assert [{"one"}] * 3 == [cached.keys_for() for _ in range(3)]
    assert 1 == cached.readings


def test_unknown_keys_cause_one_reading_per_pause() -> None:
    """Unknown key IDs make the host read the keys at most once per `UNKNOWN_PAUSE_S`."""
    cached = CachedIssuer()
    cached.keys_for()
    cached.keys = {"one", "two"}

    early = [cached.keys_for("two") for _ in range(5)]
    cached.now += UNKNOWN_PAUSE_S
    late = [cached.keys_for("two") for _ in range(5)]

    assert ([{"one"}] * 5, [{"one", "two"}] * 5, 2) == (early, late, cached.readings)


def test_keys_are_refreshed_in_the_background() -> None:
    """After `REFRESH_S`, requests use the cached keys until the new keys have been read."""
    cached = CachedIssuer()
    cached.keys_for()
    cached.keys = {"two"}
    cached.now += REFRESH_S
    cached.may_read.clear()

    meanwhile = cached.keys_for()
    cached.may_read.set()
    cached.settle()

    assert ({"one"}, {"two"}, 2) == (meanwhile, cached.keys_for("two"), cached.readings)


def test_old_keys_are_refreshed_before_use() -> None:
    """The first request after `OLD_S` waits for new keys instead of using the cached keys."""
    cached = CachedIssuer()
    cached.keys_for()
    cached.keys = {"two"}
    cached.now += OLD_S

    assert {"two"} == cached.keys_for("one")


def test_cached_keys_stay_valid_while_the_issuer_is_down(caplog: pytest.LogCaptureFixture) -> None:
    """Cached keys stay in use while the issuer is down, and each failed reading is logged."""
    cached = CachedIssuer()
    cached.keys_for()
    cached.keys = IssuerError("http://issuer.test cannot be read: away")
    found = []
    for _ in range(3):
        cached.now += OLD_S
        found.append(cached.keys_for())

    assert ([{"one"}] * 3, 4) == (found, cached.readings)
    lines = [one for one in caplog.records if one.levelno == logging.ERROR]
    reasons = {vars(line)["reason"] for line in lines}
    assert {"http://issuer.test cannot be read: away"} == reasons
    assert [("acme", True)] * 3 == [
        (vars(line)["tenant"], vars(line)["has_keys"]) for line in lines
    ]


def test_the_pause_doubles_while_the_issuer_is_down() -> None:
    """The pause between readings doubles up to `MAX_BACK_OFF_S`; `Retry-After` is the pause."""
    cached = CachedIssuer()
    cached.keys = OSError()
    pauses = []
    for _ in range(8):
        assert None is cached.keys_for()
        assert None is cached.keys_for()
        pauses.append(cached.issuer.retry_after_s())
        cached.now += pauses[-1]

    assert ([1, 2, 4, 8, 16, 32, 60, MAX_BACK_OFF_S], 8) == (pauses, cached.readings)


def test_a_recovered_issuer_is_used_again() -> None:
    """The first reading after the pause succeeds, and requests get the keys."""
    cached = CachedIssuer()
    cached.keys = OSError()
    cached.keys_for()
    cached.keys = {"one"}
    cached.now += 1

    assert {"one"} == cached.keys_for()


def test_requests_wait_for_a_slow_issuer_for_patience_s_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A request does not wait for a reading that began more than `PATIENCE_S` earlier."""
    monkeypatch.setattr(tenantry.middleware.issuer, "PATIENCE_S", 0.01)
    cached = CachedIssuer()
    cached.may_read.clear()
    first = cached.keys_for()
    cached.now += 1
    monkeypatch.setattr(threading.Event, "wait", _no_wait)

    later = [cached.keys_for() for _ in range(20)]

    monkeypatch.undo()
    retry_after_s = cached.issuer.retry_after_s()
    cached.may_read.set()
    cached.settle()
    assert (None, [None] * 20, 1, 1) == (first, later, retry_after_s, cached.readings)


def _no_wait(_: threading.Event, timeout: float | None = None) -> bool:
    assert timeout == 0.0
    return False


def test_a_reading_without_a_thread_counts_as_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If no thread can be started, the request gets no keys, and a later reading succeeds."""
    cached = CachedIssuer()

    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", fail)
        assert None is cached.keys_for()
    cached.now += 1

    assert {"one"} == cached.keys_for()
