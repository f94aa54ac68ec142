"""Rejects commands and options that are planned for a later version of Tenantry."""

from collections.abc import Sequence

import click

LATER = {
    "backup": ("--all", "--keep"),
    "domains": (),
    "hosts": (),
    "proxy": (),
    "query": (),
    "restart": ("--all-hosts",),
    "restore": ("--verify",),
    "run": ("--all",),
    "storage": (),
}
"""Maps each command to its options, arguments and subcommands that do not exist yet.

An empty tuple means that the whole command does not exist yet.
"""


def reject_later(words: Sequence[str]) -> None:
    """Reject a command line with a command or an option of a later version.

    Words after `--` are not checked.

    Raises:
        click.UsageError: The command line contains a command or an option of a later version.
    """
    command, *rest = words
    if command not in LATER:
        return
    own = rest[: rest.index("--")] if "--" in rest else rest
    options = {word.partition("=")[0] for word in own if word.startswith("-")} | {*own[:1]}
    later = LATER[command]
    if later and not options.intersection(later):
        return
    found = " ".join([command, *(word for word in later if word in options)])
    raise click.UsageError(
        f"{found!r} comes with a later version of Tenantry; see: tenantry --help."
    )
