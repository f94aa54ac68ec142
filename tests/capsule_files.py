"""Helps tests read backup files without Tenantry's code, and write malicious backup files."""

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import zstandard

from tenantry.capsules.archive import TRAILER, TRAILER_BEGINNING
from tenantry.capsules.archive_writer import ArchiveWriter

Members = Sequence[tuple[str, bytes]]

METADATA = {
    "format": 1,
    "tenant": "acme",
    "created": "2026-01-02",
    "tenantry": "0.1.0",
    "engine": "sqlite",
    "revisions": {},
    "unknown_revisions": [],
    "tables": [],
    "secret_keys": [],
}
CONFIG = b'{"dict":[["BLUEPRINTS",["landing"]]]}'


def quiet(*_: object) -> None:
    """Ignore progress reports."""


def headers(config: bytes = CONFIG, **metadata: object) -> Members:
    """Return the first two members of a backup file whose tenant has no data."""
    content = json.dumps(METADATA | metadata).encode()
    return [("capsule.json", content), ("config.json", config)]


def archive(members: Members, manifest: bytes | None = None) -> bytes:
    """Return the tar archive of a backup file, optionally with a wrong manifest."""
    packed = io.BytesIO()
    correct = b"".join(
        json.dumps(
            {
                "name": name,
                "size_bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
            }
        ).encode()
        + b"\n"
        for name, content in members
    )
    last = ("manifest.jsonl", correct if manifest is None else manifest)
    with tarfile.open(
        fileobj=packed, mode="w", format=tarfile.GNU_FORMAT, errors="surrogateescape"
    ) as tar:
        for name, content in [*members, last]:
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), 0o600
            tar.addfile(info, io.BytesIO(content))
        end = tar.offset + 1024
    return packed.getvalue()[:end]


def sealed(content: bytes, size: int | None = None, *, after: bytes = b"") -> bytes:
    """Return a tar archive as a backup file with a correct hash.

    Args:
        content: The tar archive.
        size: The size in the trailer, if it differs from the size of `content`.
        after: Extra bytes before the trailer.
    """
    frame = zstandard.ZstdCompressor(3).compress(content) + after
    trailer = TRAILER.pack(*TRAILER_BEGINNING, len(content) if size is None else size)
    return frame + trailer + hashlib.sha256(frame + trailer).digest()


def members_of(path: Path) -> dict[str, bytes]:
    """Read a backup file without Tenantry's code, and return its members."""
    with path.open("rb") as file:
        stream = zstandard.ZstdDecompressor().stream_reader(file)
        with tarfile.open(fileobj=io.BytesIO(stream.read())) as tar:
            files = [(info.name, tar.extractfile(info)) for info in tar]
            return {name: file.read() for name, file in files if file is not None}


def rewrite(path: Path, **changes: bytes) -> Path:
    """Write a backup file again with correct hashes, but with members replaced or added."""
    members = members_of(path)
    del members["manifest.jsonl"]
    with ArchiveWriter(path) as capsule:
        for name, content in (members | changes).items():
            capsule.add(name, content)
    return path


def tree(folder: Path) -> Mapping[str, bytes]:
    """Return the content of all files below a folder. The keys are the files' paths."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
