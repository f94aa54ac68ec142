"""Spreads a scan of many tenants over several short scans, by round robin."""

import math
from collections.abc import Collection


class RoundRobin:
    """Returns a part of many names at each call, so that each scan is short. Not thread-safe."""

    def __init__(self) -> None:
        self._left: list[str] = []

    def take(self, names: Collection[str], share: float) -> list[str]:
        """Return the next part of `names`. The argument `share` is the size of the part (0 to 1).

        When the shares of several calls add up to 1, every name has been returned. A name that is
        added during a round waits for the next round.
        """
        if share >= 1:
            self._left = []
            return list(names)
        count = math.ceil(share * len(names))
        if not self._left:
            self._left = list(names)
        taken, self._left = self._left[-count:], self._left[:-count]
        return [name for name in taken if name in names]
