"""The metrics of finished runs, with intervals, beside those of popularity."""

import math
from collections.abc import Mapping, Sequence

from jaxrec.metrics import parse
from jaxrec.pages import axes, parts, svg
from jaxrec.pages.evidence import Evidence
from jaxrec.pages.findings import POPULARITY, Findings
from jaxrec.pages.markup import Markup, element, join
from jaxrec.pages.story import Section, Story
from jaxrec.significance import Interval


def section(story: Story) -> Section | None:
    """None if no run is finished."""
    groups = [found for found in story.groups if found.metrics]
    if not groups:
        return None
    bodies = [_group(story, found, g) for g, found in enumerate(groups)]
    note = parts.paragraph(
        f"In brackets: {parts.LEVEL} intervals by a bootstrap over users. They say how "
        "much other users would change a mean; what another seed of the training would "
        "change is not in them.",
    )
    return Section("results", "Results", join([*bodies, note]))


def _group(story: Story, found: Findings, g: int) -> Markup:
    heading = story.heading(found)
    names = [*(run.name for run in found.finished), POPULARITY]
    charts = [
        _chart(story, found, name, f"results-{g}-{i}")
        for i, name in enumerate(found.headline)
        if any(name in of for of in found.intervals.values())
    ]
    only = found.finished[0] if len(found.finished) == 1 else None
    return join(
        [
            element("h3", parts.given(heading)) if heading else None,
            _summary(found),
            _tiles(found, only) if only else None,
            parts.charts(charts) if charts and not only else None,
            _table(found, names),
            _more(found),
            _beyond(found),
        ]
    )


def _summary(found: Findings) -> Markup:
    """The result in a sentence or two."""
    name = found.headline[0]
    best = max(found.finished, key=lambda run: _test(run)[name])
    interval = found.intervals.get(best.name, {}).get(name)
    metric = parts.metric(name)
    is_only = len(found.finished) == 1
    sentences = [
        element("strong", parts.given(best.name)),
        f" has {metric} of " if is_only else f" has the highest {metric} of the runs, ",
        parts.number(_test(best)[name]),
        *([" ", parts.bounds(interval)] if interval else []),
        _beside_popularity(found, best, name),
        ". ",
        _hit_rate(found, best),
    ]
    full = element("p", remark) if (remark := _remark(found)) else None
    return join([element("p", *sentences, class_="lead"), full])


def _beside_popularity(found: Findings, run: Evidence, name: str) -> Markup | None:
    """What popularity has, and whether the run is shown to have another value."""
    floor = _floor(found).get(name)
    if floor is None:
        return None
    more = "has more, " if floor > _test(run)[name] else "has "
    said = ["; popularity ", more, parts.number(floor)]
    lead = found.leads.get(run.name, {}).get(name)
    if lead is not None and lead.low <= 0 <= lead.high:
        said += [". Neither is shown to be better: the difference is "]
        said += [parts.number(lead.mean, sign="+"), " ", parts.bounds(lead, "+")]
    return join(said)


def _remark(found: Findings) -> str | None:
    """On metrics of lists that hold the whole catalogue."""
    num_items = found.runs[0].data.get("items")
    full = [name for name in found.metrics if _is_full(found, name)]
    if not full:
        return None
    return (
        f"{parts.listed([parts.metric(name) for name in full])}: the log has "
        f"{num_items:,} items, and a list of as many leaves none out."
    )


def _is_full(found: Findings, name: str) -> bool:
    return parse(name)[1] >= found.runs[0].data.get("items", math.inf)


def _hit_rate(found: Findings, run: Evidence) -> str | None:
    """A hit rate in words."""
    name = next((name for name in found.headline if name.startswith("hr@")), None)
    if name is None or _is_full(found, name):
        return None
    num_rows = run.data.get("test_rows")
    rows = f"the {num_rows:,} test rows" if num_rows else "the test rows"
    k = name.partition("@")[2]
    return (
        f"Of {rows}, {_test(run)[name]:.1%} have the hidden item among the first {k} "
        "of the whole catalogue."
    )


def _tiles(found: Findings, run: Evidence) -> Markup:
    floor = _floor(found)
    pairs = []
    for name in found.headline:
        lead = found.leads.get(run.name, {}).get(name)
        remark = [parts.bounds(found.intervals.get(run.name, {}).get(name))]
        if lead is not None:
            remark += [
                element("br"),
                parts.number(lead.mean, sign="+"),
                " ",
                parts.bounds(lead, "+"),
                " over popularity",
            ]
        elif name in floor:
            remark += [element("br"), "popularity ", parts.number(floor[name])]
        pairs.append((parts.metric(name), parts.number(_test(run)[name]), join(remark)))
    return parts.tiles(pairs)


