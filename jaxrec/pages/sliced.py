"""Metrics by groups of test rows: short and long histories, rare and popular items."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxrec.pages import axes, parts, svg
from jaxrec.pages.findings import Findings
from jaxrec.pages.markup import Markup, element, join
from jaxrec.pages.story import Section, Story
from jaxrec.significance import Interval

# (title, what is counted, unit) of what rows are sliced by.
BY = {
    "history_length": ("By length of the history", "items before the hidden one"),
    "target_popularity": (
        "By popularity of the hidden item",
        "training interactions of the item that is to be found",
    ),
}


def section(story: Story) -> Section | None:
    """None if no run's data could be loaded."""
    groups = [found for found in story.groups if found.slices]
    if not groups:
        return None
    note = parts.paragraph(
        "Groups of nearly equal size, with their number of test rows; in small groups "
        "the intervals are wide. Popularity does well where popular items are hidden, "
        "and cannot do so elsewhere."
    )
    bodies = [_group(story, found, g) for g, found in enumerate(groups)]
    return Section("slices", "Slices", join([note, *bodies]))


def _group(story: Story, found: Findings, g: int) -> Markup:
    heading = story.heading(found)
    by = list(dict.fromkeys(row["by"] for row in next(iter(found.slices.values()))))
    figures = [
        _chart(story, found, one, name, f"slices-{g}-{i}-{one}")
        for one in by
        for i, name in enumerate(found.headline)
    ]
    title = "The slices in numbers"
    return join(
        [
            element("h3", parts.given(heading)) if heading else None,
            parts.legend(story, found.slices),
            parts.charts(figures),
            parts.more(title, *(_table(found, one) for one in by)),
        ]
    )


def label(row: Mapping[str, Any]) -> str:
    """A slice's bounds, of whole numbers.

    >>> label({"from": None, "below": 45}), label({"from": 45, "below": 46})
    ('up to 44', '45')
    >>> label({"from": 45, "below": 96}), label({"from": 96, "below": None})
    ('45 to 95', '96 or more')
    """
    low, below = row["from"], row["below"]
    if low is None:
        return "all" if below is None else f"up to {below - 1:,}"
    if below is None:
        return f"{low:,} or more"
    return f"{low:,}" if low == below - 1 else f"{low:,} to {below - 1:,}"


def _chart(story: Story, found: Findings, by: str, name: str, chart: str) -> Markup:
    sliced = {
        run: [row for row in rows if row["by"] == by]
        for run, rows in found.slices.items()
    }
    rows, said = [], []
    for place, first in enumerate(next(iter(sliced.values()))):
        dots = []
        for run, of in sliced.items():
            one = of[place]["metrics"].get(name)
            if one is None:
                continue
            text = f"{one['mean']:.4f} [{one['low']:.4f}, {one['high']:.4f}]"
            tip = f"{run}, {label(first)}: {text}"
            dots.append(
                svg.Dot(story.style(run), one["mean"], one["low"], one["high"], tip)
            )
            said.append(tip)
        rows.append(svg.Row(label(first), f"n = {first['rows']:,}", dots))
    title, what = BY.get(by, (by, by))
    words = svg.Words(
        chart,
        f"{parts.metric(name)} {title[0].lower()}{title[1:]}",
        f"Means with {parts.LEVEL} intervals: {'; '.join(said)}.",
        parts.metric(name),
    )
    # One axis for a metric, however it is sliced.
    ends = [
        row["metrics"][name][end]
        for of in found.slices.values()
        for row in of
        if name in row["metrics"]
        for end in ("low", "high")
    ]
    picture = svg.intervals(words, rows, axes.linear(0, max([*ends, 1e-4])))
    return parts.figure(
        f"{parts.metric(name)}: {title[0].lower()}{title[1:]}", picture, what
    )


def _table(found: Findings, by: str) -> Markup:
    rows = [
        [
            join([label(row), f" (n = {row['rows']:,}): ", parts.given(run)]),
            *(_cell(row["metrics"].get(name)) for name in found.headline),
        ]
        for place in range(len(_rows(found, by, next(iter(found.slices)))))
        for run in found.slices
        for row in [_rows(found, by, run)[place]]
    ]
    title, what = BY.get(by, (by, by))
    return parts.table(
        f"{title} ({what})", ["slice", *map(parts.metric, found.headline)], rows
    )


def _rows(found: Findings, by: str, run: str) -> Sequence[Mapping[str, Any]]:
    return [row for row in found.slices[run] if row["by"] == by]


def _cell(one: Mapping[str, float] | None) -> Markup | str:
    if one is None:
        return "no rows"
    return parts.estimate(one["mean"], Interval(one["mean"], one["low"], one["high"]))
