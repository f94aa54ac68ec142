"""File events in the tenants folder, which cause the follower to scan the folder."""

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

import watchfiles

STEP_MS = 20
"""Milliseconds without an event after which a batch ends, so that one `cp` causes one batch."""

BATCH_MS = 100
"""Maximum duration of a batch of events, in milliseconds."""

FOLDER_CHECK_MS = 1000
"""Milliseconds between two checks that the path still leads to the watched folder. The kernel sends
no event if the folder was replaced, or if a link to the folder has changed."""

RETRY_S = 1.0
"""Seconds between two attempts to watch a missing folder."""

LOCAL_FILE_SYSTEMS = frozenset(
    {"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "tmpfs", "overlay"}
)
"""Types of file systems whose every change the kernel reports, because no other machine writes to
them."""

_logger = logging.getLogger(__name__)


def watch_folder(
    folder: Path,
    stopping: threading.Event,
    notify: Callable[[], None],
    set_reliable: Callable[[bool], None] = lambda _: None,
) -> None:
    """Watch `folder` until `stopping` is set, even while the folder is missing.

    If there are no events (on a network file system, or without a free inotify watch), the follower
    finds changes by polling the folder.

    Args:
        folder: the tenants folder.
        stopping: ends the watch.
        notify: called after each batch of changes.
        set_reliable: called with True once every change causes an event, and with False if events
            can be missed.
    """
    # By default, watchfiles logs every batch of changes.
    logging.getLogger("watchfiles").setLevel(logging.WARNING)
    is_logged = False
    while not stopping.is_set():
        try:
            _watch_one_folder(folder, stopping, notify, set_reliable)
        except Exception as error:  # noqa: BLE001 - the follower polls the folder instead
            if not is_logged:
                facts = {"folder": str(folder), "reason": str(error)}
                _logger.warning("tenants_folder.not_watched", extra=facts)
            is_logged = True
            stopping.wait(RETRY_S)
        set_reliable(False)
        notify()


def _watch_one_folder(
    folder: Path,
    stopping: threading.Event,
    notify: Callable[[], None],
    set_reliable: Callable[[bool], None],
) -> None:
    """Watch `folder` until `stopping` is set or the path leads to another folder."""
    watched = _identity(folder)
    is_reliable = False
    for changes in watchfiles.watch(
        folder,
        watch_filter=None,
        stop_event=stopping,
        step=STEP_MS,
        debounce=BATCH_MS,
        rust_timeout=FOLDER_CHECK_MS,
        yield_on_timeout=True,
        recursive=False,
        raise_interrupt=False,
    ):
        if changes:
            notify()
        if _identity(folder) != watched:
            return
        # The first batch shows that the watch is set up.
        if not is_reliable and are_events_reliable(folder):
            is_reliable = True
            set_reliable(True)


def are_events_reliable(folder: Path, mount_table: Path = Path("/proc/self/mountinfo")) -> bool:
    """Whether the kernel is expected to report every change to a file in `folder`.

    The kernel can miss a change if the file system is not local, or if another file system is
    mounted inside the folder.
    """
    device, _ = _identity(folder)
    real_path = os.path.realpath(folder)
    file_system = ""
    try:
        lines = mount_table.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:  # the system is not Linux
        return False
    for line in lines:  # proc_pid_mountinfo(5): id parent device root mount-point … - type source …
        left, _, right = line.partition(" - ")
        _, _, mounted_device, _, mount_point, *_ = left.split()
        if mount_point.startswith(f"{real_path}/"):
            return False
        if mounted_device == f"{os.major(device)}:{os.minor(device)}":
            file_system = right.split()[0]
    return file_system in LOCAL_FILE_SYSTEMS


def _identity(folder: Path) -> tuple[int, int]:
    """Return the device and inode of a folder, which change if the folder is replaced.

    Raises:
        OSError: the folder does not exist.
    """
    info = folder.stat()
    return info.st_dev, info.st_ino
