"""The command `tenantry`: one small file per command. Methods return data, commands print."""

import difflib
import sys
from importlib import import_module

import click

from tenantry.errors import TenantryError, UnknownTenantError
from tenantry.python_process import search_current_folder_last
from tenantry.settings import SettingsError
from tenantry.tenants.secrets import SecretError

COMMANDS = (
    "audit", "backup", "check", "clone", "db", "disable", "enable", "get", "key", "list",
    "maintenance", "new", "plan", "restart", "restore", "routes", "run", "serve", "show",
    "top", "usage",
)  # fmt: skip
"""Each is a function of its own name (`list_` for `list`) in a module of that name."""

PROBLEM_FOUND = 1
MISUSE = 2


class Commands(click.Group):
    """Imports a command when it is called: `tenantry new` does not wait for gunicorn."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        del ctx
        return [*COMMANDS]  # `list` is a module here, once it is imported

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command; None if there is none of that name."""
        if cmd_name not in COMMANDS:
            if near := difflib.get_close_matches(cmd_name, COMMANDS, n=1):
                ctx.fail(f"no command {cmd_name!r}; did you mean {near[0]!r}?")
            return None
        command: click.Command = import_module(f"{__name__}.{cmd_name}").command
        return command


@click.group(cls=Commands)
@click.version_option(package_name="tenantry")
def tenantry() -> None:
    """Many isolated Flask apps, one per client group, in one gunicorn."""


def main() -> None:
    """Run the command line. Errors that an operator can cause are one line on stderr."""
    search_current_folder_last()
    try:
        sys.exit(tenantry.main(standalone_mode=False))
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        sys.exit(MISUSE)
    except click.ClickException as error:
        _fail(" ".join(error.format_message().split()), error.exit_code)
    except (UnknownTenantError, SettingsError) as error:
        _fail(str(error), MISUSE)
    except (TenantryError, SecretError) as error:
        _fail(str(error), PROBLEM_FOUND)
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted.", PROBLEM_FOUND)


def _fail(text: str, code: int) -> None:
    for line in text.splitlines():
        click.echo(f"tenantry: {line}", err=True)
    sys.exit(code)
