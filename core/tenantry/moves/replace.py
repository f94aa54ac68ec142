"""Sets a tenant aside, so that `restore --replace` can create it again from a capsule.

The former tenant file, folder and secrets go to `<data>/.removed/NAME-TIME/`. The file and the
secrets are copied first. While the folder is moved, the journal says that the tenant is incomplete,
so that the tenant answers 503 even if the command is killed.
"""

import shutil
from contextlib import ExitStack
from pathlib import Path

from tenantry.moves.journal import MoveJournal
from tenantry.moves.names import secret_path
from tenantry.moves.remove import REMOVED_FOLDER
from tenantry.moves.steps import (
    MoveStep,
    replace_file,
    run_steps,
    wait_until_followed,
    wait_until_held,
)
from tenantry.settings import HostSettings
from tenantry.tenants.file import read_content
from tenantry.tenants.new_file import database_variable, secret_variable
from tenantry.tenants.operator_state import operator_state_file


class Replacement:
    """Replaces one tenant. The capsule is unpacked before the first step begins.

    Args:
        settings: the host's settings.
        journal: the journal of the move.
    """

    def __init__(self, settings: HostSettings, journal: MoveJournal) -> None:
        self._settings = settings
        self._journal = journal
        self._name = journal.move.name
        self._path = settings.tenants_dir / f"{self._name}.py"
        self._folder = settings.data_dir / self._name
        self.aside = settings.data_dir / REMOVED_FOLDER / f"{self._name}-{journal.move.started}"
        """The folder with the former tenant."""

    def set_aside(self, new_folder: Path, undo: ExitStack) -> None:
        """Move the former tenant aside, immediately before the new folder gets its path.

        Args:
            new_folder: the complete new folder, which receives the operator state.
            undo: a stack of callbacks that bring the former tenant back.
        """
        run_steps(self.steps(new_folder, undo), lambda *_: None)

    def steps(self, new_folder: Path, undo: ExitStack) -> list[MoveStep]:
        """Return the steps of `set_aside`."""
        return [
            MoveStep("waiting for requests", self._hold),
            MoveStep("copying the tenant file", self._copy_file),
            MoveStep("copying the secrets", self._copy_secrets),
            MoveStep("moving the folder", lambda: self._move_folder(undo)),
            MoveStep("copying the operator state", lambda: self._copy_state(new_folder)),
        ]

    def write_file(self, path: Path, text: str) -> None:
        """Replace the tenant file."""
        replace_file(path, text)

    def wait_for_workers(self) -> None:
        """Wait until every worker knows the new tenant file."""
        digest = read_content(self._path).digest
        wait_until_followed(self._settings.data_dir, present=self._name, digest=digest)

    def _hold(self) -> None:
        wait_until_held(self._settings.data_dir, self._name)

    def _copy_file(self) -> None:
        self.aside.mkdir(mode=0o700, parents=True, exist_ok=True)
        copy = self.aside / self._path.name
        if self._path.exists() and not copy.exists():
            _copy(self._path, copy)

    def _copy_secrets(self) -> None:
        for variable in (secret_variable(self._name), database_variable(self._name)):
            source, copy = secret_path(self._settings, variable), self.aside / "secrets" / variable
            if source.is_file() and not copy.exists():
                copy.parent.mkdir(mode=0o700, exist_ok=True)
                _copy(source, copy)

    def _move_folder(self, undo: ExitStack) -> None:
        target = self.aside / "data"
        self._journal.update(is_partial=True)
        self._journal.keep()
        if self._folder.exists() and target.exists():
            shutil.rmtree(self._folder)  # a killed run has left an incomplete folder
        elif self._folder.exists():
            self._folder.rename(target)
        undo.callback(self._put_back, target)

    def _put_back(self, former: Path) -> None:
        if former.exists():
            former.rename(self._folder)
        copy = self.aside / self._path.name
        if copy.exists():
            replace_file(self._path, copy.read_text(encoding="utf-8"))
        for path in (self.aside / "secrets").glob("*"):
            _copy(path, secret_path(self._settings, path.name))
        shutil.rmtree(self.aside, ignore_errors=True)
        self._journal.discard()

    def _copy_state(self, new_folder: Path) -> None:
        state = operator_state_file(self.aside, "data")
        if state.exists():
            shutil.copy2(state, new_folder / state.name)


def _copy(source: Path, target: Path) -> None:
    unfinished = target.with_name(f".{target.name}.new")
    shutil.copy2(source, unfinished)
    unfinished.replace(target)
