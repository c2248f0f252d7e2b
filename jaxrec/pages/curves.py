"""Loss and validation metric of every epoch, runs over each other."""

from collections.abc import Sequence
from typing import NamedTuple

from jaxrec.pages import axes, parts, svg
from jaxrec.pages.evidence import Evidence
from jaxrec.pages.markup import Markup, element, join
from jaxrec.pages.story import Section, Story


def section(story: Story) -> Section | None:
    """None if no run has finished an epoch."""
    groups = [
        (story.heading(found), [run for run in found.runs if run.epochs])
        for found in story.groups
    ]
    groups = [(heading, runs) for heading, runs in groups if runs]
    if not groups:
        return None
    bodies = []
    for g, (heading, runs) in enumerate(groups):
        bodies += [
            element("h3", parts.given(heading)) if heading else None,
            parts.legend(story, [run.name for run in runs]),
            parts.charts(_charts(story, runs, g)),
        ]
    return Section("curves", "Learning curves", join(bodies))


def _charts(story: Story, runs: Sequence[Evidence], g: int) -> list[Markup]:
    """Each monitored metric against epoch and time, and each loss: it has its unit."""
    figures = []
    for i, name in enumerate(dict.fromkeys(run.monitor for run in runs)):
        key = f"valid/{name}"
        here = [run for run in runs if run.monitor == name and _has(run, key)]
        if not here:
            continue
        y = Quantity(key, parts.metric(name), f"Validation {parts.metric(name)}", 0.0)
        figures.append(_chart(story, here, EPOCH, y, f"curve-{g}-m{i}"))
        if all(_has(run, "total_s") for run in here):
            figures.append(_chart(story, here, _time(here), y, f"curve-{g}-t{i}"))
    for i, loss in enumerate(dict.fromkeys(_loss(run) for run in runs)):
        here = [run for run in runs if _loss(run) == loss]
        y = Quantity(
            "loss", "loss", f"Training loss ({loss})" if loss else "Training loss"
        )
        figures.append(_chart(story, here, EPOCH, y, f"curve-{g}-l{i}"))
    return figures


class Quantity(NamedTuple):
    """A number of an epoch.

    key: of metrics.jsonl.
    unit: what its axis says.
    title: of a chart.
    low: where its axis begins, if not at the least value.
    size: of the unit, in that of metrics.jsonl.
    """

    key: str
    unit: str
    title: str
    low: float | None = None
    size: float = 1.0


EPOCH = Quantity("epoch", "epoch", "epoch", 0.0)


def _time(runs: Sequence[Evidence]) -> Quantity:
    """Time since a run began, in a unit that gives small numbers."""
    most = max(line["total_s"] for run in runs for line in run.epochs)
    units = ((5 * 3600, "hours", 3600.0), (300, "minutes", 60.0), (0, "seconds", 1.0))
    unit, size = next((unit, size) for least, unit, size in units if most >= least)
    return Quantity("total_s", unit, "time", 0.0, size)


def _has(run: Evidence, key: str) -> bool:
    return all(key in line for line in run.epochs)


def _loss(run: Evidence) -> str:
    return run.settings.get("loss", {}).get("name", "")


def _chart(
    story: Story, runs: Sequence[Evidence], x: Quantity, y: Quantity, chart: str
) -> Markup:
    """A quantity of every run against another."""
    said = [_said(run, x, y) for run in runs]
    title = f"{y.title} against {x.title}"
    words = svg.Words(
        chart, title, f"{' '.join(said)} The best epoch is marked.", x.unit, y.unit
    )
    picture = svg.lines(
        words,
        [_series(story, run, x, y) for run in runs],
        _axis(runs, x),
        _axis(runs, y),
    )
    caption = join(_spaced(said))
    if x.key != "epoch":
        caption = "Since the run began, compiling and validation included."
        devices = {(run.result or {}).get("device") for run in runs}
        if len(devices - {None}) > 1:
            caption += " The runs were not made on one machine."
    return parts.figure(title, picture, caption)


def _axis(runs: Sequence[Evidence], of: Quantity) -> axes.Axis:
    values = [line[of.key] / of.size for run in runs for line in run.epochs]
    low = min(values) if of.low is None else of.low
    return axes.linear(low, max(low, *values), is_count=of is EPOCH)


def _spaced(sentences: Sequence[str]) -> list:
    return [piece for one in sentences for piece in (" ", one)][1:]


def _series(story: Story, run: Evidence, x: Quantity, y: Quantity) -> svg.Series:
    epochs = [line["epoch"] for line in run.epochs]
    return svg.Series(
        story.style(run.name),
        [(line[x.key] / x.size, line[y.key]) for line in run.epochs],
        [
            f"{run.name}, epoch {line['epoch']}: {line[y.key]:.4f}"
            + (", the best" if line["epoch"] == run.best_epoch else "")
            for line in run.epochs
        ],
        best=epochs.index(run.best_epoch) if run.best_epoch in epochs else None,
    )


def _said(run: Evidence, x: Quantity, y: Quantity) -> str:
    """The curve in a sentence."""
    end = "." if run.is_finished else " so far; the run is not finished."
    for line in run.epochs:
        if line["epoch"] == run.best_epoch:
            place = f"{run.best_epoch} of {run.num_epochs}"
            if x.key != "epoch":
                place += f", after {line[x.key] / x.size:.1f} {x.unit}"
            return f"{run.name}: {line[y.key]:.4f} in its best epoch, {place}{end}"
    return f"{run.name}: {run.num_epochs} epochs{end}"
