"""What kill -9 of a worker in the middle of 500 uploads costs: no image that got a 201.

    python tests/bench/uploads.py [KILLS]

One gunicorn, 2 workers of 8 threads; acme has the images endpoint on SQLite. Eight clients upload
500 images of random noise; every now and then all workers are killed, whatever they do, and
gunicorn starts new ones. A tenant under which workers die is parked: as an operator who knows
better would, the benchmark lets it back at once. Then each image that got a 201 is fetched and
compared; each that is listed is fetched too, so none is half there; and `images check` finds
nothing worse than files without an image.
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
    """The uploads of all clients, and what came of them."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.kept: dict[str, str] = {}
        """Id → hash of what was sent, of each that got a 201."""
        self.cut = 0
        self.told_later = 0
        self.refused: list[str] = []

    def send(self, number: int) -> None:
        """Upload one image, once; again while the answer is to come later."""
        kind = ("PNG", "JPEG", "WEBP")[number % 3]
        data = picture(kind, (200 + number % 7 * 100, 300))
        try:
            status, body = ask(self.port, "POST", f"/acme/images/?name={number}", data)
            while status == http.HTTPStatus.SERVICE_UNAVAILABLE:
                self.told_later += 1
                time.sleep(0.1)
                status, body = ask(self.port, "POST", f"/acme/images/?name={number}", data)
        except (OSError, http.client.HTTPException):
            self.cut += 1
            return
        if status == http.HTTPStatus.CREATED:
            self.kept[json.loads(body)["id"]] = hashlib.sha256(data).hexdigest()
        else:
            self.refused.append(f"{status} {body[:200]!r}")

    @property
    def done(self) -> int:
        """How many have ended, well or not."""
        return len(self.kept) + self.cut + len(self.refused)


def ask(port: int, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    """Send one request on a connection of its own; return status and body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, answer.read()


def kill_workers(server: Server, uploads: Uploads, kills: int, folder: Path) -> None:
    """Kill all workers `kills` times, evenly over the uploads, each time a moment after another."""
    program = str(Path(sys.executable).with_name("tenantry"))
    for number in range(1, kills + 1):
        wait_until(lambda number=number: uploads.done >= number * UPLOADS // (kills + 1))
        time.sleep(random.uniform(0, 0.1))
        old = server.workers()
        for pid in old:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda old=old: not set(old) & set(server.workers()))  # the master has judged
        subprocess.run(
            [program, "enable", "acme"], cwd=folder, check=True, stdout=subprocess.DEVNULL
        )


def listed(port: int) -> dict[str, str]:
    """Return id → hash of every image of the list, page by page."""
    found, cursor = {}, ""
    while cursor is not None:
        _, body = ask(port, "GET", f"/acme/images/?limit=100{cursor and '&cursor=' + cursor}")
        page = json.loads(body)
        found |= {image["id"]: image["sha256"] for image in page["images"]}
        cursor = page["next"]
    return found


def content_hash(port: int, image_id: str) -> str:
    """Return the hash of an image's bytes as they come now."""
    status, body = ask(port, "GET", f"/acme/images/{image_id}/content")
    return hashlib.sha256(body).hexdigest() if status == http.HTTPStatus.OK else str(status)


def check(folder: Path) -> list[str]:
    """Return what `images check` finds."""
    program = str(Path(sys.executable).with_name("tenantry"))
    done = subprocess.run(
        [program, "run", "acme", "--", "images", "check", "--older-than", "0"],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    print("  images check:", done.stdout.splitlines()[-1:], done.stderr.strip())
    return [line for line in done.stdout.splitlines()[:-1] if not line.startswith(ORPHANS)]


def main(kills: int) -> None:
    """Serve, upload, kill, compare."""
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
            there = listed(server.port)
            hashes = {image_id: content_hash(server.port, image_id) for image_id in there}
        wrong = check(folder)
    print(f"{UPLOADS} uploads in {took_s:.1f} s, all workers killed {kills} times")
    print(f"  201: {len(uploads.kept)}, cut: {uploads.cut}, listed: {len(there)}")
    print(f"  told to come later: {uploads.told_later}")
    print("  other answers:", uploads.refused[:3], "; wrong:", wrong[:3])
    lost = sum(hashes.get(image_id) != sha256 for image_id, sha256 in uploads.kept.items())
    bounds.check("images with a 201 that are not there, whole", lost, 0)
    half = sum(hashes[image_id] != sha256 for image_id, sha256 in there.items())
    bounds.check("images that are listed and not whole", half, 0)
    bounds.check("answers but 201", len(uploads.refused), 0)
    bounds.check("findings worse than orphan files", len(wrong), 0)
    bounds.check("kills that hit no upload", int(kills > 0 and uploads.cut == 0), 0)
    bounds.end()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else KILLS)
