"""The metrics of finished runs, with intervals, beside those of popularity."""

from collections.abc import Mapping, Sequence

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
    floor = _floor(found).get(name)
    is_only = len(found.finished) == 1
    sentences = [
        element("strong", parts.given(best.name)),
        " has " if is_only else " has the highest ",
        f"{parts.metric(name)} of " if is_only else f"{parts.metric(name)}, ",
        parts.number(_test(best)[name]),
        *([" ", parts.bounds(interval)] if interval else []),
        *(["; popularity has ", parts.number(floor)] if floor is not None else []),
        ". ",
        _hit_rate(found, best),
    ]
    return element("p", *sentences, class_="lead")


def _hit_rate(found: Findings, run: Evidence) -> str | None:
    """A hit rate in words."""
    name = next((name for name in found.headline if name.startswith("hr@")), None)
    if name is None:
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
    names = list(next(iter(found.beyond.values())))
    # Popularity was added with the first model, and belongs below the last.
    order = sorted(found.beyond, key=lambda name: name == POPULARITY)

    def cell(value: float | Interval) -> Markup:
        if isinstance(value, Interval):
            ends = parts.bounds(value, write=parts.figures)
            return join([parts.figures(value.mean), " ", ends])
        return parts.number(value)

    rows = [
        [parts.given(run), *(cell(found.beyond[run][name]) for name in names)]
        for run in order
    ]
    head = ["run", *(name.replace("_", " ") for name in names)]
    explained = parts.paragraph(
        "Coverage is the share of the catalogue that is in any list; Gini is 0 where "
        "every item is shown equally often and 1 where one item has it all; novelty is "
        "in bits; mean popularity in training interactions; diversity is 1 minus the "
        "mean cosine of a list's items.",
    )
    return join([parts.table("What the lists are like", head, rows), explained])


def _test(run: Evidence) -> Mapping[str, float]:
    assert run.result is not None, "a finished run has a result"
    return run.result["test"]


def _floor(found: Findings) -> Mapping[str, float]:
    """Popularity's metrics, as the results have them."""
    return (found.finished[0].result or {}).get("test_popularity", {})
