"""Axes and charts: places by hand, well-formed, nothing but what was asked for."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from jaxrec.pages import axes, svg
from jaxrec.pages.markup import Markup, element, join

EVIL = """<script>alert("x")</script> & 'y'"""


def parsed(chart):
    """A chart as XML: an error if it is not well-formed."""
    return ElementTree.fromstring(chart)


def words():
    return svg.Words("c", "T", "D", "epoch")


def texts(root):
    return [node.text for node in root.iter("text")]


def of_class(root, name):
    return [node for node in root.iter() if name in (node.get("class") or "").split()]


class TestMarkup:
    def test_children_and_attributes_are_escaped_once(self):
        inner = element("b", EVIL, title=EVIL)
        assert parsed(inner).text == EVIL and parsed(inner).get("title") == EVIL
        assert "<script" not in inner
        assert element("p", inner) == f"<p>{inner}</p>"

    def test_attributes(self):
        made = element("x", class_="a", stroke_width=2.0, hidden=True, id=None, b=False)
        assert made == '<x class="a" stroke-width="2" hidden></x>'
        assert element("x", y=1 / 3, z=-12.0, w=100.0, v=10) == (
            '<x y="0.33" z="-12" w="100" v="10"></x>'
        )

    def test_void_elements_have_no_end(self):
        assert element("br") == "<br>"
        with pytest.raises(AssertionError, match="no children"):
            element("meta", "text")

    def test_text_that_is_joined_to_markup_loses_its_mark(self):
        """So what is built without `join` is escaped, not trusted."""
        assert not isinstance(Markup("<b>") + "x", Markup)
        assert join([Markup("<b>") + "x"]) == "&lt;b&gt;x"


class TestAxes:
    @pytest.mark.parametrize(
        ("low", "high", "ticks"),
        [
            (0, 1, (0, 0.2, 0.4, 0.6, 0.8, 1)),
            (0.013, 0.19, (0, 0.05, 0.1, 0.15, 0.2)),
            (5.3, 7.7, (5, 5.5, 6, 6.5, 7, 7.5, 8)),
            (-0.01, 0.04, (-0.01, 0, 0.01, 0.02, 0.03, 0.04)),
            (0, 0.3, (0, 0.1, 0.2, 0.3)),
            (2, 2, (1, 1.5, 2, 2.5, 3)),
            (0, 0, (0, 0.2, 0.4, 0.6, 0.8, 1)),
        ],
    )
    def test_linear(self, low, high, ticks):
        axis = axes.linear(low, high)
        assert axis.ticks == pytest.approx(ticks)
        assert (axis.low, axis.high) == (axis.ticks[0], axis.ticks[-1])

    @pytest.mark.parametrize(
        ("most", "ticks"),
        [(1, (0, 1)), (3, (0, 1, 2, 3)), (87, (0, 20, 40, 60, 80, 100))],
    )
    def test_counts_have_whole_ticks(self, most, ticks):
        assert axes.linear(0, most, is_count=True).ticks == ticks

    def test_log(self):
        assert axes.log(1, 10_000).ticks == (1, 10, 100, 1000, 10_000)
        assert axes.log(18, 2400).ticks == (20, 50, 100, 200, 500, 1000, 2000)
        assert axes.log(1, 1).ticks == (0.5, 1, 2)

    def test_places(self):
        assert axes.linear(0, 10).place(2.5, 40, 0) == 30
        assert axes.linear(5, 8).place(6.5, 0, 1) == 0.5
        assert axes.log(10, 1000).place(100, 0, 1) == pytest.approx(0.5)
        log = axes.log(1, 10_000)
        assert [log.place(10**n, 0, 4) for n in range(5)] == pytest.approx([*range(5)])

    def test_text(self):
        shown = [axes.text(x) for x in (0, 0.05, 0.30000000000000004, 9999, 12500, 2e6)]
        assert shown == ["0", "0.05", "0.3", "9,999", "12.5k", "2M"]


class TestLines:
    X, Y = axes.linear(0, 10), axes.linear(0, 1)

    def draw(self, points, style=0, **changes):
        tips = [f"point {i}" for i in range(len(points))]
        one = svg.Series(style, points, tips, **changes)
        return parsed(svg.lines(words(), [one], self.X, self.Y))

    def test_corners(self):
        """Area: 44 to 388 across, 26 to 212 down (250 - 38)."""
        (line,) = of_class(self.draw([(0, 0), (5, 0.5), (10, 1)]), "line")
        assert line.get("d") == "M44.0 212.0L216.0 119.0L388.0 26.0"

    def test_values_outside_are_cut_off(self):
        (line,) = of_class(self.draw([(0, -5), (10, 5)]), "line")
        assert line.get("d") == "M44.0 212.0L388.0 26.0"

    def test_points_say_what_they_are_and_the_best_is_marked(self):
        root = self.draw([(0, 0), (10, 1)], best=1)
        tips = [node.find("title").text for node in of_class(root, "target")]
        assert tips == ["point 0", "point 1"]
        (mark,) = of_class(root, "mark")
        assert mark.find("title").text == "point 1"
        assert re.match(r"M383\.5 26\.0", mark.get("d"))  # a circle around 388, 26
        assert not of_class(self.draw([(0, 0)]), "mark")

    def test_it_is_an_image_with_a_title_and_a_description(self):
        root = self.draw([(0, 0)])
        assert root.get("role") == "img"
        named = {node.get("id"): node.text for node in root if node.get("id")}
        assert named == {"c-title": "T", "c-description": "D"}
        assert root.get("aria-labelledby") == "c-title"
        assert root.get("aria-describedby") == "c-description"
        assert "epoch" in texts(root) and "0.2" in texts(root) and "10" in texts(root)

    def test_words_of_others_stay_words(self):
        evil = svg.Words("c", EVIL, EVIL, EVIL, EVIL)
        one = svg.Series(0, [(0, 0)], [EVIL], best=0)
        chart = svg.lines(evil, [one], self.X, self.Y)
        assert "<script" not in chart and not list(parsed(chart).iter("script"))
        assert texts(parsed(chart)).count(EVIL) == 2


class TestIntervals:
    def test_whiskers_are_where_the_values_are(self):
        """The values' axis runs from 6 to 388."""
        rows = [
            svg.Row("a", "n = 1", [svg.Dot(0, 0.5, 0.25, 0.75, "tip")]),
            svg.Row("b", "", [svg.Dot(1, 1, 1, 9, "cut"), svg.Dot(None, 0, 0, 0, "p")]),
        ]
        root = parsed(svg.intervals(words(), rows, axes.linear(0, 1), reference=0.5))
        whiskers = of_class(root, "whisker")
        ends = [
            tuple(float(w.find("line").get(x)) for x in ("x1", "x2")) for w in whiskers
        ]
        assert ends == [(101.5, 292.5), (388, 388), (6, 6)]
        middles = [float(w.find("line").get("y1")) for w in whiskers]
        assert middles == sorted(set(middles)), "below one another"
        assert {w.get("class") for w in whiskers} == {
            "whisker s0",
            "whisker s1",
            "whisker floor",
        }
        (line,) = of_class(root, "reference")
        assert line.get("x1") == line.get("x2") == "197"
        assert [w.find("title").text for w in whiskers] == ["tip", "cut", "p"]
        assert {"a", "n = 1", "b"} <= set(texts(root))

    def test_a_long_label_loses_its_middle(self):
        row = svg.Row("a" * 50 + "z" * 50, "n = 1,000", [])
        root = parsed(svg.intervals(words(), [row], axes.linear(0, 1)))
        (label,) = of_class(root, "label")
        assert re.fullmatch("a+…z+", label.text) and 40 < len(label.text) < 52

    def test_rows_do_not_overlap_and_the_picture_holds_them(self):
        dots = [svg.Dot(i, 0.5, 0.4, 0.6, "") for i in range(3)]
        rows = [svg.Row(str(r), "", dots) for r in range(4)]
        root = parsed(svg.intervals(words(), rows, axes.linear(0, 1)))
        labels = [float(node.get("y")) for node in of_class(root, "label")]
        lines = [float(w.find("line").get("y1")) for w in of_class(root, "whisker")]
        height = float(root.get("viewBox").split()[3])
        for row, label in enumerate(labels):
            mine = lines[3 * row : 3 * row + 3]
            assert label < mine[0] and mine[-1] < [*labels, height][row + 1]


