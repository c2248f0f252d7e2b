"""HTML and SVG in plain Python: text in which nothing becomes markup by accident.

`element` escapes every child and every attribute that is not `Markup` already, and only
`element` and `join` make Markup. So an item called "<script>" is shown, never run.
"""

import html
from collections.abc import Iterable
from typing import Any

VOID = frozenset({"br", "col", "hr", "img", "link", "meta"})


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


def join(children: Iterable[Any]) -> Markup:
    """The children one after the other: Markup as it is, None left out, text escaped.

    >>> join([Markup("<br>"), "a < b", None, 3])
    '<br>a &lt; b3'
    """
    return Markup(
        "".join(
            child if isinstance(child, Markup) else html.escape(str(child))
            for child in children
            if child is not None
        )
    )


def element(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """An element of HTML or SVG.

    >>> element("p", "1 < 2", element("b", "!"), class_="note", data_id=7)
    '<p class="note" data-id="7">1 &lt; 2<b>!</b></p>'

    Args:
      name: of the element.
      children: Markup, text, or anything that has a str(); None is left out.
      attributes: a trailing _ is dropped (class_), others become hyphens; None and
        False are left out, True has no value. Floats are cut to two decimals, more
        than a picture can show.
    """
    start = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + _value(value)
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in VOID:
        assert not children, f"<{name}> has no children"
        return Markup(f"<{name}{start}>")
    return Markup(f"<{name}{start}>{join(children)}</{name}>")


def _value(value: Any) -> str:
    if value is True:
        return ""
    if isinstance(value, float):
        value = f"{value:.2f}".rstrip("0").rstrip(".")
    return f'="{html.escape(str(value))}"'
