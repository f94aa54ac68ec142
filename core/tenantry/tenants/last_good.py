"""Records what served last: the claims of all tenants, and the text of their last good files.

The record remains after all workers and the host have ended. When two tenants claim the same
address after a restart, the tenant that served there before keeps the address. A tenant whose
newest file is rejected serves the last good version. The folder `<data>/.last_good` has mode 0700,
and its files have mode 0600, because tenant files can contain secrets.
"""

import fcntl
import json
import logging
import os
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from tenantry.tenants.address import Address, address_of
from tenantry.tenants.file import FileContent, content_digest, read_content
from tenantry.tenants.model import Tenant

SAVED_AT_ONCE = 500
"""Maximum number of texts that one call of `save` writes. Writing so many texts takes 50 ms."""

_CLAIMS = "claims.json"

_logger = logging.getLogger(__name__)


class Claims(NamedTuple):
    """What a tenant claimed when it last served."""

    digest: str
    """SHA-256 of the tenant file."""
    # The fields of an `Address`, in one tuple, because a process can hold 10,000 tenants.
    prefix: str
    hosts: tuple[str, ...] = ()
    old_hosts: tuple[str, ...] = ()
    old_prefixes: tuple[str, ...] = ()

    @property
    def address(self) -> Address:
        """The address at which the tenant served."""
        return Address(*self[1:])


class LastGood:
    """The record of what served last on one host.

    Each worker process reads the record at its start, and then updates the record.

    Only `note_built` and `content` are thread-safe. Before the call of `open`, the record is empty
    and `save` writes nothing, so commands that only inspect tenants change nothing.

    Args:
        data_dir: the host's data folder.
        tenants_dir: the tenants folder.
    """

    def __init__(self, data_dir: Path, tenants_dir: Path) -> None:
        self._folder = data_dir / ".last_good"
        self._tenants_dir = tenants_dir
        self.claims: dict[str, Claims] = {}
        """What each tenant claimed when it last served, by tenant name."""
        self._is_open = self._is_started = self._has_failed = False
        self._unsaved: dict[str, Tenant] = {}
        self._changes: dict[str, Claims | None] = {}  # changes that are not saved yet

    def open(self) -> dict[str, Claims]:
        """Read the record, and return the claims."""
        self._is_open = True
        self.claims = _read_claims(self._folder / _CLAIMS)
        return self.claims

    def end_start(self, names: Collection[str]) -> None:
        """Record that all tenant files are known, and forget all tenants except `names`."""
        self._is_started = True
        if not names:
            return  # an empty folder may be a volume that is mounted late
        for name in self.claims.keys() - names:
            self.forget(name)

    def note_accepted(self, tenant: Tenant) -> None:
        """Record a valid tenant, unless a version of this tenant is already recorded."""
        if tenant.name not in self.claims:
            self.note_built(tenant)

    def note_built(self, tenant: Tenant) -> None:
        """Record a tenant that serves."""
        claims = self.claims.get(tenant.name)
        if self._is_open and claims != (tenant.digest, *tenant.address):
            self._unsaved[tenant.name] = tenant

    def forget(self, name: str) -> None:
        """Forget a tenant whose file was removed."""
        self._unsaved.pop(name, None)
        if self.claims.pop(name, None) is not None:
            self._changes[name] = None

    def content(self, name: str) -> FileContent | None:
        """Return the last good content of a tenant file, or None if it is missing or damaged.

        After the start of the host, the result is None, because the host knows which tenants serve.
        """
        claims = self.claims.get(name)
        if claims is None or self._is_started:
            return None
        try:
            source = self._text_file(name).read_bytes()
        except OSError:
            return None
        if content_digest(source) != claims.digest:
            return None
        return FileContent(self._tenants_dir / f"{name}.py", claims.digest, source)

    def save(self) -> None:
        """Write all changes to disk. An error is logged once, and the next call tries again."""
        if not self._unsaved and not self._changes:
            return
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for name in list(self._unsaved)[:SAVED_AT_ONCE]:
                tenant = self._unsaved.pop(name)
                try:
                    self._save_text(tenant)
                except OSError:
                    self._unsaved.setdefault(name, tenant)
                    raise
            self._save_claims()
        except OSError as error:
            if not self._has_failed:
                _logger.error("last_good.save_failed", extra={"reason": str(error)})
            self._has_failed = True
        else:
            self._has_failed = False

    def _save_text(self, tenant: Tenant) -> None:
        content = read_content(self._tenants_dir / f"{tenant.name}.py")
        if content.digest == tenant.digest:  # if the digests differ, the file has changed again
            _replace(self._text_file(tenant.name), content.source)
            claims = self.claims[tenant.name] = Claims(tenant.digest, *tenant.address)
            self._changes[tenant.name] = claims

    def _save_claims(self) -> None:
        if self._changes:
            _change_claims(self._folder, self._changes)
            self._changes = {}

    def _text_file(self, name: str) -> Path:
        return self._folder / f"{name}.py"


def forget_last_good(data_dir: Path, name: str) -> None:
    """Forget what a removed tenant served, so that a new tenant of that name does not serve it.

    A running host forgets the tenant itself, but no host may be running.
    """
    folder = data_dir / ".last_good"
    if folder.is_dir():
        _change_claims(folder, {name: None})


def _change_claims(folder: Path, changes: Mapping[str, Claims | None]) -> None:
    """Apply changes to the file of claims, which other processes also change."""
    lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        claims = _read_claims(folder / _CLAIMS)
        for name, changed in changes.items():
            if changed is None:
                claims.pop(name, None)
                (folder / f"{name}.py").unlink(missing_ok=True)
            else:
                claims[name] = changed
        _replace(folder / _CLAIMS, json.dumps(claims).encode())
    finally:
        os.close(lock)


def _read_claims(path: Path) -> dict[str, Claims]:
    try:
        claims = json.loads(path.read_bytes())
        return {str(name): Claims(str(digest), *address_of(*address))
                for name, (digest, *address) in claims.items()}  # fmt: skip
    except (OSError, ValueError, AttributeError, TypeError):
        return {}  # the file is missing or damaged, so no tenant has precedence


def _replace(path: Path, content: bytes) -> None:
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fd = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, content)  # writing to a regular file is complete, or raises an error
        finally:
            os.close(fd)
        unfinished.replace(path)
    except OSError:
        with suppress(OSError):
            unfinished.unlink()
        raise
