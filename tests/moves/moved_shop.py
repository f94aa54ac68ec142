"""Creates the tenant shop for tests of moves, and checks that a tenant is complete."""

import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from shops import environment
from tenantry.capsules import read_capsule
from tenantry.settings import HostSettings
from tenantry.tenants.catalogue import load_tenant

KILL_AT_STEP = """\
import importlib, os, signal, sys
from tenantry.moves import steps
place = sys.argv.pop(1)
number = int(place) if place.lstrip("-").isdigit() else -1
def kill_after(place):
    module_name, names = place.split(":")
    class_name, name = names.split(".")
    owner = getattr(importlib.import_module(f"tenantry.{module_name}"), class_name)
    method = getattr(owner, name)
    def run_and_end(*arguments):
        method(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)
    setattr(owner, name, run_and_end)
if ":" in place:
    kill_after(place)
def run_steps(all_steps, on_progress):
    for step in all_steps:
        global number
        if number == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        number -= 1
        step.run()
    if number == 0:
        os.kill(os.getpid(), signal.SIGKILL)
for name in ("rename", "remove", "replace"):
    module = __import__(f"tenantry.moves.{name}", fromlist=["run_steps"])
    module.run_steps = run_steps
from tenantry.cli import main
main()
"""


def write_shop_data(settings: HostSettings) -> None:
    """Give the tenant shop a database, files, an app's own SQLite database, and usage."""
    folder = settings.data_dir / "shop"
    (folder / "notes/2026").mkdir(parents=True)
    (folder / "notes/2026/a.txt").write_text("one")
    for name in ("shop.sqlite3", "cache.db"):
        write_database(folder / name)
    (folder / "shop.sqlite3.made").write_text("made")


def write_database(path: Path, value: int = 7) -> None:
    """Write a SQLite database in WAL mode with one row."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE kept (value INTEGER)")
        connection.execute("INSERT INTO kept VALUES (?)", (value,))
        connection.commit()


def rows_of(path: Path) -> list[tuple[object, ...]]:
    """Return the rows of a database from `write_database`, without creating a missing file."""
    uri = f"file:{path}?mode=rw"
    with closing(sqlite3.connect(uri, uri=True)) as connection:
        return connection.execute("SELECT value FROM kept").fetchall()


def is_whole(settings: HostSettings, name: str, prefix: str = "/shop") -> bool:
    """Whether a tenant file is valid, and all files and rows of the tenant exist."""
    if not (settings.tenants_dir / f"{name}.py").exists():
        return False
    tenant, _ = load_tenant(settings, name)
    folder = settings.data_dir / name
    return (
        tenant.url_prefix == prefix
        and (folder / "notes/2026/a.txt").read_text() == "one"
        and rows_of(folder / "cache.db") == rows_of(folder / f"{name}.sqlite3") == [(7,)]
    )


def is_capsule_whole(path: Path) -> bool:
    """Whether a capsule has the rows and files of the tenant shop."""
    capsule = read_capsule(path, lambda *_: None)
    return (capsule.metadata.tenant, capsule.summary.files) == ("shop", 2)


def run_command(
    settings: HostSettings, *words: str, kill_at: int | str | None = None
) -> tuple[int, str]:
    """Run a command, and kill it before the step with a number, or after a method."""
    script = [sys.executable, "-c", KILL_AT_STEP, str(-1 if kill_at is None else kill_at)]
    ended = subprocess.run(
        [*script, *words],
        cwd=settings.data_dir.parent,
        env=environment(settings) | {"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    return ended.returncode, ended.stdout + ended.stderr


def was_killed(code: int) -> bool:
    """Whether SIGKILL ended a command."""
    return code == -signal.SIGKILL


def left_in(folder: Path) -> list[str]:
    """Return the names of the entries of a folder, except the usage and the marker of states."""
    ignored = {".usage", ".operator_state", ".moving", ".capsules"}
    return sorted({path.name for path in folder.iterdir()} - ignored)
