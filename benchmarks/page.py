"""The page of measurements, benchmarks/README.md, made from the records alone.

    python -m benchmarks.page          # writes it
    python -m benchmarks.page --check  # ends with status 1 if it is not what they give

A record is results/<question>/<device>-<date>[-<subject>].json with REQUIRED keys, and
`notes` if it has any. The page shows the latest of each device and subject.
"""

import argparse
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxrec import record
from jaxrec.command import run_command
from jaxrec.errors import InputError

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "results", HERE / "README.md"
REQUIRED = ("question", "command", "commit", "date", "device", "versions", "rows")
MOST_ROWS = 30  # that a table shows unasked
_NAME = re.compile(r"(?P<device>.+?)-(?P<date>\d{4}-\d\d-\d\d)(-(?P<subject>.+))?")

INTRODUCTION = """\
# Measurements

One section a question, made by `python -m benchmarks.page` from the records in
[results/](results/), the latest of each device; a test compares the two. Every record
names its command, commit (with a + where files differed from it), date, device and
versions, and may hold more than its table shows. Seconds are of the machine that the
record names and no other; what carries over are ratios of times that were measured in
turn, round by round, on one machine. [LOG.md](LOG.md) tells what was expected, what
came out and what was kept. Whether the paper's results come out again is a page of its
own: [docs/reproduction.md](../docs/reproduction.md).
"""
# The title of a section whose records ask a question each, which is shown with them.
TITLES = {"gpu": "what does all of this take on one GPU"}
# What a reader needs before the table; sections stand in this order, others follow.
ABOUT = {
    "peers": """\
Training at the paper's shapes, on the CPU, beside RecTools, RePlay and the paper's own
code, all on one file, each in its own process and environment. The ratios
are peer / jaxrec: 3 means that the peer takes three times as long, or as much memory.
A bar is the ratio that was set as the aim before anything was measured.
""",
    "sizes": """\
![milliseconds of a step against each size](figures/sizes-cpu-ms.svg)

![memory of a step against each size](figures/sizes-cpu-mb.svg)

Drawn by `python -m benchmarks.size_figures` from the records below. The sampled softmax
has 1,000 negatives where the catalogue varies.
""",
    "gpu": """\
The parts of `python -m benchmarks.gpu`, which [gpu.md](gpu.md) tells about. A row that
has failed says why, and its part is not done. Beside the records of the runs to their
early stop, in results/gpu/<device>/ml-1m/, lies the paper's table of them.
""",
}


class Record(NamedTuple):
    """A record and the parts of its file's name."""

    path: Path
    device: str
    subject: str
    found: Mapping[str, Any]


def read(path: Path) -> Record:
    """A record, checked.

    Raises:
      InputError: its name, or a key that it lacks.
    """
    name = _NAME.fullmatch(path.stem)
    if name is None:
        raise InputError(
            f"a record is named <device>-<date>[-<subject>].json: got {path.name}. "
            "Rename it."
        )
    found = record.read_json(path)
    if missing := [key for key in REQUIRED if key not in found]:
        raise InputError(f"{path} lacks {', '.join(missing)}. Make it again.")
    if not found["rows"]:
        raise InputError(f"{path} has no rows. Make it again.")
    return Record(path, name["device"], name["subject"] or "", found)


def latest(folder: Path) -> list[Record]:
    """The last record of each device and subject, by their names."""
    records = [read(path) for path in sorted(folder.glob("*.json"))]
    records.sort(key=lambda one: one.found["date"])
    last = {(one.device, one.subject): one for one in records}
    return [last[key] for key in sorted(last)]


def render(results: Path = RESULTS) -> str:
    """The whole page."""
    found = {folder.name: latest(folder) for folder in sorted(results.iterdir())}
    order = [*ABOUT, *(name for name in found if name not in ABOUT)]
    parts = [INTRODUCTION]
    for name in order:
        if found.get(name):
            parts.append(section(name, found[name], results.parent))
    return "\n".join(parts)


