"""A share of many names at a time, each in its turn: so that a look at 10,000 never takes long."""

import math
from collections.abc import Collection


class RoundRobin:
    """Goes round and round over names. For one thread."""

    def __init__(self) -> None:
        self._left: list[str] = []

    def take(self, names: Collection[str], share: float) -> list[str]:
        """Return the next `share` (0 to 1) of `names`; never one that is gone from them.

        All have had their turn once the shares amount to 1; a new name comes in the next round.
        """
        if share >= 1:
            self._left = []
            return list(names)
        count = math.ceil(share * len(names))
        if not self._left:
            self._left = list(names)
        taken, self._left = self._left[-count:], self._left[:-count]
        return [name for name in taken if name in names]
