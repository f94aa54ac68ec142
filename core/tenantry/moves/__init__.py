"""Renames, removes and replaces tenants while the host serves.

The commands `rename`, `remove` and `restore --replace` call this package, which may import
`capsules` and all lower packages.

A move is a list of steps. While the steps run, the tenant answers 503. One step is the commit: a
move that is killed before its commit leaves the tenant unchanged. After any kill, the same command
completes the move. The journal in `<data>/.moving` records unfinished moves.
"""

from tenantry.moves.journal import Move, MoveJournal, unfinished_moves
from tenantry.moves.remove import Removal, RemovedTenant, remove_tenant
from tenantry.moves.rename import RenamedTenant, rename_tenant
from tenantry.moves.replace import Replacement
from tenantry.moves.steps import MoveStep, run_steps

__all__ = [
    "Move",
    "MoveJournal",
    "MoveStep",
    "Removal",
    "RemovedTenant",
    "RenamedTenant",
    "Replacement",
    "remove_tenant",
    "rename_tenant",
    "run_steps",
    "unfinished_moves",
]
