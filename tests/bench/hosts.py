"""Checks which tenant answers generated pairs of a host name and a path, through the real server.

    python tests/bench/hosts.py [--pairs 100000] [--seed 1]

Five tenants share three host names, former addresses and prefixes. Each tenant adds its name to
every response. No pair may reach a tenant that does not claim it, no pair of a tenant may get
another answer, and no response may have a status of 500 or above. Half of the host names are
changed, encoded or malformed, and so are the paths.
"""

import argparse
import random
import socket
import tempfile
from collections import Counter
from pathlib import Path
from urllib.parse import quote_from_bytes

from loads import Bounds, serving

MARK = """\
from flask import Blueprint, current_app
mark_bp = Blueprint("mark", __name__)

@mark_bp.after_app_request
def mark(response):
    response.headers["X-Tenant"] = current_app.config["APP_NAME"]
    return response
"""

TENANTS = {
    "acme": "HOSTS = ['shop.test', 'www.shop.test']\nOLD_HOSTS = ['old.test']\n"
    "OLD_PREFIXES = ['/acme']\n",
    "globex": "HOSTS = ['shared.test']\nURL_PREFIX = '/admin'\nOLD_PREFIXES = ['/former']\n",
    "hooli": "HOSTS = ['shared.test']\nURL_PREFIX = '/a/b'\n",
    "initech": "OLD_PREFIXES = ['/old']\n",
    "umbrella": "HOSTS = ['closed.test']\nENABLED = False\n",
}

OWNERS = {
    "shop.test": {"": "acme"},
    "www.shop.test": {"": "308"},
    "old.test": {"": "308"},
    "shared.test": {"/admin": "globex", "/a/b": "hooli", "/former": "308"},
    "closed.test": {},
}
OTHERS = {"/initech": "initech", "/old": "308", "/acme": "308", "/former": "308"}
"""Who answers: a tenant, or 308 for a redirect."""

NAMES = (*OWNERS, "other.test", "127.0.0.1", "localhost", "shop.test.evil.test", "a")
WORDS = (b"admin", b"a", b"b", b"former", b"initech", b"old", b"acme", b"-", b"", b".", b"..",
         b"caf\xc3\xa9", b"\xff", b"%", b"/", b"admin2", b"INITECH", b"x" * 200)  # fmt: skip


def make_host(dice: random.Random) -> tuple[bytes, str | None]:
    """Return a `Host` header, and its name; None if the header is malformed."""
    if dice.random() < 0.2:
        junk = bytes(dice.choice(b"\x80\xff @/\\\"'<>[]:,;%#?{}|^`\t*") for _ in range(3))
        return dice.choice(NAMES).encode() + junk + b"test", None
    name = dice.choice(NAMES)
    shown = "".join(dice.choice((char, char.upper())) for char in name)
    dot = "" if name[-1].isdigit() else dice.choice(("", "", "."))
    return f"{shown}{dot}{dice.choice(('', '', ':80', ':8000', ':'))}".encode(), name


def make_path(dice: random.Random) -> tuple[str, bytes]:
    """Return a request target, and the path that it encodes."""
    path = b"".join(b"/" + dice.choice(WORDS) for _ in range(dice.randrange(1, 7)))
    target = "".join(
        chr(byte) if byte == ord("/") and (place == 0 or dice.random() < 0.98)
        else quote_from_bytes(bytes([byte]), safe="") if dice.random() < 0.9
        else f"%{byte:02{dice.choice('xX')}}"
        for place, byte in enumerate(path)
    )  # fmt: skip
    return target, path


def owner_of(name: str, path: bytes) -> str:
    """Return the tenant that must answer, 308 for a redirect, or `host`."""
    if path.startswith(b"/-/"):
        return "host"
    for prefix, owner in OWNERS.get(name, OTHERS).items():
        if path == prefix.encode() or path.startswith(prefix.encode() + b"/"):
            return owner
    return "host"


class Client:
    """Sends raw requests on one connection, which is opened again after an error response."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._socket: socket.socket | None = None

    def get(self, host: bytes, target: str) -> tuple[int, str]:
        """Return the status, and the tenant that answered."""
        if self._socket is None:
            self._socket = socket.create_connection(("127.0.0.1", self._port), timeout=30)
        self._socket.sendall(
            b"GET " + target.encode() + b" HTTP/1.1\r\nHost: " + host + b"\r\n\r\n"
        )
        data = b""
        while b"\r\n\r\n" not in data:
            data += self._more()
        head, _, body = data.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        fields = dict(line.lower().split(": ", 1) for line in lines[1:])
        left = int(fields.get("content-length", 0)) - len(body)
        while left > 0:
            left -= len(self._more())
        if fields.get("connection") == "close":
            self._socket.close()
            self._socket = None
        return int(lines[0].split()[1]), fields.get("x-tenant", "")

    def _more(self) -> bytes:
        data = b"" if self._socket is None else self._socket.recv(65536)
        if not data:
            raise SystemExit("the server closed the connection without a response")
        return data


def run(port: int, count: int, seed: int) -> None:
    """Send all pairs, compare the answers, and print the figures."""
    dice, client, bounds = random.Random(seed), Client(port), Bounds()
    statuses: Counter[int] = Counter()
    wrong = []
    for _ in range(count):
        (host, name), (target, path) = make_host(dice), make_path(dice)
        status, tenant = client.get(host, target)
        statuses[status] += 1
        answered = "308" if status == 308 and not tenant else tenant or "host"
        wanted = "host" if name is None else owner_of(name, path)
        is_refused = name is None and status != 400
        if answered != wanted or is_refused:
            wrong.append((host, target, status, answered, wanted))
    print(f"{count} pairs, seed {seed}; by status: {dict(sorted(statuses.items()))}")
    for example in wrong[:5]:
        print(f"  wrong: {example}")
    bounds.check("pairs with the wrong answer", len(wrong), 0)
    bounds.check("responses of 500 and above", sum(statuses[s] for s in statuses if s >= 500), 0)
    bounds.end()


def main() -> None:
    """Create the tenants, start the server, and run the benchmark."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        site = Path(folder)
        package = site / "mark"
        package.mkdir()
        (package / "__init__.py").touch()
        (package / "blueprint.py").write_text(MARK)
        (site / "tenants").mkdir()
        for name, keys in TENANTS.items():
            text = f"SECRET_KEY = {name + '-' * 32!r}\nBLUEPRINTS = ['mark', 'landing']\n"
            (site / f"tenants/{name}.py").write_text(keys + text)
        with serving(site, 2) as server:
            server.wait_for("/-/readyz", 200)
            run(server.port, arguments.pairs, arguments.seed)


if __name__ == "__main__":
    main()
