"""Checks that `kill -9` loses or truncates no image whose upload was confirmed with 201.

    python tests/bench/uploads.py [KILLS]

One gunicorn serves the tenant acme with 2 workers of 8 threads. The tenant has the images endpoint
on SQLite. Eight clients upload 500 images of random noise. From time to time, the benchmark kills
all workers, and gunicorn starts new workers. The host parks a tenant that had requests in flight in
killed workers, so the benchmark enables the tenant immediately, as an operator would.

At the end, the benchmark downloads and compares every image whose upload was confirmed, and every
image in the list. No image may be lost or incomplete, and `images check` may find nothing worse
than a file without an image.
"""

import contextlib
import hashlib
import http.client
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from loads import Bounds, Server, make_site, serving, wait_until

sys.path.insert(0, str(Path(__file__).parents[1]))

from image_files import picture
from image_tables import migrate

UPLOADS = 500
CLIENTS = 8
KILLS = 5
TENANT = f"SECRET_KEY = {'acme-' * 8!r}\nBLUEPRINTS = ['images']\n"
ORPHANS = ("file without an image", "abandoned upload")


class Uploads:
    """The uploads of all clients, and their outcomes."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.kept: dict[str, str] = {}
        """ID → hash of the sent bytes, for each upload that was confirmed with 201."""
        self.cut = 0
        self.retries = 0
        self.refused: list[str] = []

    def send(self, number: int) -> None:
        """Upload one image. Repeat an upload after a 503, but not after a cut connection."""
        kind = ("PNG", "JPEG", "WEBP")[number % 3]
        data = picture(kind, (200 + number % 7 * 100, 300))
        try:
            status, body = request(self.port, "POST", f"/acme/images/?name={number}", data)
            while status == http.HTTPStatus.SERVICE_UNAVAILABLE:
                self.retries += 1
                time.sleep(0.1)
                status, body = request(self.port, "POST", f"/acme/images/?name={number}", data)
        except (OSError, http.client.HTTPException):
            self.cut += 1
            return
        if status == http.HTTPStatus.CREATED:
            self.kept[json.loads(body)["id"]] = hashlib.sha256(data).hexdigest()
        else:
            self.refused.append(f"{status} {body[:200]!r}")

    @property
    def done(self) -> int:
        """The number of uploads that have ended, successfully or not."""
        return len(self.kept) + self.cut + len(self.refused)


def request(port: int, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    """Send one request on a new connection. Return the status and the body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, answer.read()


def kill_workers(server: Server, uploads: Uploads, kills: int, folder: Path) -> None:
    """Kill all workers `kills` times at random moments, spread evenly over the uploads."""
    program = str(Path(sys.executable).with_name("tenantry"))
    for number in range(1, kills + 1):
        wait_until(lambda number=number: uploads.done >= number * UPLOADS // (kills + 1))
        time.sleep(random.uniform(0, 0.1))
        old = server.workers()
        for pid in old:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        # The master must record that workers died before `enable` runs.
        wait_until(lambda old=old: not set(old) & set(server.workers()))
        subprocess.run(
            [program, "enable", "acme"], cwd=folder, check=True, stdout=subprocess.DEVNULL
        )


def listed(port: int) -> dict[str, str]:
    """Return ID → hash of every listed image, page by page."""
    found, cursor = {}, ""
    while cursor is not None:
        _, body = request(port, "GET", f"/acme/images/?limit=100{cursor and '&cursor=' + cursor}")
        page = json.loads(body)
        found |= {image["id"]: image["sha256"] for image in page["images"]}
        cursor = page["next"]
    return found


def content_hash(port: int, image_id: str) -> str:
    """Return the hash of the bytes that the server returns for an image."""
    status, body = request(port, "GET", f"/acme/images/{image_id}/content")
    return hashlib.sha256(body).hexdigest() if status == http.HTTPStatus.OK else str(status)


def check(folder: Path) -> list[str]:
    """Return the findings of `images check`, except for files without an image."""
    program = str(Path(sys.executable).with_name("tenantry"))
    done = subprocess.run(
        [program, "run", "acme", "--", "images", "check", "--older-than", "0"],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    print("  images check:", done.stdout.splitlines()[-1:], done.stderr.strip())
    return [line for line in done.stdout.splitlines()[:-1] if not line.startswith(ORPHANS)]


def main(kills: int) -> None:
    """Upload images while workers are killed, and compare the images afterwards."""
    bounds = Bounds()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tenants = make_site(folder)
        (tenants / "acme.py").write_text(TENANT)
        (folder / "instance/acme").mkdir(parents=True)
        migrate(f"sqlite:///{folder}/instance/acme/acme.sqlite3")
        with serving(folder) as server:
            server.wait_for("/acme/images/", 200)
            uploads = Uploads(server.port)
            killer = threading.Thread(target=kill_workers, args=(server, uploads, kills, folder))
            killer.start()
            started_at = time.perf_counter()
            with ThreadPoolExecutor(CLIENTS) as clients:
                list(clients.map(uploads.send, range(UPLOADS)))
            took_s = time.perf_counter() - started_at
            killer.join()
            server.wait_for("/acme/images/", 200)
            found = listed(server.port)
            hashes = {image_id: content_hash(server.port, image_id) for image_id in found}
        wrong = check(folder)
    print(f"{UPLOADS} uploads in {took_s:.1f} s, all workers killed {kills} times")
    print(f"  201: {len(uploads.kept)}, cut: {uploads.cut}, listed: {len(found)}")
    print(f"  retried after a 503: {uploads.retries}")
    print("  other responses:", uploads.refused[:3], "; wrong:", wrong[:3])
    lost = sum(hashes.get(image_id) != sha256 for image_id, sha256 in uploads.kept.items())
    bounds.check("images with a 201 that are lost or incomplete", lost, 0)
    half = sum(hashes[image_id] != sha256 for image_id, sha256 in found.items())
    bounds.check("listed images that are incomplete", half, 0)
    bounds.check("responses other than 201", len(uploads.refused), 0)
    bounds.check("findings worse than orphan files", len(wrong), 0)
    bounds.check("kills that hit no upload", int(kills > 0 and uploads.cut == 0), 0)
    bounds.end()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else KILLS)
