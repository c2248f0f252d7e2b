"""The log: its size, the length of histories, and how unequal its items are."""

import json
from typing import Any

from jaxrec.pages import axes, parts, svg
from jaxrec.pages.findings import Findings
from jaxrec.pages.markup import Markup, element, join
from jaxrec.pages.profiles import Histogram, Profile
from jaxrec.pages.story import Section, Story

# What data.statistics calls it -> what we do; the rest is called by its own name.
NAMES = {
    "users": "users",
    "items": "items",
    "interactions": "interactions",
    "length_mean": "interactions a user, mean",
    "length_median": "interactions a user, median",
    "length_min": "interactions a user, least",
    "length_max": "interactions a user, most",
    "train_interactions": "training interactions",
    "items_in_train": "items in training",
    "valid_rows": "validation rows",
    "test_rows": "test rows",
    "test_targets_not_in_train": "test rows that hide an item nobody trains on",
    "users_train_only": "users with nothing held out",
    "users_without_training": "users who train on nothing",
    "users_of_one_training_item": "users who train on one item",
    "test_users": "test users",
    "test_rows_of_users_without_training": "test rows of users who train on nothing",
    "rows_read": "rows read",
    "rows_broken": "rows left out because they are broken",
    "broken": "what is broken",
    "rows_duplicate": "rows left out as duplicates",
    "rows_below_min_rating": "rows left out for their rating",
    "rows_of_other_events": "rows left out for their event",
    "rows_outside_core": "rows left out with rare users and items",
    "test_share_older_than_training": "share of test rows older than the last training",
    "training_share_newer_than_test": "share of training newer than a test row, mean",
}
_LARGE = ("users", "items", "interactions")


def section(story: Story) -> Section | None:
    """None if no run says anything of its data."""
    groups = [found for found in story.groups if found.runs[0].data]
    if not groups:
        return None
    bodies = [_group(story, found, g) for g, found in enumerate(groups)]
    return Section("data", "Data", join(bodies))


def _group(story: Story, found: Findings, g: int) -> Markup:
    heading, data = story.heading(found), found.runs[0].data
    profile = found.profile
    large = [
        (NAMES[key], parts.count(data[key]), None) for key in _LARGE if key in data
    ]
    if all(key in data for key in _LARGE) and data["users"] * data["items"]:
        density = data["interactions"] / data["users"] / data["items"]
        share = element("data", f"{density:.2%}", value=repr(density))
        large.append(("of all user-item pairs", share, None))
    hashes = ("sha256", "split_sha256", "name")
    rest = [
        (NAMES.get(key, key.replace("_", " ")), plain(value))
        for key, value in data.items()
        if key not in (*_LARGE, *hashes)
    ]
    figures = []
    if profile is not None:
        figures = [
            _lengths(profile, f"lengths-{g}"),
            _popularity(profile, f"popularity-{g}"),
            _tail(profile, f"tail-{g}"),
        ]
    if rest:
        title = "All counts, and what reading and filtering left out"
        figures.append(element("div", element("h4", title), parts.facts(rest)))
    return join(
        [
            element("h3", parts.given(heading)) if heading else None,
            parts.tiles(large),
            parts.charts(figures),
        ]
    )


def plain(value: Any) -> Markup:
    """Any JSON value for a person."""
    if isinstance(value, bool) or value is None:
        return join(["yes" if value else "none" if value is None else "no"])
    if isinstance(value, int):
        return parts.count(value)
    if isinstance(value, float):
        return element("data", f"{value:,.6g}", value=repr(value))
    if isinstance(value, dict):
        lines = (element("div", f"{key}: ", plain(one)) for key, one in value.items())
        return join(lines)
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return join(element("div", parts.given(one)) for one in value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return parts.given(text)


def _lengths(profile: Profile, name: str) -> Markup:
    caption = "Users by the number of their interactions, on a logarithmic axis."
    return _bars(
        profile.lengths,
        svg.Words(name, "Length of histories", caption, "interactions", "users"),
        "users with {} interactions",
    )


def _popularity(profile: Profile, name: str) -> Markup:
    unseen = f" {profile.num_unseen:,} have none." if profile.num_unseen else ""
    caption = (
        "Items by the number of their training interactions, on a logarithmic "
        f"axis.{unseen}"
    )
    return _bars(
        profile.popularity,
        svg.Words(name, "Popularity of items", caption, "interactions", "items"),
        "items with {} training interactions",
    )


def _bars(bars: Histogram, words: svg.Words, tip: str) -> Markup:
    if not bars.counts:
        return Markup("")
    tips = [
        f"{count:,} {tip.format(_range(low, below))}"
        for low, below, count in zip(
            bars.edges, bars.edges[1:], bars.counts, strict=False
        )
    ]
    x = axes.log(bars.edges[0], bars.edges[-1])
    y = axes.linear(0, max(bars.counts), is_count=True)
    picture = svg.histogram(words, bars.edges, bars.counts, tips, x, y)
    return parts.figure(words.title, picture, words.description)


def _range(low: int, below: int) -> str:
    return f"{low:,}" if below == low + 1 else f"{low:,} to {below - 1:,}"


def _tail(profile: Profile, name: str) -> Markup:
    tops = [f"{of:.1%} to the first {top:.0%}" for top, of in profile.top_share.items()]
    caption = (
        f"Of the training interactions go {parts.listed(tops)} of the items, most "
        f"popular first, and half to the first {profile.half:.1%}. Dashed: as if all "
        "items were equal."
    )
    points = [(100 * share, 100 * of) for share, of in profile.concentration]
    tips = [f"{a:.1f}% of the items have {b:.1f}%" for a, b in points]
    words = svg.Words(
        name,
        "Concentration",
        caption,
        "% of the items, most popular first",
        "% of the training interactions",
    )
    equal = svg.Series(None, [(0, 0), (100, 100)], ["", "if all items were equal"])
    curve = svg.Series(0, points, tips)
    axis = axes.linear(0, 100)
    picture = svg.lines(words, [equal, curve], axis, axis)
    return parts.figure("Long tail", picture, caption)
