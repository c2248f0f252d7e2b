"""Charts as inline SVG: lines, intervals and histograms, drawn by pure functions.

A chart is WIDTH wide in its own units and as wide as its column on a page, so that it
is read on a phone as on a desk. Colours come from the page's style sheet: class `s0`,
`s1`, ... for the series of these styles, `floor` for what they are compared with. A
style has a colour, a dash and a marker, each of which tells it from its neighbours.
Every chart has a title and a description for those who cannot see it, and what a mark
stands for is its own <title>, which browsers show under the pointer.
"""

from collections.abc import Sequence
from typing import NamedTuple

from jaxrec.pages import axes
from jaxrec.pages.axes import Axis
from jaxrec.pages.markup import Markup, element, join

WIDTH = 400.0
COLOURS = 6
_DASHES = (None, "7 3", "2 3", "9 3 2 3", "5 2")
_LEFT, _RIGHT, _TOP, _BOTTOM = 44.0, WIDTH - 12, 26.0, 38.0
_MARK = 4.5  # half the size of a marker


class Series(NamedTuple):
    """A line.

    style: a number from 0, or None for what others are compared with.
    points: (x, y), x increasing.
    tips: what each point stands for, in words.
    best: the index of the point that is marked.
    """

    style: int | None
    points: Sequence[tuple[float, float]]
    tips: Sequence[str]
    best: int | None = None


class Dot(NamedTuple):
    """A value with its interval; style as in Series."""

    style: int | None
    value: float
    low: float
    high: float
    tip: str


class Row(NamedTuple):
    """Dots under one heading, with a note at its right."""

    label: str
    note: str
    dots: Sequence[Dot]


class Words(NamedTuple):
    """What a chart says in words.

    name: of the chart on its page, for ids.
    title, description: for those who cannot see it.
    x, y: of the axes.
    """

    name: str
    title: str
    description: str
    x: str
    y: str = ""


def lines(
    words: Words, series: Sequence[Series], x: Axis, y: Axis, *, height: float = 250.0
) -> Markup:
    """Lines over one pair of axes; what lies outside an axis is cut off."""
    bottom = height - _BOTTOM

    def at(point: tuple[float, float]) -> tuple[float, float]:
        here = min(max(point[1], y.low), y.high)
        return x.place(point[0], _LEFT, _RIGHT), y.place(here, bottom, _TOP)

    parts = [_grid(x, y, bottom), _labels(words, x, y, bottom)]
    for one in series:
        places = [at(point) for point in one.points]
        path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in places)
        parts.append(
            element(
                "path",
                d=path,
                class_=f"line {_colour(one.style)}",
                stroke_dasharray=_dash(one.style),
            )
        )
        parts += [
            element("circle", element("title", tip), cx=a, cy=b, r=6, class_="target")
            for (a, b), tip in zip(places, one.tips, strict=True)
        ]
    # Last, so that no line hides a mark.
    for one in series:
        if one.best is not None:
            parts.append(
                _mark(one.style, *at(one.points[one.best]), one.tips[one.best])
            )
    return _picture(words, height, parts)


def intervals(
    words: Words, rows: Sequence[Row], x: Axis, *, reference: float | None = None
) -> Markup:
    """Rows of dots with whiskers: a line of words, and below it a line for each dot.

    Args:
      words: its y is not used: the rows name themselves.
      rows: from the top.
      x: the axis of the values.
      reference: a value at which a vertical line is drawn, such as no difference.
    """
    left, line, heading, gap = 6.0, 14.0, 18.0, 12.0
    parts, top = [], 6.0
    for row in rows:
        parts += [
            element("text", _fitting(row), x=0.0, y=top + 11, class_="label"),
            element("text", row.note, x=_RIGHT, y=top + 11, class_="note end"),
        ]
        top += heading
        for dot in row.dots:
            parts.append(_whisker(dot, x, left, top + line / 2))
            top += line
        top += gap
    ground: list[Markup] = [
        element("line", x1=a, x2=a, y1=2.0, y2=top, class_="grid")
        for a in (x.place(tick, left, _RIGHT) for tick in x.ticks)
    ]
    if reference is not None:
        a = x.place(reference, left, _RIGHT)
        ground.append(element("line", x1=a, x2=a, y1=2.0, y2=top, class_="reference"))
    ground += _x_labels(words, x, left, top)
    return _picture(words, top + _BOTTOM, [*ground, *parts])


def _fitting(row: Row) -> str:
    """The label, its middle left out where it would run into the note."""
    room = int((_RIGHT - 6.2 * len(row.note)) / 6.6)
    if len(row.label) <= room:
        return row.label
    half = (room - 1) // 2
    return f"{row.label[:half]}…{row.label[-half:]}"


