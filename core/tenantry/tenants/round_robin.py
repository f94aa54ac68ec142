"""Round robin: spreads a scan of many tenants over several short scans."""

import math
from collections.abc import Collection


class RoundRobin:
    """Takes many names in turns, so that one scan of 10,000 tenants is short. Not thread-safe."""

    def __init__(self) -> None:
        self._left: list[str] = []

    def take(self, names: Collection[str], share: float) -> list[str]:
        """Return the next `share` (0 to 1) of `names`.

        Once the shares add up to 1, every name was returned. A new name waits for the next round,
        and a removed name is left out.
        """
        if share >= 1:
            self._left = []
            return list(names)
        count = math.ceil(share * len(names))
        if not self._left:
            self._left = list(names)
        taken, self._left = self._left[-count:], self._left[:-count]
        return [name for name in taken if name in names]
