"""Uploads mutated images to the images endpoint, and downloads the accepted images.

    python tests/images/fuzz_images.py [COUNT] [--seed N] [--first NUMBER]

The fuzzer sends each image as a form or as a body. The fuzzer fails if one of the following
happens:

- The process ends.
- A response has a status of 500 or above, except 503, or an error has no text.
- An accepted image cannot be downloaded unchanged, or has no thumbnail.
- An upload or a thumbnail takes more than 2 s of processor time.
- A file is created or changed outside the tenant's folder, or an upload leaves a file behind.

In half of the PNG mutants, the checksums are repaired, so that these mutants reach the decoder. To
repeat one mutant, pass its number and the seed: `fuzz_images.py 1 --seed 7 --first 1234`.
"""

import argparse
import faulthandler
import hashlib
import struct
import sys
import tempfile
import time
import zlib
from collections import Counter
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

from werkzeug.test import Client, TestResponse

sys.path.insert(0, str(Path(__file__).parents[1]))

from image_mutation import Mutant, make_mutant

from image_tables import migrate
from tenantry.app.factory import close_app, create_app

MAX_CPU_S = 2.0
MAX_FAILURES = 50
"""Number of failures after which the fuzzer stops."""
ALLOWED = frozenset({200, 201, 400, 413, 415, 422, 503})


@dataclass
class Report:
    """The results of a run of the fuzzer."""

    mutants: int = 0
    seconds: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)
    slowest_s: float = 0.0
    failures: list[str] = field(default_factory=list)


def fuzz(folder: Path, count: int, *, seed: int = 1, first: int = 0) -> Report:
    """Upload mutants `first` to `first + count - 1` to a tenant whose data is in `folder`."""
    faulthandler.enable()
    report = Report()
    started_at = time.perf_counter()
    keys = {"APP_NAME": "acme", "SECRET_KEY": "acme-" * 8, "BLUEPRINTS": ["images"]}
    data_dir = folder / "instance"
    (data_dir / "acme").mkdir(parents=True)
    migrate(f"sqlite:///{data_dir}/acme/acme.sqlite3")
    app = create_app(keys, data_dir=data_dir)
    outside = _snapshot(folder)
    client = Client(app)
    for number in range(first, first + count):
        mutant = make_mutant(seed, number)
        problem = _play(client, mutant, report)
        report.mutants += 1
        if problem:
            report.failures.append(f"mutant {number} ({mutant.kind}): {problem}")
        if len(report.failures) >= MAX_FAILURES:
            break
    close_app(app)
    left = [path for path in (data_dir / "acme/images").rglob("*") if path.is_file()]
    if left:
        report.failures.append(f"files were left behind: {left[:3]}")
    if outside != _snapshot(folder):
        report.failures.append("files outside the tenant's folder have changed")
    report.seconds = time.perf_counter() - started_at
    return report


def _snapshot(folder: Path) -> dict[str, int]:
    """Return the path and the size of each file outside the tenant's folder."""
    own = folder / "instance/acme"
    files = (path for path in folder.rglob("*") if path.is_file() and own not in path.parents)
    return {str(path): path.stat().st_size for path in files}


def _play(client: Client, mutant: Mutant, report: Report) -> str:
    """Upload a mutated image. Return the problem, or an empty text."""
    data = _with_checksums(mutant.data) if mutant.number % 2 else mutant.data
    if mutant.number % 4 < 2:
        options = {"data": data, "query_string": {"name": mutant.name}}
    else:
        options = {"data": {"file": (BytesIO(data), mutant.name or "a")}}
    answer = _send(client, "POST", "/images/", report, **options)
    if answer.status_code not in ALLOWED:
        return f"the upload got {answer.status_code}: {answer.text[:200]}"
    if answer.status_code != 201:
        return "" if answer.get_json().get("message") else "an error has no text"
    path = answer.headers["Location"]
    content = _send(client, "GET", f"{path}/content", report)
    thumbnail = _send(client, "GET", f"{path}/thumbnail?size=64", report)
    _send(client, "DELETE", path, report)
    if hashlib.sha256(content.data).digest() != hashlib.sha256(data).digest():
        return f"the download got {content.status_code} and other bytes"
    if thumbnail.status_code != 200:
        return f"the thumbnail got {thumbnail.status_code}: {thumbnail.text[:200]}"
    return f"took {report.slowest_s:.1f} s" if report.slowest_s > MAX_CPU_S else ""


def _send(
    client: Client, method: str, path: str, report: Report, **options: object
) -> TestResponse:
    started_at = time.process_time()
    answer = client.open(path, method=method, buffered=True, **options)
    report.slowest_s = max(report.slowest_s, time.process_time() - started_at)
    report.statuses[answer.status_code] += 1
    return answer


def _with_checksums(data: bytes) -> bytes:
    """Return a PNG with correct checksums in all chunks up to the first damaged length."""
    repaired, position = bytearray(data), 8
    while data[1:4] == b"PNG" and position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        end = position + 8 + length
        if end + 4 > len(data):
            break
        struct.pack_into(">I", repaired, end, zlib.crc32(data[position + 4 : end]))
        position = end + 4
    return bytes(repaired)


def main() -> None:
    """Run the fuzzer and print its report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("count", type=int, nargs="?", default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    arguments = parser.parse_args()
    memory = Path("/dev/shm")  # a folder in memory avoids waiting for a disk
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        report = fuzz(Path(folder), arguments.count, seed=arguments.seed, first=arguments.first)
    print(f"{report.mutants:,} mutants in {report.seconds:.0f} s: {dict(report.statuses)}")
    print(f"slowest request: {report.slowest_s:.2f} s of processor time")
    print(*report.failures, sep="\n")
    sys.exit(bool(report.failures))


if __name__ == "__main__":
    main()
