"""Charts put points where their axes say, and text never becomes markup."""

from __future__ import annotations

from xml.etree import ElementTree

from training.charts import HEIGHT, WIDTH, Axis, Line, chart

UNIT = Axis("coverage", 0.0, 1.0)


def drawn(*lines: Line, y: Axis = UNIT) -> ElementTree.Element:
    return ElementTree.fromstring(chart(lines, UNIT, y))


def points(svg: ElementTree.Element) -> list[tuple[float, float]]:
    [line] = svg.findall("polyline")
    pairs = (pair.split(",") for pair in line.attrib["points"].split())
    return [(float(x), float(y)) for x, y in pairs]


def test_corners_and_middle() -> None:
    low, middle, high = points(drawn(Line("a", "found", [(0, 0), (0.5, 0.5), (1, 1)])))
    assert 0 < low[0] < middle[0] < high[0] <= WIDTH
    assert HEIGHT > low[1] > middle[1] > high[1] >= 0
    assert middle[0] == (low[0] + high[0]) / 2
    assert middle[1] == (low[1] + high[1]) / 2


def test_what_is_outside_stays_at_the_edge() -> None:
    inside, outside = points(drawn(Line("a", "found", [(1, 1), (2, 7)])))
    assert inside == outside


def test_labels_are_text() -> None:
    svg = drawn(Line("<b>&", "found", [(0, 0)]), y=Axis("a < b", 0, 0.02))
    texts = [text.text for text in svg.findall("text")]
    assert "<b>&" in texts
    assert "a < b" in texts
    assert "0.02" in texts


def test_dots() -> None:
    svg = drawn(Line("a", "found", [(0, 0), (1, 1)], dots=True))
    assert len(svg.findall("circle")) == 2
