"""Lets commands write to any terminal, file or pipe without a traceback.

`open_terminal` prepares the output once, before the command runs. `end_quietly` ends a command
whose reader has gone.
"""

import os
import signal
import sys
from io import TextIOWrapper
from typing import NoReturn


def open_terminal() -> None:
    """Replace characters that the terminal's encoding lacks with `?` or an escape.

    Without the replacement, a tenant's display name could end a command in a terminal of another
    encoding (`LC_ALL=C`, `PYTHONIOENCODING=ascii`).
    """
    for stream, replacement in ((sys.stdout, "replace"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors=replacement)


def end_quietly() -> NoReturn:
    """End the command after its reader has gone, as in `tenantry list | head -1`.

    The exit code is the code of a program that SIGPIPE ends.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())  # Python flushes stdout once more when it exits
    os.close(nowhere)
    sys.exit(128 + signal.SIGPIPE)
