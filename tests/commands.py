"""Helps tests run `tenantry` commands in the test process."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from tenantry.cli import main


@dataclass(frozen=True)
class Result:
    """The exit code and the output of a `tenantry` command."""

    code: int
    out: str
    err: str


Tenantry = Callable[..., Result]
"""Runs a command: `tenantry("list", "--json")`."""


@contextmanager
def command_runner(capfd: pytest.CaptureFixture[str]) -> Iterator[Tenantry]:
    """Yield a function that runs a command. Restore logging and `sys.path` after the block."""
    root = logging.getLogger()
    before = list(root.handlers), root.level

    def run(*words: str) -> Result:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["tenantry", *words])
            patch.setattr(sys, "path", list(sys.path))
            with pytest.raises(SystemExit) as ended:
                main()
        out, err = capfd.readouterr()
        return Result(int(ended.value.code or 0), out, err)

    yield run
    root.handlers[:], level = before
    root.setLevel(level)
