"""The module search path of the processes that Tenantry starts.

A project folder often holds modules with common names, such as `config.py`, `rich.py` or
`sitecustomize.py`. A module of a project folder must not hide a library, and must not run just
because Tenantry starts in that folder. The current folder therefore comes last on `sys.path`, where
Python still finds a tenant's endpoints. The process that runs tenant files does not search the
current folder at all.
"""

import os
import signal
import sys
import sysconfig
from pathlib import Path

_SET_PATH = "import sys; sys.path[:] = sys.argv.pop(1).splitlines()"


def search_current_folder_last() -> None:
    """Make the current folder the last entry of `sys.path`."""
    here = [entry for entry in sys.path if _is_current_folder(entry)]
    current = _current_folder()
    added = here or ([current] if current else [])
    sys.path[:] = [entry for entry in sys.path if entry not in here] + added


def library_path() -> list[str]:
    """Return `sys.path` without the current folder, unless `PYTHONPATH` includes that folder."""
    named = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    is_named = any(_is_current_folder(entry) for entry in named if entry)
    return [entry for entry in sys.path if is_named or not _is_current_folder(entry)]


def python_command(code: str, *arguments: str) -> list[str]:
    """Return the command that runs `code` in a new Python process, with this process's `sys.path`.

    The command does not set `PYTHONPATH`, because Python would run a `sitecustomize.py` from any
    folder in `PYTHONPATH`.
    """
    path = "\n".join(entry or _current_folder() for entry in sys.path)
    # `-P` keeps Python from putting the current folder first on `sys.path`.
    return [python_executable(), "-P", "-c", f"{_SET_PATH}; {code}", path, *arguments]


def python_executable() -> str:
    """Return the path of the Python interpreter, which differs from `sys.executable` in uWSGI."""
    if Path(sys.executable).name.startswith("python"):
        return sys.executable
    return str(Path(sysconfig.get_path("scripts"), "python3"))


def describe_exit(code: int) -> str:
    """Return how a process ended: `SIGKILL`, or `exit code 3`."""
    if code >= 0:
        return f"exit code {code}"
    is_named = -code in {*signal.Signals}
    return signal.Signals(-code).name if is_named else f"signal {-code}"


def _is_current_folder(entry: str) -> bool:
    current = _current_folder()
    return bool(current) and os.path.realpath(entry or current) == current


def _current_folder() -> str:
    """Return the path of the current folder; empty if the current folder has been deleted."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return ""
