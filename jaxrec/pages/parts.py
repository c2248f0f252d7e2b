"""The pieces that sections share: numbers, tables, figures, legends, notes."""

from collections.abc import Iterable, Sequence
from typing import Any

from jaxrec.pages import svg
from jaxrec.pages.markup import Markup, element, join
from jaxrec.pages.story import Story
from jaxrec.significance import Interval

LEVEL = "95%"


def number(value: float, places: int = 4, sign: str = "") -> Markup:
    """A number for people, which machines can read in full.

    >>> number(0.18085238)
    '<data value="0.18085238">0.1809</data>'
    """
    return element("data", f"{value:{sign},.{places}f}", value=repr(float(value)))


def figures(value: Interval) -> Markup:
    """A number of any size with its interval, its largest in four figures or so."""
    most = max(map(abs, value))
    places = 4 if most < 10 else 2 if most < 100 else 0
    return join([number(value.mean, places), " ", bounds(value, places=places)])


def count(value: int) -> Markup:
    """A whole number, its thousands apart."""
    return element("data", f"{value:,}", value=str(int(value)))


def given(text: Any) -> Markup:
    """Text that somebody else wrote: whatever its direction, it stays in its place."""
    return element("bdi", str(text))


def bounds(interval: Interval | None, sign: str = "", places: int = 4) -> Markup | None:
    """An interval's ends, in brackets."""
    if interval is None:
        return None
    low, high = (number(x, places, sign) for x in (interval.low, interval.high))
    return element("span", "[", low, ", ", high, "]", class_="interval")


def estimate(value: float, interval: Interval | None, sign: str = "") -> Markup:
    """A number with the interval around it below."""
    return join([number(value, sign=sign), " ", bounds(interval, sign)])


def metric(name: str) -> str:
    """A metric's name as it is written.

    >>> metric("ndcg@10")
    'NDCG@10'
    """
    return name.upper()


def table(
    title: str,
    head: Sequence[Any],
    rows: Iterable[Sequence[Any]],
    *,
    numeric: range | None = None,
    is_quiet: bool = False,
) -> Markup:
    """A table that scrolls by itself where it is wider than the page.

    Args:
      title: its caption.
      head: a cell a column.
      rows: as many cells each, the first its name.
      numeric: columns that are aligned as numbers; by default all but the first.
      is_quiet: the title is for those who cannot see that a heading says the same.
    """
    numeric = range(1, len(head)) if numeric is None else numeric

    def side(column: int) -> str | None:
        return "n" if column in numeric else None

    return element(
        "div",
        element(
            "table",
            element("caption", element("span", title)),
            element(
                "thead",
                element(
                    "tr",
                    *(
                        element("th", cell, scope="col", class_=side(c))
                        for c, cell in enumerate(head)
                    ),
                ),
            ),
            element("tbody", *(_row(cells, side) for cells in rows)),
            class_="quiet" if is_quiet else None,
        ),
        class_="scroll",
        tabindex="0",
        role="region",
        aria_label=title,
    )


def _row(cells: Sequence[Any], side) -> Markup:
    first, *rest = cells
    return element(
        "tr",
        element("th", first, scope="row"),
        *(element("td", cell, class_=side(c)) for c, cell in enumerate(rest, 1)),
    )


def facts(pairs: Iterable[tuple[Any, Any]]) -> Markup:
    """Names and values, a line each."""
    return element(
        "dl",
        *(
            element("div", element("dt", name), element("dd", value))
            for name, value in pairs
        ),
    )


def tiles(pairs: Iterable[tuple[Any, Any, Any]]) -> Markup:
    """A few numbers in large: name, number, and what to say of it."""
    return element(
        "ul",
        *(
            element(
                "li",
                element("span", name, class_="name"),
                element("span", value, class_="value"),
                element("span", note, class_="remark"),
            )
            for name, value, note in pairs
        ),
        class_="tiles",
    )


def figure(title: str, chart: Markup, caption: Any = None) -> Markup:
    """A chart under its title, with what is to be known to read it."""
    return element(
        "figure",
        element("h4", title),
        chart,
        element("figcaption", caption) if caption else None,
    )


def charts(figures: Iterable[Markup]) -> Markup:
    """Figures, as many abreast as fit."""
    return element("div", *figures, class_="charts")


def legend(story: Story, names: Iterable[str]) -> Markup:
    """Which run is drawn how; nothing where there is but one."""
    names = list(names)
    if len(names) < 2:
        return Markup("")
    return element(
        "ul",
        *(element("li", svg.swatch(story.style(name)), given(name)) for name in names),
        class_="legend",
    )


def more(summary: str, *children: Any) -> Markup:
    """What is there for who wants it."""
    return element("details", element("summary", summary), *children)


def paragraph(*children: Any) -> Markup:
    return element("p", *children)


def listed(words: Sequence[str]) -> str:
    """Words in a sentence.

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last
