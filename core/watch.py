"""File events of the tenants folder. They only say when to look; what counts is the content."""

import logging
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


def watch_folder(folder: Path, stopping: threading.Event, notify: Callable[[], None]) -> None:
    """Call `notify` after each change in `folder`, until `stopping`; survives its absence.

    Where events do not come (network file systems) or cannot be had (out of inotify watches), it
    does nothing: whoever follows the folder polls it too.
    """
    logging.getLogger("watchfiles").setLevel(logging.WARNING)  # it logs each batch of changes
    is_told = False
    while not stopping.is_set():
        try:
            watched = _identity(folder)
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
        except Exception as error:  # noqa: BLE001 - the poll goes on without events
            if not is_told:
                facts = {"folder": str(folder), "reason": str(error)}
                _logger.warning("tenants_folder.not_watched", extra=facts)
            is_told = True
            stopping.wait(RETRY_S)
        notify()


def _identity(folder: Path) -> tuple[int, int]:
    """Return what tells the folder at a path from another one that takes its place.

    Raises:
        OSError: there is none.
    """
    info = folder.stat()
    return info.st_dev, info.st_ino
