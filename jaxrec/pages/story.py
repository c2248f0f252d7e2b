"""What a page is made of: the findings, and how its runs are drawn and called."""

from collections.abc import Mapping
from typing import NamedTuple

from jaxrec.pages.evidence import Evidence
from jaxrec.pages.findings import POPULARITY, Findings
from jaxrec.pages.markup import Markup


class Story(NamedTuple):
    """Of a page.

    groups: findings, a split each.
    titles: of items, by their ids as text.
    made: "date", "command", "version" of the page itself.
    seed: of the draw of examples.
    """

    groups: list[Findings]
    titles: Mapping[str, str]
    made: Mapping[str, str]
    seed: int = 0

    @property
    def runs(self) -> list[Evidence]:
        return [run for found in self.groups for run in found.runs]

    def style(self, name: str) -> int | None:
        """How a run is drawn, everywhere on the page; None for popularity."""
        if name == POPULARITY:
            return None
        return [run.name for run in self.runs].index(name)

    def heading(self, found: Findings) -> str | None:
        """What the findings are of, where the page has several."""
        if len(self.groups) == 1:
            return None
        run = found.runs[0]
        rule = run.settings.get("data", {}).get("split", "")
        filtered = "" if run.is_filtered else ", seen items competing"
        return f"{run.dataset}, {rule} {run.split_sha256[:8]}{filtered}"


class Section(NamedTuple):
    """A part of the page, with the name that leads there."""

    id: str
    title: str
    body: Markup
