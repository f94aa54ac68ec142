"""Makes the commands `backup`, `restore` and `clone` clean up when a signal ends them."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import click

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def interrupting_signals() -> Iterator[None]:
    """Make SIGTERM and SIGHUP raise `KeyboardInterrupt` during the `with` block, like Ctrl-C.

    The exception makes the `with` block clean up. After the cleanup, the command exits with code
    128 plus the number of the signal. After a call of `ignore_signals`, no signal interrupts the
    command.
    """
    received: list[int] = []
    before = {number: signal.getsignal(number) for number in _STOP_SIGNALS}
    handled = [number for number, handler in before.items() if handler == signal.SIG_DFL]

    def interrupt(number: int, _: object) -> None:
        received.append(number)
        for other in handled:
            signal.signal(other, signal.SIG_IGN)  # a second signal must not interrupt the cleanup
        raise KeyboardInterrupt  # makes database drivers stop waiting

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
    """Ignore SIGINT, SIGTERM and SIGHUP from now on, so that no partial tenant remains."""
    for number in _STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
