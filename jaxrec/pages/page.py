"""The page around the sections: head, title, what is missing, the way through."""

import importlib.resources
from collections.abc import Sequence

from jaxrec.pages import (
    comparison,
    curves,
    examples,
    log,
    parts,
    protocol,
    results,
    sliced,
)
from jaxrec.pages.markup import Markup, element
from jaxrec.pages.story import Section, Story

# Nothing is loaded and no script runs, whatever an item is called.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def page(story: Story) -> str:
    """A whole HTML document that needs nothing else."""
    sections = [
        one
        for one in (
            protocol.runs_section(story),
            results.section(story),
            comparison.section(story),
            curves.section(story),
            sliced.section(story),
            examples.section(story),
            log.section(story),
            protocol.manifest_section(story),
        )
        if one is not None
    ]
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title(story)),
        element("style", Markup(_style())),
    )
    body = element(
        "body",
        _header(story),
        _contents(sections),
        element("main", *(_section(one) for one in sections)),
        _footer(story),
    )
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def title(story: Story) -> str:
    """Such as "sasrec_ce-seed0 on ml-1m"."""
    names = [run.name for run in story.runs]
    data = parts.listed(list(dict.fromkeys(run.dataset for run in story.runs)))
    if len(names) <= 3:
        return f"{parts.listed(names)} on {data}"
    return f"{len(names)} runs on {data}"


def _style() -> str:
    folder = importlib.resources.files("jaxrec.pages")
    return folder.joinpath("page.css").read_text(encoding="utf-8")


def _header(story: Story) -> Markup:
    num_open = sum(not run.is_finished for run in story.runs)
    state = "" if not num_open else f" · {num_open} of {len(story.runs)} unfinished"
    return element(
        "header",
        element("p", f"jaxrec report · {story.made['date']}{state}", class_="over"),
        element("h1", parts.given(title(story))),
        _missing(story),
    )


def _missing(story: Story) -> Markup | None:
    """What the page cannot show, and why."""
    why: dict[str, dict[str, list[str]]] = {}
    for found in story.groups:
        for run, what, reason in found.missing:
            runs = why.setdefault(reason, {}).setdefault(what, [])
            runs += [run] if run else []
    lines = [
        element(
            "li",
            "Missing: ",
            "; ".join(
                what + (f" of {parts.listed(runs)}" if runs else "")
                for what, runs in whats.items()
            ),
            ". ",
            parts.given(reason[:1].upper() + reason[1:]),
        )
        for reason, whats in why.items()
    ]
    if story.titles and (untitled := examples.untitled(story)):
        few = parts.listed(list(untitled[:3]))
        more = f" and {len(untitled) - 3:,} more" if len(untitled) > 3 else ""
        text = f"Items without a title, shown by their id: {few}{more}."
        lines.append(element("li", parts.given(text)))
    if not lines:
        return None
    return element("ul", *lines, class_="missing", aria_label="What is missing")


def _contents(sections: Sequence[Section]) -> Markup:
    links = (element("a", one.title, href=f"#{one.id}") for one in sections)
    return element("nav", *links, aria_label="Sections")


def _section(one: Section) -> Markup:
    heading = element("h2", one.title, id=f"{one.id}-heading")
    return element(
        "section", heading, one.body, id=one.id, aria_labelledby=f"{one.id}-heading"
    )


def _footer(story: Story) -> Markup:
    made = story.made
    return element(
        "footer",
        element("p", f"Made by jaxrec {made['version']} on {made['date']}:"),
        element("pre", element("code", made["command"]), class_="scroll", tabindex="0"),
        element("p", "Points and bars say what they are under the pointer."),
    )
