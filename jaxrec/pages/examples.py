"""Histories, what would have been shown after them, and what came next."""

from collections.abc import Sequence

from jaxrec.pages import parts
from jaxrec.pages.findings import Example, Findings
from jaxrec.pages.markup import Markup, element, join
from jaxrec.pages.story import Section, Story


def section(story: Story) -> Section | None:
    """None if no run's model could be loaded."""
    groups = [found for found in story.groups if found.examples]
    if not groups:
        return None
    note = parts.paragraph(
        f"Test rows drawn at random (seed {story.seed}), not chosen. A list is what a "
        "run would have shown after that history; ✓ marks the item that came next, "
        "where the list has it."
    )
    bodies = [_group(story, found) for found in groups]
    return Section("examples", "Examples", join([note, *bodies]))


def _group(story: Story, found: Findings) -> Markup:
    heading = story.heading(found)
    cards = [_card(story, example) for example in found.examples]
    return join(
        [
            element("h3", parts.given(heading)) if heading else None,
            element("div", *cards, class_="cards"),
        ]
    )


def _card(story: Story, example: Example) -> Markup:
    num_before = example.num_history - len(example.history)
    before = [element("li", f"… {num_before:,} more", class_="before")]
    return element(
        "article",
        element(
            "h4",
            "User ",
            parts.given(example.user),
            element("small", f" {example.num_history:,} items before"),
        ),
        element(
            "ol",
            *(before if num_before else []),
            *(element("li", item(story, one)) for one in example.history),
            class_="history",
        ),
        element("p", "Came next: ", element("strong", item(story, example.target))),
        element(
            "div",
            *(_shown(story, example, run) for run in example.lists),
            class_="lists",
        ),
    )


def _shown(story: Story, example: Example, run: str) -> Markup:
    return element(
        "div",
        element("h5", parts.given(run), element("small", f" {_rank(example, run)}")),
        element(
            "ol",
            *(
                element("li", item(story, one), "\u00a0✓", class_="hit")
                if one == example.target
                else element("li", item(story, one))
                for one in example.lists[run]
            ),
        ),
    )


def _rank(example: Example, run: str) -> str:
    """Where the hidden item is."""
    if run not in example.ranks:
        return ""
    rank = example.ranks[run]
    return f"rank {rank:,}" if rank else "a repeat, which counts as a miss"


def item(story: Story, one: str) -> Markup:
    """An item by its title, or its id where it has none."""
    return parts.given(story.titles.get(one, one))


def untitled(story: Story) -> Sequence[str]:
    """Items of the examples that a table of titles lacks."""
    items = (
        one
        for found in story.groups
        for example in found.examples
        for one in [
            *example.history,
            example.target,
            *(one for of in example.lists.values() for one in of),
        ]
    )
    return sorted({one for one in items if one not in story.titles})
