"""The module search path of the processes that Tenantry starts.

A project folder often holds modules with common names, such as `config.py`, `rich.py` or
`sitecustomize.py`. Such a module must not hide a library, and must not run just because Tenantry
starts in that folder: many libraries import an optional library such as rich if they find it.
Therefore, the current folder is not on `sys.path`. A tenant's code finds the modules of its
`APP_DIR` there (`private_code`).
"""

import os
import signal
import sys
import sysconfig
from pathlib import Path

_SET_PATH = "import sys; sys.path[:] = sys.argv.pop(1).splitlines()"


def leave_out_current_folder() -> None:
    """Remove the current folder from `sys.path`. Idempotent.

    If `PYTHONPATH` names the current folder, the folder becomes the last entry instead.
    """
    here = [entry for entry in sys.path if _is_current_folder(entry)]
    kept = here[:1] if _is_in_python_path() else []
    sys.path[:] = [entry for entry in sys.path if entry not in here] + kept


def library_path() -> list[str]:
    """Return `sys.path` without the current folder, unless `PYTHONPATH` includes that folder."""
    is_named = _is_in_python_path()
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


def _is_in_python_path() -> bool:
    named = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return any(_is_current_folder(entry) for entry in named if entry)


def _is_current_folder(entry: str) -> bool:
    current = _current_folder()
    return bool(current) and os.path.realpath(entry or current) == current


def _current_folder() -> str:
    """Return the path of the current folder; empty if the current folder has been deleted."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return ""
