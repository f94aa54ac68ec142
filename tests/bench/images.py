"""Measures the cost of the most expensive images, and their effect on another tenant.

    python tests/bench/images.py [--rounds 2] [--seconds 5]

The first part uploads each file in a separate process, makes its largest thumbnail, and measures
processor time and memory. The files are the largest allowed images of each format, and files with
at least as many parts as the limits allow. Every file has at most 16 MiB. The processor time is
compared with the time that Pillow takes to decode the slowest of the largest allowed images.

In the second part, one gunicorn with 2 workers of 8 threads serves two tenants. Without a pause,
eight clients upload these files to one tenant, and request their thumbnails. Four clients visit the
landing page of the other tenant.
"""

import argparse
import contextlib
import json
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from loads import Bounds, describe, landing_text, make_site, serving
from neighbours import request_from_process
from uploads import TENANT, request

from image_files import chunk, encoded
from image_tables import migrate

CLIENTS = 8
QUIET_CLIENTS = 4
FILE_BYTES = 16 * 1024 * 1024
SIDE_PX = 5000
WEBP_SIZE = (4000, 3125)
MAX_MIB = 300
MAX_CPU_RATIO = 3
MAX_MEDIAN_RATIO = 2

COST = """\
import json, sys, time
from pathlib import Path
from PIL import Image
from tenantry.endpoints.images.decoding import draw_thumbnail, inspect_image
from tenantry.endpoints.images.errors import ImageError
from tenantry.files.memory_budget import DECODING_BYTES, MemoryBudget

def peak_kib():
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])

path, memory, what = Path(sys.argv[1]), MemoryBudget(DECODING_BYTES, 0), sys.argv[2]
Image.MAX_IMAGE_PIXELS = None
before_kib, started_at = peak_kib(), time.process_time()
try:
    if what == "plain":
        Image.open(path).load()
    elif what == "upload":
        inspect_image(path, memory)
    else:
        draw_thumbnail(path, 1024, memory)
except ImageError:
    pass
print(json.dumps([time.process_time() - started_at, (peak_kib() - before_kib) / 1024]))
"""


def largest() -> Iterator[tuple[str, bytes]]:
    """Yield the name and content of each of the largest allowed images."""
    color = _noise((SIDE_PX, SIDE_PX))
    yield "JPEG", encoded(color, "JPEG", quality=85, subsampling=0)
    yield "progressive JPEG", encoded(color, "JPEG", quality=80, subsampling=0, progressive=True)
    yield "GIF", encoded(Image.effect_noise((SIDE_PX, SIDE_PX), 3), "GIF")
    yield "16-bit PNG", _png(SIDE_PX, SIDE_PX, color=6)
    yield "WebP", encoded(_noise(WEBP_SIZE), "WEBP", method=0)
    yield "lossless WebP", encoded(_noise(WEBP_SIZE), "WEBP", method=0, lossless=True, quality=0)


