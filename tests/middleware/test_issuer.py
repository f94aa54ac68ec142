"""An issuer's keys: read in bounds, kept, read again in time; no request waits for long."""

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
    """Return an issuer that answers."""
    with running_issuer() as issuer:
        yield issuer


# -- reading ------------------------------------------------------------------------------------


def test_keys_are_found_by_discovery_or_where_the_file_says(real: RealIssuer) -> None:
    """With `jwks_uri` the issuer is asked for nothing else."""
    openid = OpenId(real.url, ("shop",))

    found = [
        read_key_set(openid),
        read_key_set(OpenId(real.url, ("shop",), f"{real.url}/keys?v=1")),
    ]

    assert [["one"], ["one"]] == [[key["kid"] for key in keys] for keys in found]
    assert [DISCOVERY, "/keys?v=1", "/keys?v=1"] == real.asked


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
def test_an_answer_that_is_of_no_use_is_told_with_its_address(
    real: RealIssuer, path: str, reply: tuple[int, dict[str, str], Any], reason: str
) -> None:
    """Nothing of it is taken, nothing else is asked."""
    status, headers, body = reply
    real.replies[path] = status, headers, body(real.url) if callable(body) else body

    with pytest.raises(IssuerError, match=reason.replace("?", r"\?")) as raised:
        read_key_set(OpenId(real.url, ("shop",)))

    assert real.url in str(raised.value)


def test_an_issuer_that_is_not_there_is_told() -> None:
    """A refused connection is no stack trace."""
    with pytest.raises(IssuerError, match=r"cannot be read: .*refused"):
        read_document(f"http://127.0.0.1:{free_port()}/")


@pytest.mark.parametrize("part", [b"HTTP/1.1 200 OK\r\n", b"X: y\r\n", b"x"])
def test_an_answer_in_drops_has_one_deadline(part: bytes) -> None:
    """A socket's own time-out would begin again with every byte, and never end."""
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


def test_https_is_believed_only_with_a_good_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that nobody vouches for is refused; with its authority known, the keys are read."""
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


# -- keeping ------------------------------------------------------------------------------------


class Kept:
    """An issuer whose clock and whose answers the test sets; counts the readings."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.keys: set[str] | Exception = {"one"}
        self.readings = 0
        self.may_read = threading.Event()
        self.may_read.set()
        self.issuer: Issuer[set[str]] = Issuer(self.read, "acme", clock=lambda: self.now)

    def read(self) -> set[str]:
        """Return the keys, as soon as it may."""
        self.readings += 1
        self.may_read.wait()
        if isinstance(self.keys, Exception):
            raise self.keys
        return self.keys

    def ask(self, kid: str = "one") -> set[str] | None:
        """Return what is known to a request with that key."""
        return self.issuer.keys(lambda keys: kid in keys)

    def settle(self) -> None:
        """Wait until nothing is being read."""
        wait_until(lambda: self.issuer._reading is None)


def test_keys_are_read_once_for_many_requests() -> None:
    """The first request waits for them; the next ones find them."""
    kept = Kept()

    assert [{"one"}] * 3 == [kept.ask() for _ in range(3)]
    assert 1 == kept.readings


def test_an_unknown_key_is_looked_for_now_and_then_only() -> None:
    """Anybody can make up a key's name: the issuer hears of it every 30 s at most."""
    kept = Kept()
    kept.ask()
    kept.keys = {"one", "two"}

    early = [kept.ask("two") for _ in range(5)]
    kept.now += UNKNOWN_PAUSE_S
    late = [kept.ask("two") for _ in range(5)]

    assert ([{"one"}] * 5, [{"one", "two"}] * 5, 2) == (early, late, kept.readings)


def test_keys_are_read_again_while_requests_go_on() -> None:
    """After five minutes; nobody waits for it, and a key that is withdrawn ends."""
    kept = Kept()
    kept.ask()
    kept.keys = {"two"}
    kept.now += REFRESH_S
    kept.may_read.clear()

    meanwhile = kept.ask()
    kept.may_read.set()
    kept.settle()

    assert ({"one"}, {"two"}, 2) == (meanwhile, kept.ask("two"), kept.readings)


def test_old_keys_are_read_again_first() -> None:
    """A tenant that nobody asked for an hour does not begin with keys of then."""
    kept = Kept()
    kept.ask()
    kept.keys = {"two"}
    kept.now += OLD_S

    assert {"two"} == kept.ask("one")


def test_known_keys_go_on_while_the_issuer_is_away(caplog: pytest.LogCaptureFixture) -> None:
    """However long; each attempt that fails is a line."""
    kept = Kept()
    kept.ask()
    kept.keys = IssuerError("http://issuer.test cannot be read: away")
    found = []
    for _ in range(3):
        kept.now += OLD_S
        found.append(kept.ask())

    assert ([{"one"}] * 3, 4) == (found, kept.readings)
    lines = [one for one in caplog.records if one.levelno == logging.ERROR]
    reasons = {vars(line)["reason"] for line in lines}
    assert {"http://issuer.test cannot be read: away"} == reasons
    assert [("acme", True)] * 3 == [
        (vars(line)["tenant"], vars(line)["has_keys"]) for line in lines
    ]


def test_an_issuer_that_is_down_is_asked_in_growing_pauses() -> None:
    """Between them requests are told at once when to come again; the pauses end at a minute."""
    kept = Kept()
    kept.keys = OSError()
    pauses = []
    for _ in range(8):
        assert None is kept.ask()
        assert None is kept.ask()
        pauses.append(kept.issuer.retry_after_s())
        kept.now += pauses[-1]

    assert ([1, 2, 4, 8, 16, 32, 60, MAX_BACK_OFF_S], 8) == (pauses, kept.readings)


def test_an_issuer_that_is_back_is_believed_again() -> None:
    """With the next attempt."""
    kept = Kept()
    kept.keys = OSError()
    kept.ask()
    kept.keys = {"one"}
    kept.now += 1

    assert {"one"} == kept.ask()


def test_requests_wait_for_a_slow_issuer_only_while_the_reading_is_young(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One thread reads; a request that comes later than `PATIENCE_S` does not wait at all."""
    monkeypatch.setattr(tenantry.middleware.issuer, "PATIENCE_S", 0.01)
    kept = Kept()
    kept.may_read.clear()
    first = kept.ask()
    kept.now += 1
    monkeypatch.setattr(threading.Event, "wait", _no_wait)

    later = [kept.ask() for _ in range(20)]

    monkeypatch.undo()
    retry_after_s = kept.issuer.retry_after_s()
    kept.may_read.set()
    kept.settle()
    assert (None, [None] * 20, 1, 1) == (first, later, retry_after_s, kept.readings)


def _no_wait(_: threading.Event, timeout: float | None = None) -> bool:
    assert timeout == 0.0
    return False


def test_a_machine_without_threads_is_as_one_without_an_issuer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The request is answered; the next attempt may have more luck."""
    kept = Kept()

    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", fail)
        assert None is kept.ask()
    kept.now += 1

    assert {"one"} == kept.ask()
