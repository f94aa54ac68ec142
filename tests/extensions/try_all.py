"""Tries thirty Flask extensions with two tenants, each in an environment of its own.

Run `python tests/extensions/try_all.py [NAME…]`. Each environment begins with the packages of the
current one, and pip installs what is missing. For each extension, the command prints the installed
version and what went wrong. The exit code is 1 if anything did.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from tempfile import TemporaryDirectory

from extension_cases import CASES

HERE = Path(__file__).parent
TIMEOUT_S = 300.0


def try_in_environment(name: str, folder: Path) -> tuple[str, list[str]]:
    """Install an extension in a new environment. Return its version and what went wrong."""
    venv.create(folder, with_pip=False)
    python = str(folder / "bin/python")
    packages = Path(sysconfig.get_path("purelib"))
    target = folder / packages.relative_to(sys.prefix)
    shutil.copytree(packages, target, copy_function=_link, dirs_exist_ok=True)
    command = [sys.executable, "-m", "pip", "--python", python, "install", "-q"]
    _run([*command, "--disable-pip-version-check", name, *CASES[name].installs])
    look_up = f"from importlib.metadata import version; print(version({name!r}))"
    result = _run([python, str(HERE / "extension_trial.py"), name])
    problems: list[str] = json.loads(result.splitlines()[-1])
    return _run([python, "-c", look_up]).strip(), problems


def _link(source: str, target: str) -> None:
    """Link a file, which takes no space, or copy it to another file system."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _run(command: list[str]) -> str:
    path = os.pathsep.join([str(HERE.parents[1] / "core"), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        env=os.environ | {"PYTHONPATH": path},
        check=False,
    )
    if run.returncode:
        raise RuntimeError(run.stderr.strip().rpartition("\n")[2])
    return run.stdout


def main() -> int:
    """Try the extensions that the command names, or all, and print a table."""
    failures = 0
    for name in sys.argv[1:] or CASES:
        with TemporaryDirectory() as folder:
            try:
                version, problems = try_in_environment(name, Path(folder))
            except (RuntimeError, subprocess.TimeoutExpired, ValueError) as error:
                version, problems = "", [str(error)]
        failures += bool(problems)
        print(f"{name:26}{version:12}{'; '.join(problems) or 'ok'}", flush=True)
    return min(failures, 1)


if __name__ == "__main__":
    sys.exit(main())