def _whisker(dot: Dot, x: Axis, left: float, middle: float) -> Markup:
    low, high, value = (
        x.place(min(max(one, x.low), x.high), left, _RIGHT)
        for one in (dot.low, dot.high, dot.value)
    )
    return element(
        "g",
        element("title", dot.tip),
        element("rect", x=left, y=middle - 7, width=_RIGHT - left, height=14.0),
        element("line", x1=low, x2=high, y1=middle, y2=middle),
        _mark(dot.style, value, middle),
        class_=f"whisker {_colour(dot.style)}",
    )


def histogram(
    words: Words,
    edges: Sequence[float],
    counts: Sequence[float],
    tips: Sequence[str],
    x: Axis,
    y: Axis,
    *,
    height: float = 250.0,
) -> Markup:
    """Bars between edges, of the heights of counts."""
    bottom = height - _BOTTOM
    places = [x.place(edge, _LEFT, _RIGHT) for edge in edges]
    bars = [
        element(
            "rect",
            element("title", tip),
            x=a + 0.5,
            y=y.place(count, bottom, _TOP),
            width=max(b - a - 1, 0.5),
            height=bottom - y.place(count, bottom, _TOP),
            class_="bar",
        )
        for a, b, count, tip in zip(places[:-1], places[1:], counts, tips, strict=True)
    ]
    return _picture(
        words, height, [_grid(x, y, bottom), *bars, _labels(words, x, y, bottom)]
    )


def swatch(style: int | None) -> Markup:
    """A bit of a series' line and its marker, for legends; decoration only."""
    dash = _dash(style)
    line = element(
        "path", d="M1 7H31", class_=f"line {_colour(style)}", stroke_dasharray=dash
    )
    return element(
        "svg",
        line,
        _mark(style, 16, 7),
        viewBox="0 0 32 14",
        class_="swatch",
        aria_hidden="true",
    )


def _picture(words: Words, height: float, parts: Sequence[Markup]) -> Markup:
    title, description = f"{words.name}-title", f"{words.name}-description"
    return element(
        "svg",
        element("title", words.title, id=title),
        element("desc", words.description, id=description),
        *parts,
        viewBox=f"0 0 {WIDTH:g} {height:g}",
        role="img",
        aria_labelledby=title,
        aria_describedby=description,
    )


def _grid(x: Axis, y: Axis, bottom: float) -> Markup:
    across = [
        element("line", x1=_LEFT, x2=_RIGHT, y1=b, y2=b, class_="grid")
        for b in (y.place(tick, bottom, _TOP) for tick in y.ticks)
    ]
    up = [
        element("line", x1=a, x2=a, y1=bottom, y2=bottom + 4, class_="tick")
        for a in (x.place(tick, _LEFT, _RIGHT) for tick in x.ticks)
    ]
    ground = element("line", x1=_LEFT, x2=_RIGHT, y1=bottom, y2=bottom, class_="ground")
    return join([*across, *up, ground])


def _labels(words: Words, x: Axis, y: Axis, bottom: float) -> Markup:
    numbers = [
        element(
            "text",
            axes.text(tick),
            x=_LEFT - 7,
            y=y.place(tick, bottom, _TOP) + 4,
            class_="number end",
        )
        for tick in y.ticks
    ]
    title = element("text", words.y, x=4.0, y=12.0, class_="axis")
    return join([*numbers, title, *_x_labels(words, x, _LEFT, bottom)])


def _x_labels(words: Words, x: Axis, left: float, bottom: float) -> list[Markup]:
    numbers = [
        element(
            "text",
            axes.text(tick),
            x=x.place(tick, left, _RIGHT),
            y=bottom + 17,
            class_="number middle",
        )
        for tick in x.ticks
    ]
    title = element("text", words.x, x=_RIGHT, y=bottom + 33, class_="axis end")
    return [*numbers, title]


def _mark(style: int | None, x: float, y: float, tip: str | None = None) -> Markup:
    r = _MARK
    shapes = (
        f"M{x - r:.1f} {y:.1f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0z",
        f"M{x - r:.1f} {y - r:.1f}h{2 * r}v{2 * r}h{-2 * r}z",
        f"M{x:.1f} {y - r - 1.5:.1f}l{r + 1.5} {r + 1.5}l{-r - 1.5} {r + 1.5}"
        f"l{-r - 1.5} {-r - 1.5}z",
        f"M{x:.1f} {y - r - 1:.1f}l{r + 1} {2 * r + 1}h{-2 * r - 2}z",
        f"M{x:.1f} {y + r + 1:.1f}l{r + 1} {-2 * r - 1}h{-2 * r - 2}z",
    )
    title = None if tip is None else element("title", tip)
    shape = shapes[0 if style is None else style % len(shapes)]
    return element("path", title, d=shape, class_=f"mark {_colour(style)}")


def _colour(style: int | None) -> str:
    return "floor" if style is None else f"s{style % COLOURS}"


def _dash(style: int | None) -> str | None:
    return "3 4" if style is None else _DASHES[style % len(_DASHES)]
