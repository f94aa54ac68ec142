"""Defines the command line `tenantry`, with one module for each command.

The console script `tenantry` calls `main`. A command parses its options, calls functions of other
packages, and prints the data that the functions return. This package may import every other
package, but no other package may import this package. Importing gunicorn, Flask and SQLAlchemy
takes 0.5 s, so `main` imports only the module of the called command.
"""

import difflib
import errno
import signal
import sys
from importlib import import_module
from typing import Any

import click

from tenantry.cli.hints import describe_unknown_option
from tenantry.cli.later import reject_later
from tenantry.cli.output import examples
from tenantry.cli.terminal import discard_output, end_quietly, open_terminal
from tenantry.errors import TenantryError, UnknownTenantError
from tenantry.files.permissions import create_private_files
from tenantry.python_process import leave_out_current_folder
from tenantry.settings import SettingsError
from tenantry.tenants.secrets import SecretError

COMMANDS = (
    "adopt", "audit", "backup", "check", "clone", "db", "disable", "enable", "endpoint", "get",
    "key", "list", "maintenance", "new", "plan", "remove", "rename", "restart", "restore", "routes",
    "run", "secret", "serve", "show", "top", "usage",
)  # fmt: skip
"""Names of all commands.

Each command has a module of the same name, which defines the click command as `command`.
"""

PROBLEM_FOUND = 1
"""Exit code of a command that found a problem."""

_OUTPUT_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
"""Errors of a write to the file that the shell has opened for the output."""

MISUSE = 2
"""Exit code of a command with wrong arguments or settings."""

INTERRUPTED = 128 + signal.SIGINT
"""Exit code of a command that Ctrl-C ended. Shells use the same exit code."""


class LazyGroup(click.Group):
    """A click group that imports the module of a command when the command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        del ctx
        return [*COMMANDS]  # the name `list` can mean the submodule `cli.list`

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the called command, or reject a command of a later version."""
        reject_later(args)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the called command. If no program reads its output any more, end without an error.

        Raises:
            TenantryError: the output cannot be written, for example because the disk is full.
        """
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            end_quietly()
        except OSError as error:
            if error.errno not in _OUTPUT_ERRORS or error.filename is not None:
                raise
            discard_output()
            raise TenantryError(f"cannot write the output: {error.strerror}.") from error
        return result

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        """Import and return the click command named `cmd_name`."""
        if cmd_name not in COMMANDS:
            near = difflib.get_close_matches(cmd_name, COMMANDS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "see: tenantry --help."
            ctx.fail(f"no command {cmd_name!r}; {hint}")
        command: click.Command = import_module(f"{__name__}.{cmd_name}").command
        return command


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
    epilog=examples("tenantry new shop", "tenantry serve"),
)
@click.version_option(None, "-V", "--version", package_name="tenantry")
def tenantry() -> None:
    """Serve many isolated Flask apps, one per client group, from one gunicorn.

    Settings are environment variables, such as TENANTRY_TENANTS_DIR (default: ./tenants) and
    TENANTRY_DATA_DIR (default: ./instance). The exit code is 0 for success, 1 for a problem, and 2
    for wrong usage.
    """


def main() -> None:
    """Run the command line. An error that the operator can fix is printed without a traceback."""
    leave_out_current_folder()
    create_private_files()
    open_terminal()
    try:
        sys.exit(tenantry.main(prog_name="tenantry", standalone_mode=False))
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        sys.exit(MISUSE)
    except click.NoSuchOption as error:
        _fail(describe_unknown_option(error), MISUSE)
    except click.ClickException as error:
        _fail(" ".join(error.format_message().split()), error.exit_code)
    except (UnknownTenantError, SettingsError) as error:
        _fail(str(error), MISUSE)
    except (TenantryError, SecretError) as error:
        _fail(str(error), PROBLEM_FOUND)
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted.", INTERRUPTED)


def _fail(text: str, code: int) -> None:
    for line in text.splitlines():
        click.echo(f"tenantry: {line}", err=True)
    sys.exit(code)
