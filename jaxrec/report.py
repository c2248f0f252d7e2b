"""Runs on one HTML page: curves, metrics with intervals, slices, examples, protocol.

python -m jaxrec.report --workdir runs/ml-1m-sasrec_ce-seed0 --titles titles.csv
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxrec import __version__, record
from jaxrec.command import command_parser, parse_command, run_command
from jaxrec.compare import compare
from jaxrec.errors import InputError
from jaxrec.output import check_place
from jaxrec.pages import evidence, findings, titles
from jaxrec.pages.findings import Findings, Wanted
from jaxrec.pages.page import page
from jaxrec.pages.story import Story


def report(
    workdirs: str | Path | Sequence[str | Path],
    options: Sequence[str] = (),
    *,
    output: str | Path = "report.html",
    titles: Any = None,
    title_columns: Sequence[str] = ("item", "title"),
    frame: Any = None,
    group: bool = False,
    num_examples: int = 6,
    num_recommended: int = 5,
    num_slices: int = 4,
    beyond: int | None = None,
    seed: int = 0,
    log: Callable[[str], None] = print,
) -> Path:
    """Writes a self-contained page on one run or more.

    What is not there is left out, and the page says so: an unfinished run has its
    curves alone, one whose data no longer load has no slices and examples.

    Args:
      workdirs: of runs of `train`, finished or not, or records `<name>.json`. Runs on
        one split are compared with each other.
      options: changes to their configs, such as "--config.data.path=moved.csv".
      output: the .html file; an older one is replaced.
      titles: of items: a mapping, or a table or file of one; see `titles.read`.
      title_columns: of the table, the one of the ids and the one of the titles.
      frame: a table of interactions in memory, if that is what they were trained on.
      group: compare methods, averaged over the seeds of their runs.
      num_examples, num_recommended: test rows to show, drawn at random, and the items
        recommended for each.
      num_slices: groups of test rows by history length and by popularity.
      beyond: length of the lists for coverage, novelty and the like, see
        `jaxrec.beyond`; None for none of these: they recommend to every test row.
      seed: of the drawn examples.
      log: takes lines of text.

    Returns:
      The path of the page.

    Raises:
      InputError: no such run, a damaged file, or a wrong option.
    """
    path = Path(output)
    check_output(path)
    for name, value, least in (
        ("num_examples", num_examples, 0),
        ("num_recommended", num_recommended, 1),
        ("num_slices", num_slices, 1),
    ):
        if value < least:
            raise InputError(f"{name} must be >= {least}: got {value}.")
    given = [workdirs] if isinstance(workdirs, str | Path) else workdirs
    names = {} if titles is None else read_titles(titles, title_columns)
    wanted = Wanted(num_examples, num_recommended, num_slices, beyond, seed)
    groups = [
        findings.find(runs, wanted, options=options, frame=frame, log=log)
        for runs in evidence.by_split(evidence.read_all(given))
    ]
    for found in groups:
        add_comparison(found, group=group)
    made = {
        "date": record.date(),
        "command": record.command(),
        "version": __version__,
    }
    record.write_text(path, page(Story(groups, names, made, seed)))
    return path


def read_titles(source: Any, columns: Sequence[str]) -> Mapping[str, str]:
    """`titles.read`, whose name is an argument of `report`."""
    return titles.read(source, columns)


def add_comparison(found: Findings, *, group: bool) -> None:
    """Tests every two runs that have ranks, where there are two."""
    paths = [run.path for run in found.finished if run.outcome is not None]
    if len(paths) < 2 or not found.headline:
        return
    try:
        compared = compare(paths, metrics=found.headline, group=group)
    except InputError as error:
        found.note("", "comparison", error)
        return
    found.comparison = renamed(
        compared, {str(run.path): run.name for run in found.finished}
    )


def renamed(comparison: dict, names: Mapping[str, str]) -> dict:
    """With a page's names of runs for their paths, by which `compare` may call them."""

    def name(text: str) -> str:
        given = text.removesuffix(" is better")
        return names.get(given, given) + text[len(given) :]

    return comparison | {
        "runs": [row | {"name": name(row["name"])} for row in comparison["runs"]],
        "pairs": [
            pair | {key: name(pair[key]) for key in ("a", "b", "verdict")}
            for pair in comparison["pairs"]
        ],
    }


def check_output(path: Path) -> None:
    """Raises InputError unless a page can be written there."""
    if path.suffix != ".html":
        raise InputError(f"the page's file must end in .html: got {path}.")
    check_place(path)


def main(argv: Sequence[str]) -> None:
    """The command."""
    parser = command_parser(
        "python -m jaxrec.report", "Write a page on one run or more, to be looked at."
    )
    parser.add_argument(
        "--workdir",
        nargs="+",
        required=True,
        metavar="RUN",
        help="folders of runs, finished or not, or records <name>.json",
    )
    parser.add_argument(
        "--output", default="report.html", help="the page (report.html)"
    )
    parser.add_argument("--titles", help="a .csv, .tsv or .parquet file, a row an item")
    parser.add_argument(
        "--title-columns",
        default="item,title",
        metavar="ITEM,TITLE",
        help="columns of that file (item,title)",
    )
    parser.add_argument(
        "--group", action="store_true", help="compare methods, averaged over seeds"
    )
    parser.add_argument(
        "--examples", type=int, default=6, help="histories to show, drawn at random (6)"
    )
    parser.add_argument(
        "--k", type=int, default=5, help="items recommended in an example (5)"
    )
    parser.add_argument("--slices", type=int, default=4, help="groups of test rows (4)")
    parser.add_argument(
        "--beyond",
        type=int,
        nargs="?",
        const=10,
        metavar="K",
        help="coverage, novelty, popularity bias, diversity of lists of K items (10)",
    )
    flags, options = parse_command(parser, argv)
    path = report(
        flags.workdir,
        options,
        output=flags.output,
        titles=flags.titles,
        title_columns=flags.title_columns.split(","),
        group=flags.group,
        num_examples=flags.examples,
        num_recommended=flags.k,
        num_slices=flags.slices,
        beyond=flags.beyond,
    )
    print(f"{path}: open it in a browser")


if __name__ == "__main__":
    sys.exit(run_command(main))
