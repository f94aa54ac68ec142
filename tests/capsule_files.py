"""Capsules for tests: as another program reads them, and as nobody but an attacker writes them."""

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import zstandard

from tenantry.capsules.archive import END, END_BEGINS
from tenantry.capsules.archive_writer import ArchiveWriter

Parts = Sequence[tuple[str, bytes]]

CONTENTS = {
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
    """Tell nobody."""


def heads(config: bytes = CONFIG, **contents: object) -> Parts:
    """Return the first two parts of a capsule of a tenant without data."""
    said = json.dumps(CONTENTS | contents).encode()
    return [("capsule.json", said), ("config.json", config)]


def archive(parts: Parts, manifest: bytes | None = None) -> bytes:
    """Return the archive that is in a capsule; `manifest` instead of the right one."""
    packed = io.BytesIO()
    right = b"".join(
        json.dumps(
            {"name": name, "size_bytes": len(one), "sha256": hashlib.sha256(one).hexdigest()}
        ).encode()
        + b"\n"
        for name, one in parts
    )
    with tarfile.open(
        fileobj=packed, mode="w", format=tarfile.GNU_FORMAT, errors="surrogateescape"
    ) as tar:
        for name, content in [*parts, ("manifest.jsonl", right if manifest is None else manifest)]:
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), 0o600
            tar.addfile(info, io.BytesIO(content))
        end = tar.offset + 1024
    return packed.getvalue()[:end]


def sealed(content: bytes, size: int | None = None, *, after: bytes = b"") -> bytes:
    """Return an archive as a capsule with a good hash.

    Args:
        content: the archive.
        size: what the capsule says that its size is; by default what it is.
        after: bytes between the archive's frame and the end.
    """
    frame = zstandard.ZstdCompressor(3).compress(content) + after
    end = END.pack(*END_BEGINS, len(content) if size is None else size)
    return frame + end + hashlib.sha256(frame + end).digest()


def parts_of(path: Path) -> dict[str, bytes]:
    """Return the parts of a capsule, as another program reads it."""
    with path.open("rb") as file:
        stream = zstandard.ZstdDecompressor().stream_reader(file)
        with tarfile.open(fileobj=io.BytesIO(stream.read())) as tar:
            files = [(one.name, tar.extractfile(one)) for one in tar]
            return {name: file.read() for name, file in files if file is not None}


def rewritten(path: Path, **changes: bytes) -> Path:
    """Write a capsule anew, whole by its hashes, with parts replaced or added."""
    parts = parts_of(path)
    del parts["manifest.jsonl"]
    with ArchiveWriter(path) as capsule:
        for name, content in (parts | changes).items():
            capsule.add(name, content)
    return path


def tree(folder: Path) -> Mapping[str, bytes]:
    """Return the files below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
