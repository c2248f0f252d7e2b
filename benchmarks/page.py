"""The page of measurements, benchmarks/README.md, made from the records alone.

    python -m benchmarks.page          # writes it
    python -m benchmarks.page --check  # ends with status 1 if it is not what they give

A record is results/<question>/<device>-<date>[-<subject>].json with REQUIRED keys, and
`notes` if it has any. The page shows the latest of each device and subject.
"""

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import options
from jaxrec import record
from jaxrec.command import run_command
from jaxrec.errors import InputError

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "results", HERE / "README.md"
REQUIRED = ("question", "command", "commit", "date", "device", "versions", "rows")
MOST_ROWS = 30  # that a table shows unasked
# Columns that are left to the record: its name or the table of bars has them.
LEFT_OUT = {
    "peers": {
        "dataset",
        "tokens_per_s",
        "compile_s",
        "time_bar",
        "time_bar_met",
        "memory_bar",
        "memory_bar_met",
    }
}
_NAME = re.compile(r".+?-\d{4}-\d\d-\d\d(-(?P<subject>.+))?")

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
# What every table means by a column, said once.
COLUMNS = """\
In the tables "mb" are MiB; "temp mb" is what the compiled program allocates beside
its arguments, "peak mb" the peak of the whole process. Tokens and targets are positions
that have a target: BERT4Rec has one where it has masked.
"""
# The title of a section whose records ask a question each, which is shown with them.
TITLES = {"gpu": "what does all of this take on one GPU"}
# Sections stand in this order, others follow.
ORDER = (
    "peers",
    "pace",
    "time_to_quality",
    "sizes",
    "memory",
    "negatives",
    "ranking_speed",
    "data_preparation",
    "first_batch",
    "profile_step",
    "cpu_choices",
    "gpu_programs",
    "gpu",
)
# What a reader needs before the table.
ABOUT = {
    "peers": """\
Training at the paper's shapes, on the CPU, beside RecTools, RePlay and the paper's own
code, all on one file, each in its own process and environment. The ratios
are peer / jaxrec: 3 means that the peer takes three times as long, or as much memory.
No peer has torch.compile as an option: a callback of ours sends the training step
through it, and "not compiled" is the ratio without. It is among the settings of the
records on the AMD EPYC and on the processor without AMX, not of the others. (The
paper's code is compiled anew for every length of window: on Beauty the median of its
steps is one that compiles, some hundreds of times ours, but in bfloat16 on the
processor without AMX. Steps that do not compile take as long as uncompiled ones, which
was seen in scratch and has no record.) PyTorch's float32 matmuls in bfloat16 were tried
apart, for one round of the paper's code with full cross-entropy on ML-1M, and were no
faster than bf16-mixed ([LOG.md](LOG.md)).

"As installed" is a peer's ratio without the settings of the system's memory, beside our
fastest setting. Peak memory is of training alone: nothing is validated or saved.

The environments of the peers, as they were made for the records:

```
python -m venv ../rectools
../rectools/bin/python -m pip install 'rectools[torch]==0.19.0' 'pyarrow<22' \\
    'torch==2.13.0' 'pytorch-lightning==2.5.2' 'transformers==5.24.0' pyyaml
python -m venv ../replay
../replay/bin/python -m pip install 'replay-rec[torch]==0.22.0' 'torch==2.13.0'
git clone https://github.com/antklen/sasrec-bert4rec-recsys23 ../paper
git -C ../paper checkout 29c272e
```
""",
    "sizes": """\
![time against sizes](figures/sizes-cpu-amd-epyc-2-cores-ms.svg)

![memory against sizes](figures/sizes-cpu-amd-epyc-2-cores-mb.svg)

And on the Xeon with AMX, with earlier code:

![time against sizes](figures/sizes-cpu-intel-xeon-processor-2-cores-ms.svg)

![memory against sizes](figures/sizes-cpu-intel-xeon-processor-2-cores-mb.svg)

Drawn by `python -m benchmarks.size_figures` from the records below. The sampled softmax
has 1,000 negatives where the catalogue varies, and 3,000 where the window does.

A dispatch has as many steps as in training; those of the Intel Xeon have two, whose
milliseconds hold the taking of their memory from the system. "Dealt" is loss.draw.

Up to some 160,000 items a chunk's exponentials are kept until their sum is known; of a
larger catalogue they are computed twice, in less memory: a step in the line.
""",
    "memory": """\
A dispatch is one step, which takes its memory from the system anew: that is in the
milliseconds, and in training a small part of them.
""",
    "cpu_choices": """\
A call is of one to four steps or losses, which take their memory from the system anew:
that is in the milliseconds, and in training a small part of them.
""",
    "gpu_programs": """\
XLA compiles for a GPU that it is told about and does not see. Nothing was run: there is
no time here, and no promise of one. What a step has the device launch, how often the
host has to wait for it, and the memory that is reserved are what they would be there.
[gpu.md](gpu.md) has what only a device can tell.
""",
    "gpu": """\
The parts of `python -m benchmarks.gpu`, which [gpu.md](gpu.md) tells about. A row that
has failed says why, and its part is not done. Beside the records of the runs to their
early stop, in results/gpu/<device>/ml-1m/, lies the paper's table of them.
""",
}


