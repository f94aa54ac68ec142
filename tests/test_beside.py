"""The benchmark `tests/bench/beside` makes a correct table and pictures."""

from xml.etree import ElementTree as ET

from bench.beside.pictures import Bar, Group, draw
from bench.beside.table import Row, Table

COST = Row("processor time", "µs", "gthread")
RATE = Row("throughput", "/s", "gthread", is_more_better=True)
SVG = "{http://www.w3.org/2000/svg}"


def _table(**costs: list[float]) -> Table:
    table = Table("Tenantry", (COST, RATE))
    for side, figures in costs.items():
        for figure in figures:
            table.add(COST, side, figure)
    return table


def test_a_picture_has_the_name_and_the_figure_of_each_side() -> None:
    """The SVG of a benchmark is well-formed, and shows the name and the figure of each server."""
    bars = [Bar("Tenantry", 30.5, "30.5 MiB"), Bar("gunicorn <per tenant> & nginx", 610, "610 MiB")]

    root = ET.fromstring(draw("Memory", [Group("10 tenants", bars)], "Tenantry"))

    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert f"{SVG}svg" == root.tag
    assert ["Memory", "10 tenants"] == texts[:2]
    assert [text for bar in bars for text in (bar.name, bar.text)] == texts[2:]


def test_the_lengths_of_bars_are_in_the_ratio_of_the_figures() -> None:
    """In the SVG of a benchmark, a bar with twice the figure is twice as long."""
    bars = [Bar("Tenantry", 20, "20"), Bar("granian", 10, "10")]

    root = ET.fromstring(draw("Time", [Group("", bars)], "Tenantry"))

    long, short = (float(bar.attrib["width"]) for bar in root.iter(f"{SVG}rect"))
    assert 2 == long / short


def test_a_picture_needs_no_other_file() -> None:
    """The SVG of a benchmark contains no link, no image, no script and no font file."""
    text = draw("Time", [Group("", [Bar("Tenantry", 20, "20")])], "Tenantry")

    assert not [word for word in ("href", "url(", "<script", "<image", "@import") if word in text]


def test_a_ratio_is_the_median_of_the_rounds_with_the_spread() -> None:
    """The table of a benchmark shows the median ratio of all rounds, and the range of ratios."""
    table = _table(gthread=[100, 200, 100], Tenantry=[50, 120, 70])

    (line,) = [line for line in table.lines() if "Tenantry" in line]

    assert "0.60 (0.50 to 0.70)" in line


def test_the_table_says_that_a_side_is_better() -> None:
    """The table of a benchmark says which servers take less processor time than Tenantry."""
    table = _table(gthread=[100], granian=[40], Tenantry=[60])

    lines = list(table.lines())

    assert ["granian"] == [line.split()[0] for line in lines if "better than Tenantry" in line]
    assert ["  processor time: granian"] == list(table.better())


def test_sides_are_compared_round_by_round() -> None:
    """A server that is better in most rounds of a benchmark is better, whatever its median is."""
    table = _table(granian=[10, 50, 90], Tenantry=[20, 40, 100])

    assert ["  processor time: granian"] == list(table.better())


def test_more_throughput_is_better() -> None:
    """In a benchmark of throughput, the server with the higher figure is better."""
    table = _table()
    for side, figure in {"granian": 9000, "waitress": 2000, "Tenantry": 3000}.items():
        table.add(RATE, side, figure)

    assert ["  throughput: granian"] == list(table.better())


def test_a_side_that_a_round_left_out_has_no_ratio() -> None:
    """Without a figure of the server to compare with, the table of a benchmark shows no ratio."""
    table = _table(Tenantry=[60])

    (line,) = [line for line in table.lines() if "Tenantry" in line]

    assert ["Tenantry", "60", "µs"] == line.split()
