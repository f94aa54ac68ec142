"""Prevents tracebacks when commands write to a terminal, a file or a pipe.

`open_terminal` prepares the output once, before the command runs. `end_quietly` ends a command if
the program that reads the output has ended.
"""

import os
import signal
import sys
from io import TextIOWrapper
from typing import NoReturn


def open_terminal() -> None:
    """Replace characters that the terminal's encoding lacks with `?` or an escape.

    Without the replacement, a command fails if a tenant's display name contains a character that
    the terminal's encoding lacks (`LC_ALL=C`, `PYTHONIOENCODING=ascii`).
    """
    for stream, replacement in ((sys.stdout, "replace"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors=replacement)


def end_quietly() -> NoReturn:
    """End the command if no program reads its output any more, as in `tenantry list | head -1`.

    The exit code is the same as for a program that SIGPIPE ends.
    """
    discard_output()
    sys.exit(128 + signal.SIGPIPE)


def discard_output() -> None:
    """Discard what is not written yet, because Python flushes stdout once more when it exits."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
