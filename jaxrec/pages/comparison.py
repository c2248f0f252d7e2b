"""Every two runs, tested over the same users."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxrec.pages import axes, parts, svg
from jaxrec.pages.findings import Findings
from jaxrec.pages.markup import Markup, element, join
from jaxrec.pages.story import Section, Story
from jaxrec.significance import Interval

_MOST_PAIRS = 15  # that are drawn; the table has all


def section(story: Story) -> Section | None:
    """None if no two runs can be compared."""
    groups = [found for found in story.groups if found.comparison]
    if not groups:
        return None
    note = parts.paragraph(
        "A difference is of the users' own values, with a bootstrap interval. The p is "
        "of a permutation test over users, corrected over the pairs of a metric by "
        "Holm's method; a run is called better where it is at most .05. The effect is "
        "the mean difference over its standard deviation between users.",
    )
    bodies = [_group(story, found, g) for g, found in enumerate(groups)]
    return Section("comparison", "Comparison", join([*bodies, note]))


def _group(story: Story, found: Findings, g: int) -> Markup:
    comparison = found.comparison or {}
    heading = story.heading(found)
    by_metric: dict[str, list[dict]] = {}
    for pair in comparison["pairs"]:
        by_metric.setdefault(pair["metric"], []).append(pair)
    charts = [
        _chart(name, pairs, f"comparison-{g}-{i}")
        for i, (name, pairs) in enumerate(by_metric.items())
        if len(pairs) <= _MOST_PAIRS
    ]
    seeds = [row for row in comparison["runs"] if len(row["seeds"]) > 1]
    averaged = [
        join([parts.given(row["name"]), f" over seeds {parts.listed(row['seeds'])}"])
        for row in ({**row, "seeds": [str(s) for s in row["seeds"]]} for row in seeds)
    ]
    return join(
        [
            element("h3", parts.given(heading)) if heading else None,
            parts.paragraph(
                "A user's values are averaged first: ", join(_spaced(averaged)), "."
            )
            if averaged
            else None,
            parts.charts(charts) if charts else None,
            _table(comparison),
        ]
    )


def _spaced(pieces: Sequence[Markup]) -> list[Any]:
    return [piece for one in pieces for piece in ("; ", one)][1:]


def _chart(name: str, pairs: Sequence[Mapping[str, Any]], chart: str) -> Markup:
    rows, said = [], []
    for pair in pairs:
        title = f"{pair['a']} − {pair['b']}"
        text = f"{pair['difference']:+.4f} [{pair['low']:+.4f}, {pair['high']:+.4f}]"
        said.append(f"{title}: {text}")
        value = (pair["difference"], pair["low"], pair["high"])
        dot = svg.Dot(0, *value, tip=f"{title}: {text}")
        rows.append(svg.Row(title, "", [dot]))
    ends = [pair[key] for pair in pairs for key in ("low", "high")]
    words = svg.Words(
        chart,
        f"Differences in {parts.metric(name)}",
        f"Mean differences with {parts.LEVEL} intervals: {'; '.join(said)}.",
        f"difference in {parts.metric(name)}",
    )
    x = axes.linear(min(0, *ends), max(0, *ends))
    picture = svg.intervals(words, rows, x, reference=0.0)
    return parts.figure(f"Difference in {parts.metric(name)}", picture)


def _table(comparison: Mapping[str, Any]) -> Markup:
    rows = [
        [
            join([parts.given(pair["a"]), " − ", parts.given(pair["b"])]),
            parts.metric(pair["metric"]),
            parts.estimate(
                pair["difference"],
                Interval(pair["difference"], pair["low"], pair["high"]),
                sign="+",
            ),
            _chance(pair["p_holm"]),
            parts.number(pair["effect"], 2, "+"),
            parts.given(pair["verdict"]),
        ]
        for pair in comparison["pairs"]
    ]
    head = ["pair", "metric", "difference", "p (Holm)", "effect", "verdict"]
    title = f"Paired tests over {comparison['num_users']:,} users"
    return parts.table(title, head, rows, numeric=range(2, 5))


def _chance(p: float) -> Markup:
    return element("data", f"{p:.2g}", value=repr(float(p)))
