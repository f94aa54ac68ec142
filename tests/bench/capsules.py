"""Checks that a backup under write load is complete after a restore on another host.

    python tests/bench/capsules.py [BACKUPS]

One gunicorn serves the tenant acme with 2 workers of 8 threads. The tenant has the images endpoint,
first on SQLite and then on PostgreSQL. Clients upload and delete images without a pause while
`tenantry backup` runs several times. The benchmark restores each backup file on another
host, once with SQLite and once with PostgreSQL.

After a restore, each row must have a file with the row's hash and size, each file must have a row,
and the counts must equal those that `tenantry backup` printed. No upload may be refused. The
benchmark also prints the longest upload before and during the backups, and how well zstd and gzip
compress the images.
"""

import contextlib
import gzip
import hashlib
import http.client
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Self

import zstandard
from loads import Bounds, make_site, serving, wait_until

sys.path.insert(0, str(Path(__file__).parents[1]))

from sqlalchemy import NullPool, create_engine

import postgres
from image_files import picture
from image_tables import migrate

BACKUPS = 3
CLIENTS = 4
IMAGES = 300
KEPT = 10
"""Maximum number of images per client, which deletes its oldest images."""

PROGRAM = str(Path(sys.executable).with_name("tenantry"))


class Load:
    """Clients that upload and delete images until the end of a `with` block."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._work) for _ in range(CLIENTS)]
        self.waits_s: list[float] = []
        self.wrong: list[int] = []

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        kept: list[str] = []
        pictures = [picture("PNG", (60, 40)) for _ in range(5)]
        while not self._stop.is_set():
            data = pictures[len(self.waits_s) % 5] + os.urandom(
                8
            )  # Random bytes after the end of the image make each uploaded file unique.
            started_at = time.perf_counter()
            status, body = request(self._port, "POST", "/acme/images/", data)
            self.waits_s.append(time.perf_counter() - started_at)
            if status != http.HTTPStatus.CREATED:
                self.wrong.append(status)
                continue
            kept.append(json.loads(body)["id"])
            if len(kept) > KEPT:
                request(self._port, "DELETE", f"/acme/images/{kept.pop(0)}")


def request(port: int, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    """Send one request on a new connection. Return the status and the body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, answer.read()


def tenantry(folder: Path, *words: str) -> Any:
    """Run a `tenantry` command in a folder, and return the JSON that the command prints."""
    done = subprocess.run(
        [PROGRAM, *words, "--json"], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{words}: {done.stderr}")
    return json.loads(done.stdout)


def count_faults(url: str, folder: Path, reported: Any) -> int:
    """Return how many rows and files of a restored tenant are wrong."""
    engine = create_engine(url, poolclass=NullPool)
    with engine.connect() as connection:
        query = "SELECT sha256, size_bytes FROM images"
        rows = [tuple(row) for row in connection.exec_driver_sql(query)]
    contents = {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    wrong = sum(hashes.get(sha256) != sha256 for sha256, _ in rows)
    wrong += sum(len(contents.get(sha256, b"")) != size for sha256, size in rows)
    wrong += len(contents.keys() - {sha256 for sha256, _ in rows})
    return wrong + (len(rows) != reported["rows"]["images"]) + (len(contents) != reported["files"])


def run(engine: str, server: postgres.Postgres, backups: int, bounds: Bounds) -> None:
    """Measure backups with one database engine."""
    with tempfile.TemporaryDirectory() as name, tempfile.TemporaryDirectory() as other_name:
        folder, other = Path(name), Path(other_name)
        tenants = make_site(folder)
        make_site(other)
        url = server.new_database() if engine == "postgresql" else ""
        line = f"DATABASE_URI = {url!r}\n" if url else ""
        (tenants / "acme.py").write_text(
            f"SECRET_KEY = {'acme-' * 8!r}\nBLUEPRINTS = ['images']\n{line}"
        )
        (folder / "instance/acme").mkdir(parents=True)
        migrate(url or f"sqlite:///{folder}/instance/acme/acme.sqlite3")
        with serving(folder) as host:
            host.wait_for("/acme/images/", 200)
            for _ in range(IMAGES):
                request(host.port, "POST", "/acme/images/", picture("JPEG", (300, 300)))
            with Load(host.port) as load:
                wait_until(lambda: len(load.waits_s) > 50)
                calm_s, started = max(load.waits_s), len(load.waits_s)
                reported = [
                    tenantry(folder, "backup", "acme", str(other / f"{n}.capsule"))
                    for n in range(backups)
                ]
                busy_s, uploads = max(load.waits_s[started:]), len(load.waits_s) - started
            bounds.check(f"{engine}: uploads refused", len(load.wrong), 0)
        print(f"{engine}: {uploads} uploads during {backups} backups")
        print(f"  the slowest took {busy_s * 1000:.0f} ms; {calm_s * 1000:.0f} ms before them")
        wrong = 0
        for number, one in enumerate(reported):
            rows, files = one["rows"]["images"], one["files"]
            print(f"  capsule {number}: {rows} rows, {files} files, {one['size_bytes']:,} bytes")
            for to in ("sqlite", "postgresql"):
                new, database = f"{to}-{number}", server.new_database()
                words = ("--database", database) if to == "postgresql" else ()
                tenantry(other, "restore", f"{number}.capsule", "--as", new, *words)
                data = other / "instance" / new
                wrong += count_faults(
                    database if words else f"sqlite:///{data}/{new}.sqlite3", data / "images", one
                )
        bounds.check(f"{engine}: rows and files that are wrong", wrong, 0)
        if engine == "sqlite":
            codecs(folder / "instance/acme/images")


def codecs(folder: Path) -> None:
    """Print the time and size of compressing the images in a folder."""
    content = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    for name, pack in (
        ("zstd 3", zstandard.ZstdCompressor(3).compress),
        ("gzip 6", lambda it: gzip.compress(it, 6)),
    ):
        started_at = time.process_time()
        size = len(pack(content))
        took_s = time.process_time() - started_at
        took = f"{took_s * 1000:.0f} ms of processor time"
        print(f"  {name}: {len(content):,} bytes of images to {size:,} in {took}")


def main(backups: int) -> None:
    """Measure backups with SQLite, and then with PostgreSQL."""
    bounds = Bounds()
    with postgres.running() as server:
        for engine in ("sqlite", "postgresql"):
            run(engine, server, backups, bounds)
    bounds.end()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else BACKUPS)
