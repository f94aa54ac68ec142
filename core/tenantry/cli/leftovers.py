"""Reports unfinished moves of tenants, and data without a tenant."""

import click

from tenantry.errors import Problem
from tenantry.moves import unfinished_moves
from tenantry.settings import HostSettings
from tenantry.tenants.file import display_path
from tenantry.tenants.new_file import describe_leftover, find_leftovers


def print_leftovers(settings: HostSettings) -> None:
    """Print one line on stderr for each unfinished move, and for data without a tenant."""
    for _, problem, _ in leftovers(settings):
        click.echo(f"tenantry: {problem}", err=True)


def leftovers(settings: HostSettings) -> list[tuple[str, Problem, bool]]:
    """Return what killed commands and removed tenant files have left.

    Each entry is a tenant's name, a description, and whether the tenant does not serve because of
    it.
    """
    moves = unfinished_moves(settings.data_dir)
    found = [
        (
            name,
            Problem(display_path(settings.tenants_dir / f"{name}.py"), move.explanation),
            move.is_partial,
        )
        for name, move in moves.items()
        if name == move.name
    ]
    moving = {name for move in moves.values() for name in (move.name, move.new)}
    return found + [
        (name, describe_leftover(settings, name), False)
        for name in find_leftovers(settings)
        if name not in moving  # writing the tenant file again would not help
    ]
