"""The table: for each row each side's figure, the ratio with its spread, and the better side."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Row:
    """One figure that is measured for several sides."""

    title: str
    unit: str
    base: str
    """The side by which the other sides' figures are divided, round by round."""
    is_more_better: bool = False
    is_ratio: bool = True
    """Whether a ratio is meaningful. A number of failures may be 0, so its ratio is not."""


@dataclass
class Table:
    """All figures of a run."""

    reference: str
    """The side with which the other sides are compared."""
    rows: Sequence[Row]
    """All rows in the order of the table. The table leaves out a row without figures."""
    figures: dict[Row, dict[str, list[float]]] = field(default_factory=dict)
    notes: dict[tuple[Row, str], str] = field(default_factory=dict)
    """What a side needs, printed beside its figure."""

    def add(self, row: Row, side: str, figure: float, note: str = "") -> None:
        """Add the figure of a side in one round."""
        self.figures.setdefault(row, {}).setdefault(side, []).append(figure)
        if note:
            self.notes[row, side] = note

    def ratios(self, row: Row, side: str, other: str) -> list[float]:
        """Return the ratio to another side in each round, or an empty list."""
        figures = self.figures.get(row, {}).get(side, [])
        others = self.figures.get(row, {}).get(other, [])
        if len(others) != len(figures) or 0 in others:
            return []
        return [one / another for one, another in zip(figures, others, strict=True)]

    def ratio(self, row: Row, side: str) -> float:
        """Return the median ratio to the base, or `nan`."""
        ratios = self.ratios(row, side, row.base)
        return statistics.median(ratios) if ratios else float("nan")

    def is_better(self, row: Row, side: str) -> bool:
        """Return whether a side is better than the reference in the median of the rounds."""
        sides = self.figures[row]
        if side == self.reference or self.reference not in sides:
            return False
        ratios = self.ratios(row, side, self.reference)
        # without common rounds, or with a figure of 0, only the medians are comparable
        medians = statistics.median(sides[side]), statistics.median(sides[self.reference])
        one, other = (statistics.median(ratios), 1.0) if ratios else medians
        return one > other if row.is_more_better else one < other

    def lines(self) -> Iterator[str]:
        """Return the lines of the table."""
        for row in self._measured():
            heading = f"÷ {row.base} (spread)" if row.is_ratio else ""
            yield f"\n{row.title:<58}{heading}"
            for side in self.figures[row]:
                yield self._line(row, side).rstrip()

    def _measured(self) -> list[Row]:
        return [row for row in self.rows if row in self.figures]

    def _line(self, row: Row, side: str) -> str:
        figure = shown(statistics.median(self.figures[row][side]))
        ratios = self.ratios(row, side, row.base)
        ratio = ""
        if ratios:
            ratio = f"{statistics.median(ratios):6.2f}"
            if min(ratios) < max(ratios):
                ratio += f" ({min(ratios):.2f} to {max(ratios):.2f})"
        note = self.notes.get((row, side), "")
        verdict = f"better than {self.reference}" if self.is_better(row, side) else ""
        text = "; ".join(one for one in (note, verdict) if one)
        return f"  {side:<26}{figure:>10} {row.unit:<6}  {ratio:<26}  {text}"

    def better(self) -> Iterator[str]:
        """Return a line for each row in which a side is better than the reference."""
        for row in self._measured():
            names = [side for side in self.figures[row] if self.is_better(row, side)]
            if names:
                yield f"  {row.title}: {', '.join(names)}"


def shown(figure: float) -> str:
    """Return a figure with three digits, or all digits of a larger figure."""
    digits = 0 if figure >= 100 or figure == int(figure) else 1 if figure >= 10 else 2
    return f"{figure:,.{digits}f}"


def rows_of(counts: Sequence[int], title: str, unit: str, base: str) -> dict[int, Row]:
    """Return a row for each number of tenants."""
    return {count: Row(f"{title}, {count:,} tenants", unit, base) for count in counts}
