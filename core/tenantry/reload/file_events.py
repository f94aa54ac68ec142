"""File events of the tenants folder. They only say when to look; what counts is the content."""

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

import watchfiles

STEP_MS = 20
"""Quiet that ends a batch of events: one `cp` is one batch."""

BATCH_MS = 100
"""A batch ends after this at the latest, however many events come."""

LOOK_MS = 1000
"""How often it sees to it that the watched folder is still the one at this path: a folder that was
replaced, or a link that was turned, tells nothing."""

RETRY_S = 1.0
"""Pause before a folder that is not there is asked for again; the poll sees it as soon."""

_logger = logging.getLogger(__name__)


LOCAL = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "tmpfs", "overlay"})
"""File systems that only this machine's kernel writes to, which tells of every change."""


def watch_folder(
    folder: Path,
    stopping: threading.Event,
    notify: Callable[[], None],
    trust: Callable[[bool], None] = lambda _: None,
) -> None:
    """Call `notify` after each change in `folder`, until `stopping`; survives its absence.

    Where events do not come (network file systems) or cannot be had (out of inotify watches), it
    does nothing: whoever follows the folder polls it too. `trust` is told whether events come for
    every change from now on.
    """
    logging.getLogger("watchfiles").setLevel(logging.WARNING)  # it logs each batch of changes
    is_told = False
    while not stopping.is_set():
        try:
            watched = _identity(folder)
            is_sure = False
            for changes in watchfiles.watch(
                folder,
                watch_filter=None,
                stop_event=stopping,
                step=STEP_MS,
                debounce=BATCH_MS,
                rust_timeout=LOOK_MS,
                yield_on_timeout=True,
                recursive=False,
                raise_interrupt=False,
            ):
                if changes:
                    notify()
                if _identity(folder) != watched:
                    break
                if not is_sure and are_events_sure(folder):  # now that the watch is there
                    is_sure = True
                    trust(is_sure)
        except Exception as error:  # noqa: BLE001 - the poll goes on without events
            if not is_told:
                facts = {"folder": str(folder), "reason": str(error)}
                _logger.warning("tenants_folder.not_watched", extra=facts)
            is_told = True
            stopping.wait(RETRY_S)
        trust(False)
        notify()


def are_events_sure(folder: Path, mount_table: Path = Path("/proc/self/mountinfo")) -> bool:
    """Whether the kernel tells of every change to a file of `folder`, as far as is known.

    Not for a network's or a foreign file system, nor when a file of it is mounted by itself.
    """
    device, _ = _identity(folder)
    real = os.path.realpath(folder)
    kind = ""
    try:
        lines = mount_table.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:  # no Linux
        return False
    for line in lines:  # proc_pid_mountinfo(5): id parent device root place … - type source …
        mine, _, theirs = line.partition(" - ")
        _, _, numbers, _, place, *_ = mine.split()
        if place.startswith(f"{real}/"):
            return False
        if numbers == f"{os.major(device)}:{os.minor(device)}":
            kind = theirs.split()[0]
    return kind in LOCAL


def _identity(folder: Path) -> tuple[int, int]:
    """Return what tells the folder at a path from another one that takes its place.

    Raises:
        OSError: there is none.
    """
    info = folder.stat()
    return info.st_dev, info.st_ino