class Record(NamedTuple):
    """A record, and the subject that its file's name tells."""

    path: Path
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
    return Record(path, name["subject"] or "", found)


def latest(folder: Path) -> list[Record]:
    """The last record of each device, which a record tells, and subject."""
    records = [read(path) for path in sorted(folder.glob("*.json"))]
    records.sort(key=lambda one: one.found["date"])
    last = {(one.found["device"], one.subject): one for one in records}
    return [last[key] for key in sorted(last)]


def render(results: Path = RESULTS) -> str:
    """The whole page."""
    found = {folder.name: latest(folder) for folder in sorted(results.iterdir())}
    order = [*ORDER, *(name for name in found if name not in ORDER)]
    of_name = {name: found[name] for name in order if found.get(name)}
    sections = [
        bars(of_name.values(), results.parent),
        *(section(name, of, results.parent) for name, of in of_name.items()),
    ]
    sections = [text for text in sections if text]
    contents = [f"- [{title}](#{anchor(title)})" for title in map(heading, sections)]
    return "\n".join([INTRODUCTION, COLUMNS, *contents, "", *sections])


def heading(section: str) -> str:
    """
    >>> heading("## Why not?")
    'Why not?'
    """
    return section.partition("\n")[0].removeprefix("## ")


def anchor(title: str) -> str:
    """What GitHub calls a heading.

    >>> anchor("How long, here?")
    'how-long-here'
    """
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def bars(found: Iterable[Sequence[Record]], root: Path) -> str:
    """Every bar, what was measured, and whether it is met; "" if there is none."""
    lines = [
        {
            "record": f"[{one.path.parent.name}]({where(one, root)})",
            **line,
        }
        for records in found
        for one in records
        for row in one.found["rows"]
        for line in barred(row)
    ]
    if not lines:
        return ""
    columns = ["record", "of", "measured", "range", "bar", "met"]
    return (
        "## Which bars are met?\n\nThey were set before anything was measured. Ratios "
        "of time and memory are to be so large at the least, all else so large at the "
        "most; where there are rounds the median is judged. Those of gpu_programs are "
        "of compiled programs, which no device has run."
        f"\n\n{grid(columns, lines, most_rows=100)}\n"
    )


def barred(row: Mapping[str, Any]) -> list[dict[str, str]]:
    """The bars of a row: X_bar_met goes with X_bar_UNIT and with X_UNIT or X_ratio.

    >>> barred({"system": "theirs", "time_ratio": 3.14159, "time_ratio_range": [3, 4],
    ...         "time_bar": 3.0, "time_bar_met": True})
    [{'of': 'theirs: time ratio', 'measured': '3.14', 'range': '3 to 4', 'bar': '3', \
'met': 'yes'}]
    >>> barred({"ms": 2.0, "bar_ms": 1.0, "bar_met": False})[0]["met"]
    '**no**'
    """
    found = []
    texts = ", ".join(x for x in row.values() if isinstance(x, str))
    for met in (key for key in row if key.endswith("bar_met")):
        name = met.removesuffix("bar_met")
        (bar,) = (x for x in row if re.fullmatch(f"{name}bar(_mb|_ms|_s)?", x))
        unit = bar.removeprefix(f"{name}bar_")
        (of,) = {f"{name}{unit}", name.rstrip("_"), f"{name}ratio"} & row.keys()
        found.append(
            {
                "of": f"{texts}: {of.replace('_', ' ')}",
                "measured": cell(of, row[of]) or "",
                "range": shown_range(row.get(f"{of}_range")),
                "bar": cell(bar, row[bar]) or "",
                "met": "yes" if row[met] else "**no**",
            }
        )
    return found