def short(commit: str | None) -> str:
    """
    >>> short("0123456789abcdef"), short("0123456789abcdef+"), short(None)
    ('0123456', '0123456+', 'no commit')
    """
    if commit is None:
        return "no commit"
    return commit[:7] + ("+" if commit.endswith("+") else "")


def section(name: str, records: Sequence[Record], root: Path) -> str:
    """A question and the answer of each device."""
    title = TITLES[name] if name in TITLES else records[-1].found["question"]
    parts = [f"## {asked(title)}", ABOUT.get(name, "").rstrip()]
    for one in records:
        of = f"**{one.subject}** on " if one.subject else ""
        commit = short(one.found["commit"])
        own = f" {asked(one.found['question'])}" if name in TITLES else ""
        parts += [
            f"{of}{one.found['device']}, {one.found['date']}, {commit} "
            f"([record]({one.path.relative_to(root).as_posix()})):{own}",
            tables(one.found["rows"]),
            "\n".join(f"- {text}" for text in one.found.get("notes", ())),
            f"```\n{one.found['command']}\n```",
        ]
    return "\n\n".join(part for part in parts if part) + "\n"


def asked(question: str) -> str:
    """A question as a sentence.

    >>> asked("why not")
    'Why not?'
    """
    return f"{question[0].upper()}{question[1:].rstrip('?')}?"


def tables(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as Markdown, those that share half of their columns in one table.

    A mapping, and a list of more than two numbers, is left to the record; a long table
    is folded away.
    """
    groups: list[tuple[list[str], list[dict[str, str]]]] = []
    for row in rows:
        shown = {key: cell(key, value) for key, value in row.items()}
        shown = {key: text for key, text in shown.items() if text is not None}
        if not groups or not belongs(shown, groups[-1][0]):
            groups.append(([], []))
        columns, lines = groups[-1]
        columns += [key for key in shown if key not in columns]
        lines.append(shown)
    return "\n\n".join(grid(columns, lines) for columns, lines in groups)


def belongs(row: Iterable[str], columns: Sequence[str]) -> bool:
    keys = {*row}
    return 2 * len(keys & {*columns}) >= len(keys | {*columns})


def grid(columns: Sequence[str], lines: Iterable[Mapping[str, str]]) -> str:
    """A Markdown table, what is no text on the right."""
    lines = list(lines)
    rule = [
        "---" if any(is_text(line.get(key, "")) for line in lines) else "---:"
        for key in columns
    ]
    rows = [[key.replace("_", " ") for key in columns], rule]
    rows += [[line.get(key, "") for key in columns] for line in lines]
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    if len(lines) <= MOST_ROWS:
        return table
    return f"<details><summary>{len(lines)} rows</summary>\n\n{table}\n\n</details>"


def is_text(shown: str) -> bool:
    return shown[:1].isalpha()


def cell(key: str, value: Any) -> str | None:
    """A value as a reader wants it; None for what has no place in a table.

    >>> cell("rows", 12345), cell("share", 0.012345), cell("is_met", True)
    ('12,345', '0.0123', 'yes')
    >>> cell("spread", [1.5, 20]), cell("ids", [1, 2, 3])
    ('1.5 to 20', None)
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    if isinstance(value, dict) or (isinstance(value, list) and len(value) != 2):
        return None
    if isinstance(value, list):
        is_range = key == "spread" or key.endswith("_range")
        ends = [cell(key, end) or "" for end in value]
        return (" to " if is_range else ", ").join(ends)
    return str(value).replace("|", r"\|").replace("\n", " ")


def main(argv: Sequence[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.page",
        description="Make benchmarks/README.md from the records.",
        allow_abbrev=False,
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    flags = parser.parse_args(argv)
    text = render()
    if not flags.check:
        PAGE.write_text(text)
    elif not PAGE.exists() or PAGE.read_text() != text:
        print(f"{PAGE.name} is not what the records give: python -m benchmarks.page")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
