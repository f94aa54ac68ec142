"""Suggests an option of `tenantry` to an operator who types an option of another program."""

import click

OTHER_NAMES = {
    "--address": "--bind HOST:PORT",
    "--format": "--json",
    "--host": "--bind HOST:PORT",
    "--output": "--json",
    "--parallel": "--jobs N",
    "--port": "--bind HOST:PORT",
    "--request": "--method M",
    "--body": "--data TEXT",
    "--processes": "--workers N",
    "--watch": "--interval SECONDS",
    "--name": "--tenant NAME",
    "-H": "--header HEADER",
    "-X": "--method M",
    "-b": "--bind HOST:PORT",
    "-d": "--data TEXT",
    "-j": "--jobs N",
    "-o": "--json",
    "-p": "--bind HOST:PORT",
    "-t": "--tenant NAME",
    "-w": "--workers N",
}
"""Maps options of gunicorn, Flask, curl, kubectl and docker to equivalent options of Tenantry."""


def describe_unknown_option(error: click.NoSuchOption) -> str:
    """Describe an unknown option, with the option that the operator may mean."""
    command = None if error.ctx is None else error.ctx.command
    known = {option for parameter in getattr(command, "params", ()) for option in parameter.opts}
    other = OTHER_NAMES.get(error.option_name, "")
    if other.partition(" ")[0] in known:
        return f"no option {error.option_name!r}; use {other}."
    if error.possibilities:
        near = " or ".join(repr(option) for option in error.possibilities[:2])
        return f"no option {error.option_name!r}; did you mean {near}?"
    path = "tenantry" if error.ctx is None else error.ctx.command_path
    return f"no option {error.option_name!r}; see: {path} --help."