def _chart(story: Story, found: Findings, name: str, chart: str) -> Markup:
    """A metric of every run, one below the other."""
    rows, said = [], []
    for run, of in found.intervals.items():
        one = of[name]
        text = f"{one.mean:.4f} [{one.low:.4f}, {one.high:.4f}]"
        said.append(f"{run} {text}")
        dot = svg.Dot(story.style(run), *one, tip=f"{run}: {text}")
        rows.append(svg.Row(run, text, [dot]))
    every = [one for of in found.intervals.values() for one in of[name][1:]]
    words = svg.Words(
        chart,
        f"{parts.metric(name)} on the test part",
        f"Means with {parts.LEVEL} intervals: {'; '.join(said)}.",
        parts.metric(name),
    )
    picture = svg.intervals(words, rows, axes.linear(min(every), max(every)))
    return parts.figure(f"{parts.metric(name)}, test", picture)


def _table(found: Findings, names: Sequence[str]) -> Markup:
    values = {run.name: _test(run) for run in found.finished}
    values[POPULARITY] = _floor(found)
    rows = [
        [
            parts.given(name),
            *(
                parts.estimate(
                    values[name][metric], found.intervals.get(name, {}).get(metric)
                )
                if metric in values[name]
                else "unknown"
                for metric in found.metrics
            ),
        ]
        for name in names
    ]
    first = found.runs[0]
    ranked = (
        "among the items that a user has not had"
        if first.is_filtered
        else "among all items"
    )
    return parts.table(
        f"Test part, ranked {ranked}",
        ["run", *map(parts.metric, found.metrics)],
        rows,
    )


def _more(found: Findings) -> Markup | None:
    """The other numbers that a result holds."""
    kinds = {"valid": "validation", "test_unfiltered": "test, among all items"}
    rows = [
        [
            join([parts.given(run.name), f": {title}"]),
            *(
                parts.number(run.result[kind][metric])
                if metric in run.result[kind]
                else "unknown"
                for metric in found.metrics
            ),
        ]
        for run in found.finished
        for kind, title in kinds.items()
        if run.result and isinstance(run.result.get(kind), dict)
    ]
    if not rows:
        return None
    head = ["run and part", *map(parts.metric, found.metrics)]
    title = "Validation part, and test part without leaving out seen items"
    return parts.more(title, parts.table(title, head, rows))


def _beyond(found: Findings) -> Markup | None:
    """What the lists are like."""
    if not found.beyond:
        return None
    first = next(iter(found.beyond.values()))
    *names, diversity = first["model"]  # the last is of a run's own space
    of_lists = {run: of["model"] for run, of in found.beyond.items()}
    of_lists[POPULARITY] = first["popularity"]
    rows = [
        [parts.given(run), *(_cell(values[name]) for name in names)]
        for run, values in of_lists.items()
    ]
    head = ["run", *(name.replace("_", " ") for name in names)]
    explained = parts.paragraph(
        "Coverage is the share of the catalogue that is in any list; Gini is 0 where "
        "every item is shown equally often and 1 where one item has it all; novelty is "
        "in bits; mean popularity in training interactions.",
    )
    kinds = {"model": "its lists", "popularity": "popularity's", "lead": "difference"}
    own_rows = [
        [parts.given(run), *(_cell(of[kind][diversity]) for kind in kinds)]
        for run, of in found.beyond.items()
    ]
    own_explained = parts.paragraph(
        "Diversity is 1 minus the mean cosine of a list's items, in the space of the "
        "run's own embeddings, popularity's lists too. Runs have different spaces: "
        "compare along a row, not down a column.",
    )
    title = f"{diversity.capitalize()}, by each run's own embeddings"
    return join(
        [
            parts.table("What the lists are like", head, rows),
            explained,
            parts.table(title, ["run", *kinds.values()], own_rows),
            own_explained,
        ]
    )


def _cell(value: float | Interval) -> Markup:
    if isinstance(value, Interval):
        return parts.figures(value)
    return parts.number(value)


def _test(run: Evidence) -> Mapping[str, float]:
    assert run.result is not None, "a finished run has a result"
    return run.result["test"]


def _floor(found: Findings) -> Mapping[str, float]:
    """Popularity's metrics, as the results have them."""
    return (found.finished[0].result or {}).get("test_popularity", {})
