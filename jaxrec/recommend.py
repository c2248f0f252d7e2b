"""Top-k recommendations of a trained run, in the caller's ids; the command.

python -m jaxrec.recommend --workdir runs/ml-1m-sasrec_ce-seed0 --output recs.parquet
"""

import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxrec import ledger, output
from jaxrec.command import command_parser, parse_command, run_command
from jaxrec.errors import InputError
from jaxrec.recommender import DEFAULT_K, MEASURES, Recommender
from jaxrec.writers import duration

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Recommender", "main"]


def ids(text: str | None, *, flag: str) -> list[str] | None:
    """The ids that a flag names: "a,b,c", or "@FILE" with one a line.

    >>> ids("a, b", flag="--users")
    ['a', 'b']

    Raises:
      InputError: there is no such file, or the "@" before one is missing.
    """
    if text is None:
        return None
    if not text.startswith("@"):
        if text.endswith(".txt") and Path(text).is_file():
            raise InputError(f"{flag} {text} is a file: for the ids in it say @{text}.")
        return [one.strip() for one in text.split(",") if one.strip()]
    try:
        lines = Path(text[1:]).read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{flag} {text} cannot be read: {error}.") from None
    return [line.strip() for line in lines if line.strip()]


class Progress:
    """How far a long job is: a live line on a terminal, else a line now and then.

    Args:
      what: is being done, in the plural.
      every_s: seconds between the lines where there is no terminal.
    """

    def __init__(self, what: str, *, every_s: float = 10.0):
        self._what, self._every_s = what, every_s
        self._began = self._last = time.monotonic()
        self._is_live = sys.stderr.isatty()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        is_due = now - self._last >= self._every_s and done < total
        if not (self._is_live or is_due):
            return
        self._last = now
        rate = done / max(now - self._began, 1e-9)
        text = f"{done:,} of {total:,} {self._what}  {rate:,.0f}/s"
        if done < total and rate > 0:
            text += f"  {duration((total - done) / rate)} left"
        start, end = ("\r\x1b[K", "") if self._is_live else ("", "\n")
        # On a terminal the finished line makes room for the summary.
        print(start + text * (done < total), end=end, file=sys.stderr, flush=True)


def summary(report: Mapping[str, Any], asked_k: int | None) -> list[str]:
    """What was not quite as asked for, a line each."""
    lines = []
    k = report["k"]
    if asked_k is None and k < DEFAULT_K:
        lines.append(f"k is {k}, not {DEFAULT_K}: the log has no more items")
    if report.get("users_without_history"):
        lines.append(
            f"{report['users_without_history']:,} of {report['users']:,} users have no "
            f"history that the model knows: they get the {k} items with the most "
            "training interactions, source=popularity"
        )
    if report["lists_shorter_than_k"]:
        what = "users" if "users" in report else "items"
        lines.append(
            f"{report['lists_shorter_than_k']:,} of {report[what]:,} {what} get fewer "
            f"than {k} items: no more are left for them"
        )
    if report.get("history_items_unknown"):
        lines.append(
            f"{report['history_items_unknown']:,} of {report['history_items']:,} items "
            "of histories are not in the log, and were skipped: such as "
            f"{', '.join(report['first_unknown_items'])}"
        )
    for name in ("rows_broken", "rows_below_min_rating", "rows_of_other_events"):
        if report.get(name):
            lines.append(
                f"histories: {name} {report[name]:,} of {report['rows_read']:,}"
            )
    said = [*ledger.lines(report.get("broken", {})), *report.get("remarks", ())]
    lines += [f"histories: {line}" for line in said]
    for name in ("allowed", "forbidden"):
        if report.get(f"{name}_items_unknown"):
            lines.append(
                f"{report[f'{name}_items_unknown']:,} {name} items are not in the log, "
                f"{report[f'{name}_items']:,} are"
            )
    return lines