class TestHistogram:
    def test_bars_have_the_heights_of_the_counts(self):
        chart = svg.histogram(
            words(),
            [1, 10, 100],
            [4, 8],
            ["4 users", "8 users"],
            axes.log(1, 100),
            axes.linear(0, 8),
        )
        low, high = of_class(parsed(chart), "bar")
        assert float(high.get("height")) == 212 - 26
        assert float(low.get("height")) == (212 - 26) / 2
        # Half of 344 each, less a gap of 1.
        assert [float(bar.get("x")) for bar in (low, high)] == [44.5, 216.5]
        assert [float(bar.get("width")) for bar in (low, high)] == [171, 171]
        assert high.find("title").text == "8 users"

    def test_as_many_counts_as_bins(self):
        with pytest.raises(ValueError, match="zip"):
            svg.histogram(
                words(), [1, 2], [1, 2], ["", ""], axes.log(1, 2), axes.linear(0, 1)
            )


def test_styles_differ_by_colour_dash_and_marker():
    looks = []
    for style in [None, *range(30)]:
        root = parsed(svg.swatch(style))
        line, mark = root.iter("path")
        looks.append((line.get("class"), line.get("stroke-dasharray"), mark.get("d")))
        assert root.get("aria-hidden") == "true"
    assert len(set(looks)) == len(looks)
    for one, other in zip(looks[1:], looks[2:], strict=False):
        assert all(a != b for a, b in zip(one, other, strict=True))
