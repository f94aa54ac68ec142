"""Where capsules and tenants are made: folders below `<data>/.capsules`, on the tenants' disk.

Each is locked while a process works in it. What a killed one left is swept by the next that comes,
with what it had already put elsewhere below `<data>`; nothing else is. Knows files only.
"""

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Self

from tenantry.capsules.locks import lock, turn
from tenantry.capsules.tenant_folder import RESTORING
from tenantry.errors import TenantryError

STAGING = ".capsules"
"""The folder under `<data>`; no tenant has this name."""

_MADE = "made"
"""A mirror of `<data>`: what has the same content there was put there by this restore."""


@contextmanager
def backup_staging(data_dir: Path, name: str) -> Iterator[Path]:
    """Yield an empty folder, gone after the block; for one tenant there may be several at once."""
    parent = _parent(data_dir)
    with turn(parent):
        _sweep_all(parent)
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=parent))
        opened = lock(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(opened)


class RestoreStaging:
    """Where one tenant is made, until the end of a `with` block; for one process at a time.

    What was made is gone after the block, unless it was `kept`.

    Args:
        data_dir: `<data>`.
        name: the tenant's.
    """

    def __init__(self, data_dir: Path, name: str) -> None:
        self.name = name
        self.data_dir = data_dir
        self.folder = data_dir / STAGING / f"{name}{RESTORING}"
        self.tenant = self.folder / "tenant"
        """The tenant's folder that is to be."""
        self._made = self.folder / _MADE
        self.undo = ExitStack()
        """Takes back what was made for it elsewhere, unless it is `kept`."""

    def __enter__(self) -> Self:
        parent = _parent(self.data_dir)
        with turn(parent):
            _sweep_all(parent)
            try:
                self.folder.mkdir(mode=0o700)
            except FileExistsError as error:
                text = f"another process is making tenant {self.name!r}"
                raise TenantryError(f"{text}; wait for it, or choose another name.") from error
            self._lock = lock(self.folder)
        self.tenant.mkdir(mode=0o700)
        self._made.mkdir(mode=0o700)
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        try:
            with self.undo:
                _sweep(self.folder)
        except OSError as left:
            said = "" if error is None else f"{error}\n"
            text = f"{said}{left.filename or self.folder} could not be removed: {left.strerror}"
            raise TenantryError(f"{text}; remove it yourself.") from error
        finally:
            os.close(self._lock)

    def move(self) -> None:
        """Give the tenant's folder its name.

        Raises:
            TenantryError: it is there.
        """
        final = self.data_dir / self.name
        token = secrets.token_hex()
        _write_new(self.tenant / RESTORING, token)
        twin = self._note(final / RESTORING, token)
        try:
            final.mkdir(mode=0o700)  # renaming alone would replace an empty folder
        except FileExistsError as error:
            twin.unlink()  # it is somebody else's
            raise _appeared(final) from error
        self.tenant.rename(final)

    def add(self, path: Path, text: str) -> None:
        """Write a file below `<data>` for its owner only.

        Raises:
            TenantryError: it is there.
        """
        twin = self._note(path, text)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            _write_new(path, text)
        except FileExistsError as error:
            twin.unlink()  # it is somebody else's, whatever it holds
            raise _appeared(path) from error

    @contextmanager
    def commit(self) -> Iterator[None]:
        """Let what was made stay, here and elsewhere, even if this process is killed from now on.

        If the block fails, nothing stays after all.
        """
        kept = self.folder / "kept"
        self._made.rename(kept)
        try:
            yield
            (self.data_dir / self.name / RESTORING).unlink(missing_ok=True)
        except BaseException:
            kept.rename(self._made)
            raise
        self.undo.pop_all()

    def _note(self, path: Path, text: str) -> Path:
        twin = self._made / path.relative_to(self.data_dir)
        twin.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write_new(twin, text)
        return twin


def _parent(data_dir: Path) -> Path:
    parent = data_dir / STAGING
    try:
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise TenantryError(f"cannot make {parent}: {error.strerror}.") from error
    return parent


def _write_new(path: Path, text: str) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o600), "w", encoding="utf-8") as file:
        file.write(text)


def _appeared(path: Path) -> TenantryError:
    return TenantryError(f"{path} is there by now: nothing is restored over it; move it away.")


def _sweep_all(parent: Path) -> None:
    for folder in parent.iterdir():
        with suppress(OSError):  # somebody works in it, or it is not ours to sweep
            opened = lock(folder)
            try:
                _sweep(folder)
            finally:
                os.close(opened)


def _sweep(folder: Path) -> None:
    """Remove a folder that nobody else works in, with what was put elsewhere and not kept."""
    made, data_dir = folder / _MADE, folder.parent.parent
    for twin in [path for path in made.rglob("*") if path.is_file()]:
        final = data_dir / twin.relative_to(made)
        is_ours = _is_ours(twin, final)
        if final.name == RESTORING and is_ours:
            shutil.rmtree(final.parent)
        elif final.name == RESTORING:
            with suppress(OSError):
                final.parent.rmdir()  # made, and killed before anything was in it
        elif is_ours:
            final.unlink()
    shutil.rmtree(folder)


def _is_ours(twin: Path, final: Path) -> bool:
    """Whether a file has the content that we gave it, or none yet."""
    try:
        content = final.read_bytes()
    except OSError:
        return False
    return content == twin.read_bytes() or (not content and final.name != RESTORING)