def shown_range(ends: Sequence[float] | None) -> str:
    """Of several rounds; of one there is none.

    >>> shown_range([3, 4]), shown_range([3, 3]), shown_range(None)
    ('3 to 4', '', '')
    """
    return (cell("spread", ends) or "") if ends and ends[0] != ends[1] else ""


def where(one: Record, root: Path) -> str:
    """Its file, as the page links to it."""
    return one.path.relative_to(root).as_posix()


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
    left_out, shared = LEFT_OUT.get(name, ()), shared_notes(records)
    for one in records:
        of = f"**{one.subject}** on " if one.subject else ""
        commit = short(one.found["commit"])
        own = f" {asked(one.found['question'])}" if name in TITLES else ""
        parts += [
            f"{of}{one.found['device']}, {one.found['date']}, {commit} "
            f"([record]({where(one, root)})):{own}",
            tables(
                {key: row[key] for key in row if key not in left_out}
                for row in one.found["rows"]
            ),
            listed(note for note in one.found.get("notes", ()) if note not in shared),
            f"With {versions(one.found['versions'])}:",
            f"```\n{one.found['command']}\n```",
        ]
    if shared:
        parts += ["Of all of these:", listed(shared)]
    return "\n\n".join(part for part in parts if part) + "\n"


def shared_notes(records: Sequence[Record]) -> list[str]:
    """The notes that all of several records have."""
    if len(records) == 1:
        return []
    first, *others = (one.found.get("notes", ()) for one in records)
    return [note for note in first if all(note in notes for notes in others)]


def listed(texts: Iterable[str]) -> str:
    return "\n".join(f"- {text}" for text in texts)


def versions(found: Mapping[str, Any]) -> str:
    """What was measured with, in one line; of several systems, each in turn.

    >>> versions({"python": "3.11.7", "jax": "0.10.2"})
    'python 3.11.7, jax 0.10.2'
    >>> versions({"ours": {"jax": "0.10.2"}, "theirs": {"torch": "2.13.0"}})
    'ours (jax 0.10.2), theirs (torch 2.13.0)'
    """
    return ", ".join(
        f"{name} {of}" if isinstance(of, str) else f"{name} ({versions(of)})"
        for name, of in found.items()
    )


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


def grid(
    columns: Sequence[str],
    lines: Iterable[Mapping[str, str]],
    *,
    most_rows: int = MOST_ROWS,
) -> str:
    """A Markdown table, what is no text on the right."""
    lines = list(lines)
    rule = [
        "---" if any(is_text(line.get(key, "")) for line in lines) else "---:"
        for key in columns
    ]
    rows = [[key.replace("_", " ") for key in columns], rule]
    rows += [[line.get(key, "") for key in columns] for line in lines]
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    if len(lines) <= most_rows:
        return table
    return f"<details><summary>{len(lines)} rows</summary>\n\n{table}\n\n</details>"


def is_text(shown: str) -> bool:
    return shown[:1].isalpha() or shown.startswith(("[", "*"))


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
    parser = options.parser("page", "Make benchmarks/README.md from the records.")
    parser.add_argument("--check", action="store_true", help="write nothing")
    flags = parser.parse_args(argv)
    text = render()
    if not flags.check:
        PAGE.write_text(text)
        print(PAGE)
    elif not PAGE.exists() or PAGE.read_text() != text:
        print(f"{PAGE.name} is not what the records give: python -m benchmarks.page")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
