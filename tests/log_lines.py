"""Collects log lines in a list instead of writing the lines to stderr."""

from tenantry.observability.log_writer import LogWriter


class CollectedLines(LogWriter):
    """A log writer that appends each line to the list `lines`."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__(fd=-1)
        self._lines = lines

    def _write(self, batch: list[bytes]) -> None:
        self._lines += [line.decode() for line in batch]
