"""Signals during commands that write: `backup`, `restore` and `clone`."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import click

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def interrupting_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP interrupt the block as Ctrl-C does, so that the block cleans up.

    The command then exits with 128 plus the signal's number. After `ignore_signals`, the block
    can no longer be interrupted.
    """
    received: list[int] = []
    before = {number: signal.getsignal(number) for number in _STOP_SIGNALS}
    handled = [number for number, handler in before.items() if handler == signal.SIG_DFL]

    def interrupt(number: int, _: object) -> None:
        received.append(number)
        for other in handled:
            signal.signal(other, signal.SIG_IGN)  # a second signal would interrupt the cleanup
        raise KeyboardInterrupt  # database drivers stop waiting when it is raised

    for number in handled:
        signal.signal(number, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        if not received:
            raise
        click.echo("tenantry: ended by a signal.", err=True)
        raise SystemExit(128 + received[0]) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def ignore_signals() -> None:
    """Ignore every signal that `interrupting_signals` handles, because the work is done."""
    for number in _STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