def hostile() -> Iterator[tuple[str, bytes]]:
    """Yield the name and content of files that are expensive to decode."""
    small = encoded(Image.new("RGB", (60, 40)), "JPEG")
    cmyk = Image.merge("CMYK", [Image.effect_noise((SIDE_PX, SIDE_PX), 20)] * 4)
    progressive = encoded(cmyk, "JPEG", quality=20, subsampling=0, progressive=True)
    last = progressive.rindex(b"\xff\xda")
    scans = progressive.count(b"\xff\xda")
    yield "scans", progressive[:last] + progressive[last : last + 30] * (31 - scans) + b"\xff\xd9"
    yield "empty segments", small[:2] + _many(b"\xff\xe3\0\2") + small[2:]
    yield "fill bytes", small[:2] + _many(b"\xff") + small[2:]
    yield "bytes after the pixels", small[:-2] + _many(b"\xff\0") + small[-2:]
    yield "one row of pixels", encoded(_noise((25_000, 1000)), "JPEG")
    yield "transparent gray", _png(SIDE_PX, SIDE_PX, 0, chunk(b"tRNS", b"\0\0"))
    yield "transparent color", _png(SIDE_PX, SIDE_PX, 2, chunk(b"tRNS", bytes(6)))
    yield "wide PNG", _png(65_535, 381, color=6)
    yield "too much zlib", _png(1, 1, 0, chunk(b"IDAT", zlib.compress(bytes(2**30), 9)))
    profile = chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(2**20), 9))
    yield "profiles", _png(60, 40, 0, profile * (FILE_BYTES // len(profile)))
    yield "empty chunks", _png(60, 40, 0, _many(chunk(b"tEXt", b"")))
    gif = encoded(Image.new("P", (60, 40)), "GIF")
    yield "comments", gif[:-1] + b"!\xfe" + _many(b"\1a") + b"\0;"
    frame = b"," + bytes(4) + b"\1\0\1\0\0\2\2\x4c\1\0"
    yield "frames", gif[:-1] + _many(frame) + b";"
    webp = encoded(Image.new("RGB", (60, 40)), "WEBP")
    parts = _many(b"XYZ \0\0\0\0")
    yield "webp chunks", webp[:4] + struct.pack("<I", len(webp) - 8 + len(parts)) + webp[8:] + parts


def _noise(size: tuple[int, int]) -> Image.Image:
    return Image.merge("RGB", [Image.effect_noise(size, 40)] * 3)


def _many(part: bytes) -> bytes:
    return part * ((FILE_BYTES - 8192) // len(part))


def _png(width: int, height: int, color: int, *chunks: bytes) -> bytes:
    """Return a black PNG with 16 bits per sample, whose rows depend on the rows above."""
    samples = {0: 1, 2: 3, 6: 4}[color]
    rows = (b"\4" + bytes(2 * samples * width)) * height
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, 0))
    body = (header, *chunks, chunk(b"IDAT", zlib.compress(rows, 9)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def measure_costs(paths: Sequence[Path], plain: Sequence[Path], bounds: Bounds) -> None:
    """Measure the processor time and the memory of each upload and thumbnail."""
    plain_s = max(_cost(path, "plain")[0] for path in plain)
    print(f"plain decoding of the largest allowed image: {plain_s:.2f} s of processor time")
    costs = {}
    for path in paths:
        costs[path.name] = [_cost(path, what) for what in ("upload", "thumbnail")]
        figures = "  ".join(f"{cpu_s:.2f} s {mib:4.0f} MiB" for cpu_s, mib in costs[path.name])
        print(f"  {path.name:<24}{figures}", flush=True)
    cpu_s = max(cpu_s for cost in costs.values() for cpu_s, _ in cost)
    mib = max(mib for cost in costs.values() for _, mib in cost)
    bounds.check("processor time of an upload or thumbnail ÷ plain decoding", cpu_s / plain_s,
                 MAX_CPU_RATIO)  # fmt: skip
    bounds.check("memory of an upload or thumbnail", mib, MAX_MIB, " MiB")


def _cost(path: Path, what: str) -> tuple[float, float]:
    """Return seconds of processor time and MiB of memory."""
    words = [sys.executable, "-c", COST, str(path), what]
    run = subprocess.run(words, capture_output=True, text=True, check=True)
    cpu_s, mib = json.loads(run.stdout)
    return cpu_s, mib


@contextlib.contextmanager
def uploading(port: int, paths: Sequence[Path], statuses: Counter[int]) -> Iterator[None]:
    """Upload the files and request their thumbnails with eight clients during the block."""
    has_ended = threading.Event()

    def upload(number: int) -> None:
        while not has_ended.is_set():
            number += 1
            data = paths[number % len(paths)].read_bytes()
            status, body = request(port, "POST", "/acme/images/", data)
            statuses[status] += 1
            if status == 201:
                thumbnail = f"/acme/images/{json.loads(body)['id']}/thumbnail?size=1024"
                statuses[request(port, "GET", thumbnail)[0]] += 1

    clients = [threading.Thread(target=upload, args=(number,)) for number in range(CLIENTS)]
    for client in clients:
        client.start()
    try:
        yield
    finally:
        has_ended.set()
        for client in clients:
            client.join()


def measure_neighbor(
    folder: Path, paths: Sequence[Path], bounds: Bounds, arguments: argparse.Namespace
) -> None:
    """Compare the neighbor's median while eight clients send images with its calm median."""
    tenants = make_site(folder)
    (tenants / "acme.py").write_text(TENANT)
    (tenants / "quiet.py").write_text(landing_text("quiet"))
    (folder / "instance/acme").mkdir(parents=True)
    migrate(f"sqlite:///{folder}/instance/acme/acme.sqlite3")
    calm: list[float] = []
    beside: list[float] = []
    statuses: Counter[int] = Counter()
    with serving(folder) as server:
        server.wait_for("/acme/images/", 200)
        server.wait_for("/quiet/", 201)

        def visit(times: list[float]) -> int:
            answers = request_from_process(server.port, "/quiet/", QUIET_CLIENTS, arguments.seconds)
            times += [seconds for seconds, status in answers if status == 201]
            return sum(status != 201 for _, status in answers)

        failed = visit([])
        for _ in range(arguments.rounds):
            failed += visit(calm)
            with uploading(server.port, paths, statuses):
                time.sleep(1)
                failed += visit(beside)
    print("calm:  ", describe(calm))
    print("beside:", describe(beside), dict(statuses))
    ratio = statistics.median(beside) / statistics.median(calm)
    bounds.check("neighbor's median beside images ÷ calm", ratio, MAX_MEDIAN_RATIO)
    bounds.check("failed requests of the neighbor", failed, 0)
    faults = sum(count for status, count in statuses.items() if status >= 500 and status != 503)
    bounds.check("statuses of 500 or above, except 503", faults, 0)


def main() -> None:
    """Measure both parts and print the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5.0)
    arguments = parser.parse_args()
    bounds = Bounds()
    with tempfile.TemporaryDirectory() as name:
        files = Path(name, "files")
        files.mkdir()
        paths: list[list[Path]] = []
        for kind in (largest, hostile):
            paths.append([])
            for label, data in kind():
                if len(data) > FILE_BYTES:
                    raise SystemExit(f"{label} has {len(data):,} bytes")
                (files / label).write_bytes(data)
                paths[-1].append(files / label)
        measure_costs([*paths[0], *paths[1]], paths[0], bounds)
        measure_neighbor(Path(name), [*paths[0], *paths[1]], bounds, arguments)
    bounds.end()


if __name__ == "__main__":
    main()
