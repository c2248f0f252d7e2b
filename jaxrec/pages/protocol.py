"""What was run: a table of the runs, and all it takes to believe or repeat them."""

import json
from collections.abc import Sequence
from typing import Any

from jaxrec.pages import parts, svg
from jaxrec.pages.evidence import Evidence
from jaxrec.pages.findings import Findings
from jaxrec.pages.log import plain
from jaxrec.pages.markup import Markup, element, join
from jaxrec.pages.story import Section, Story
from jaxrec.writers import duration

SIZES = {
    "users": "users",
    "items": "items",
    "interactions": "interactions",
    "test_rows": "test rows",
}
PROTOCOL = {
    "split": "split",
    "filter_seen": "seen items are left out",
    "history_filtered": "of the history, left out",
    "target_in_history": "a hidden item that the history has",
    "candidates": "candidates",
    "ties": "equal scores",
    "window": "window, at most",
    "valid_rows": "validation rows",
    "test_targets_tied": "test rows with an equal score",
    "test_targets_in_history": "test rows that hide a repeat",
}


def runs_section(story: Story) -> Section:
    """A row a run."""
    rows = [
        [
            element("span", svg.swatch(story.style(run.name)), parts.given(run.name)),
            status(run),
            parts.given(run.dataset),
            parts.given(_named(run, "model")),
            parts.given(_named(run, "loss")),
            parts.given(_named(run, "optim")),
            parts.count(run.seed),
            _epochs(run),
            _or_unknown(run, "num_params", parts.count),
            _seconds(run),
        ]
        for run in story.runs
    ]
    head = ["run", "state", "data", "model", "loss", "optimiser", "seed"]
    head += ["best epoch", "parameters", "time"]
    table = parts.table(
        "What was run", head, rows, numeric=range(6, len(head)), is_quiet=True
    )
    said = [parts.paragraph(_on_what(found)) for found in story.groups]
    return Section("runs", "What was run", join([table, *said]))


def _on_what(found: Findings) -> Markup:
    """Data, split and protocol of runs on one split, in a sentence."""
    run = found.runs[0]
    data = run.data
    size = [
        f"{data[key]:,} {what}"
        for key, what in SIZES.items()
        if isinstance(data.get(key), int)
    ]
    rule = run.settings.get("data", {}).get("split", "unknown")
    ranked = (
        "among the items that the user has not had"
        if run.is_filtered
        else "among all items"
    )
    windows = dict.fromkeys(map(_window, found.finished or found.runs))
    return join(
        [
            element("strong", parts.given(run.dataset)),
            f": {', '.join(size)}. " if size else ": ",
            f"Split: {rule}. Windows of at most {'; '.join(windows)}. The "
            f"hidden item is ranked {ranked}, of the whole catalogue; equal scores "
            "count against it.",
        ]
    )


def _window(run: Evidence) -> str:
    """The length that was asked for, and what the longest history fills of it.

    An unfinished run says the first alone.
    """
    asked = run.settings.get("train", {}).get("max_length", "unknown")
    filled = (run.result or {}).get("protocol", {}).get("window", asked)
    short = "" if filled == asked else f", of which the longest history fills {filled}"
    return f"{asked} items{short}"


def status(run: Evidence) -> Markup:
    """Finished or not, in words and in a colour."""
    if run.is_finished:
        return element("span", "finished", class_="state done")
    if run.result is None:
        return element("span", "unfinished", class_="state open")
    went_on = f"went on after epoch {run.result['epochs']}, unfinished"
    return element("span", went_on, class_="state open")


def _named(run: Evidence, section: str) -> str:
    return run.settings.get(section, {}).get("name", "unknown")


def _epochs(run: Evidence) -> Markup | str:
    if run.best_epoch is None:
        return "none yet"
    end = None if run.is_finished else " so far"
    best, every = parts.count(run.best_epoch), parts.count(run.num_epochs)
    return join([best, " of ", every, end])


def _or_unknown(run: Evidence, key: str, write) -> Markup | str:
    value = (run.result or {}).get(key)
    return "unknown" if value is None else write(value)


def _seconds(run: Evidence) -> str:
    last = run.epochs[-1] if run.epochs else {}
    total = (run.result or {}).get("seconds", {}).get("total", last.get("total_s"))
    return "unknown" if total is None else duration(total)


def _differences(runs: Sequence[Evidence]) -> Markup | None:
    """Options that the runs have different values of."""
    flat = [
        {
            f"{section}.{key}": value
            for section, options in run.settings.items()
            if isinstance(options, dict)
            for key, value in options.items()
        }
        for run in runs
    ]
    names = dict.fromkeys(name for options in flat for name in options)
    absent = object()
    differing = [
        name
        for name in names
        if any(one.get(name, absent) != flat[0].get(name, absent) for one in flat)
    ]
    if not differing:
        return None
    rows = [
        [
            element("code", name),
            *(
                element("code", json.dumps(one[name], ensure_ascii=False))
                if name in one
                else "–"
                for one in flat
            ),
        ]
        for name in differing
    ]
    head = ["option", *(parts.given(run.name) for run in runs)]
    title = "Options that differ between the runs"
    return parts.table(title, head, rows, numeric=range(0))


def manifest_section(story: Story) -> Section:
    """Everything that a result carries to be believed."""
    return Section(
        "protocol",
        "Protocol",
        join([_differences(story.runs), *map(_manifest, story.runs)]),
    )


def _manifest(run: Evidence) -> Markup:
    result: dict[str, Any] = run.result or {}
    protocol = result.get("protocol", {})
    pairs = [
        (
            PROTOCOL.get(key, key.replace("_", " ")),
            plain(_window(run) if key == "window" else value),
        )
        for key, value in protocol.items()
    ]
    pairs += [
        (f"chosen by the data, {option}", plain(reason))
        for option, reason in result.get("chosen", {}).items()
    ]
    data = run.settings.get("data", {})
    pairs += [
        (f"interactions of {what}, at least", plain(data[key]))
        for key, what in {"min_user": "a user", "min_item": "an item"}.items()
        if key in data
    ]
    pairs += [
        ("sha256 of the data", _code(run.data.get("sha256"))),
        ("sha256 of the split", _code(run.split_sha256 or None)),
    ]
    if result:
        pairs += [
            ("commit", _code(result.get("commit"))),
            ("date", plain(result.get("date", "unknown"))),
            ("device", plain(result.get("device", "unknown"))),
        ]
    pairs += [
        (f"seconds, {key}", plain(value))
        for key, value in result.get("seconds", {}).items()
    ]
    versions = result.get("versions", {})
    if versions:
        said = ", ".join(f"{name} {version}" for name, version in versions.items())
        pairs.append(("versions", plain(said)))
    pairs.append(("folder", _code(run.path)))
    command = result.get("command")
    return join(
        [
            element("h3", parts.given(run.name)),
            element("pre", element("code", command), class_="scroll", tabindex="0")
            if command
            else None,
            parts.facts(pairs),
            parts.more(
                "The whole config",
                element(
                    "pre",
                    element(
                        "code", json.dumps(run.settings, indent=2, ensure_ascii=False)
                    ),
                    class_="scroll",
                    tabindex="0",
                ),
            ),
        ]
    )


def _code(text: Any) -> Markup:
    return element("code", text) if text else join(["unknown"])
