"""Round robin: spreads a look at many tenants over several short looks."""

import math
from collections.abc import Collection


class RoundRobin:
    """Takes many names in turns: a look at 10,000 tenants stays short. Use it from one thread."""

    def __init__(self) -> None:
        self._left: list[str] = []

    def take(self, names: Collection[str], share: float) -> list[str]:
        """Return the next `share` (0 to 1) of `names`.

        Every name has had its turn once the shares add up to 1. A new name waits for the next
        round, and a name that is gone is left out.
        """
        if share >= 1:
            self._left = []
            return list(names)
        count = math.ceil(share * len(names))
        if not self._left:
            self._left = list(names)
        taken, self._left = self._left[-count:], self._left[:-count]
        return [name for name in taken if name in names]