def main(argv: Sequence[str]) -> None:
    """The command."""
    parser = command_parser(
        "python -m jaxrec.recommend",
        "Write each user's top k by a trained run, or each item's neighbours.\n"
        "IDS are separated by commas, or @FILE has one a line.",
    )
    parser.add_argument("--workdir", required=True, help="the run's folder")
    parser.add_argument("--output", required=True, help="a .csv or .parquet file")
    parser.add_argument(
        "--k", type=int, help=f"items a user ({DEFAULT_K}, or all of fewer)"
    )
    parser.add_argument("--users", metavar="IDS", help="all if not given")
    parser.add_argument(
        "--histories",
        metavar="FILE",
        help="interactions of users who need not be in the log, in place of --users",
    )
    parser.add_argument(
        "--columns",
        metavar="USER,ITEM[,TIME]",
        help="of that file; as in the run's log if not given; without a time its rows "
        "are in time order",
    )
    parser.add_argument("--allow", metavar="IDS", help="recommend these items only")
    parser.add_argument("--forbid", metavar="IDS", help="never recommend these items")
    seen = parser.add_mutually_exclusive_group()
    for flag, filter_seen, help_ in (
        ("--keep-seen", False, "recommend what a user has had too"),
        ("--drop-seen", True, "do not; if neither is given, as the run was judged"),
    ):
        seen.add_argument(
            flag,
            dest="filter_seen",
            action="store_const",
            const=filter_seen,
            help=help_,
        )
    parser.add_argument(
        "--similar-to",
        metavar="IDS",
        nargs="?",
        const="",
        help="write the k nearest items of these items, of every item if none is named",
    )
    parser.add_argument(
        "--measure",
        choices=MEASURES,
        help=f"of --similar-to, by item embeddings: {MEASURES[0]} (the default) or dot",
    )
    flags, options = parse_command(parser, argv)
    output.check(flags.output)
    check_flags(flags)
    frames = stream(Recommender.load(flags.workdir, options), flags)
    report: dict[str, Any] = {}
    began = time.monotonic()
    num_rows = output.write(_reported(frames, report), flags.output)
    for line in summary(report, flags.k):
        print(line)
    what = "neighbours" if flags.similar_to is not None else "recommendations"
    seconds = duration(time.monotonic() - began)
    print(f"{num_rows:,} {what} in {flags.output}, {seconds}")


def check_flags(flags: Any) -> None:
    """Raises InputError if a flag is given that another one makes meaningless."""
    given = {
        "--users": flags.users,
        "--histories": flags.histories,
        "--columns": flags.columns,
        "--drop-seen" if flags.filter_seen else "--keep-seen": flags.filter_seen,
        "--measure": flags.measure,
    }
    given = {flag for flag, value in given.items() if value is not None}
    wrong = ""
    if flags.similar_to is not None and given - {"--measure"}:
        wrong = f"--similar-to is of items: drop {', '.join(sorted(given))}."
    elif flags.similar_to is None and "--measure" in given:
        wrong = "--measure is of --similar-to: add it, or drop --measure."
    elif {"--users", "--histories"} <= given:
        wrong = "--histories is of all its users: drop --users."
    elif "--columns" in given and "--histories" not in given:
        wrong = "--columns is of --histories: add it, or drop --columns."
    if wrong:
        raise InputError(wrong)


def stream(recommender: Recommender, flags: Any) -> Iterator["pd.DataFrame"]:
    """What the flags ask for, part by part."""
    items = {
        "allowed": ids(flags.allow, flag="--allow"),
        "forbidden": ids(flags.forbid, flag="--forbid"),
    }
    if flags.similar_to is not None:
        return recommender.stream_similar(
            ids(flags.similar_to or None, flag="--similar-to"),
            k=flags.k,
            measure=flags.measure or MEASURES[0],
            on_progress=Progress("items"),
            **items,
        )
    return recommender.stream(
        ids(flags.users, flag="--users"),
        histories=flags.histories,
        columns=flags.columns.split(",") if flags.columns else (),
        k=flags.k,
        filter_seen=flags.filter_seen,
        on_progress=Progress("users"),
        **items,
    )


def _reported(
    frames: Iterable["pd.DataFrame"], report: dict[str, Any]
) -> Iterator["pd.DataFrame"]:
    for frame in frames:
        report.update(frame.attrs["report"])
        yield frame


if __name__ == "__main__":
    sys.exit(run_command(main))
