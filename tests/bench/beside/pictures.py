"""The pictures of the README: bar charts as SVG, without fonts, scripts or other files."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 760
LABEL_WIDTH = 220
FIGURE_WIDTH = 190
BAR, GAP, GROUP_GAP = 20, 8, 34
TOP = 46

STYLE = """\
text { font: 14px system-ui, sans-serif; fill: #57606a }
.title { font-weight: 600; fill: #24292f }
.own-name { font-weight: 600; fill: #24292f }
.bar { fill: #8c959f }
.own-bar { fill: #2f81f7 }
@media (prefers-color-scheme: dark) {
text { fill: #9198a1 }
.title, .own-name { fill: #f0f6fc }
.bar { fill: #656c76 }
}"""
"""Colors for a light page, and for a dark page if the browser prefers a dark page."""


@dataclass(frozen=True)
class Bar:
    """One side's figure."""

    name: str
    value: float
    text: str


@dataclass(frozen=True)
class Group:
    """Bars on one scale, below a heading; an empty heading takes no space."""

    heading: str
    bars: Sequence[Bar]


def draw(title: str, groups: Sequence[Group], own: str) -> str:
    """Return an SVG with one group of horizontal bars below the other.

    The bar of the side `own` has a color of its own. Each group has its own scale, which begins at
    0, because groups differ by factors of 10.
    """
    parts: list[str] = [_text(0, 20, title, "title")]
    y = TOP
    for group in groups:
        if group.heading:
            parts.append(_text(0, y + 14, group.heading, "title"))
            y += BAR + GAP
        longest = max(bar.value for bar in group.bars)
        for bar in group.bars:
            parts += _bar(bar, y, longest, is_own=bar.name == own)
            y += BAR + GAP
        y += GROUP_GAP - GAP
    height = y - GROUP_GAP + GAP
    description = "; ".join(
        f"{group.heading + ': ' if group.heading else ''}"
        + ", ".join(f"{bar.name} {bar.text}" for bar in group.bars)
        for group in groups
    )
    size = f'viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
            f"<title>{escape(title)}</title>",
            f"<desc>{escape(description)}</desc>",
            f"<style>{STYLE}</style>",
            *parts,
            "</svg>\n",
        ]
    )


def _bar(bar: Bar, y: int, longest: float, *, is_own: bool) -> list[str]:
    prefix = "own-" if is_own else ""
    room = WIDTH - LABEL_WIDTH - FIGURE_WIDTH
    width = max(2.0, room * bar.value / longest)
    place = f'x="{LABEL_WIDTH}" y="{y}" width="{width:.1f}" height="{BAR}"'
    return [
        _text(LABEL_WIDTH - 12, y + 15, bar.name, f"{prefix}name", anchor="end"),
        f'<rect class="{prefix}bar" {place} rx="2"/>',
        _text(LABEL_WIDTH + width + 8, y + 15, bar.text, f"{prefix}name"),
    ]


def _text(x: float, y: int, text: str, css: str, anchor: str = "start") -> str:
    return f'<text class="{css}" x="{x:.1f}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'
