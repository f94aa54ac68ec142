"""Prints the path of the newest Python on this machine, unless the running Python is the newest."""

import os
import re
import subprocess
import sys
from pathlib import Path

_NAME = re.compile(r"python3\.(\d+)")


def main() -> None:
    """Search the folders of `PATH` and the folders of pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    folders = [*map(Path, os.get_exec_path()), *pyenv.glob("versions/*/bin")]
    found = {
        (int(match[1]), str(path))
        for folder in folders
        if folder.is_dir()
        for path in folder.iterdir()
        if (match := _NAME.fullmatch(path.name)) and int(match[1]) > sys.version_info.minor
    }
    for _, path in sorted(found, reverse=True):
        # A shim of pyenv exists even for a version that is not selected.
        run = subprocess.run([path, "-c", ""], capture_output=True, check=False)  # noqa: S603 - from PATH
        if run.returncode == 0:
            print(path)
            return


if __name__ == "__main__":
    main()
