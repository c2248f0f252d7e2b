"""Ranks a trained run again, and looks closer than its result does; the command.

python -m jaxrec.evaluate --workdir runs/ml-1m-sasrec_ce-seed0 --intervals --slices
"""

import math
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxrec import evaluator, output, record, runs
from jaxrec.command import command_parser, parse_command, run_command
from jaxrec.errors import InputError
from jaxrec.held_out import HeldOut
from jaxrec.slices import VALUES

# The flag for the edges of the slices by a value.
_EDGES = {
    "history_length": "--length-edges",
    "target_popularity": "--popularity-edges",
}


def evaluate(
    workdir: str | Path,
    options: Sequence[str] = (),
    *,
    frame: Any = None,
    part: str = "test",
    with_sampled: bool = False,
    intervals: bool = False,
    slices: int | None = None,
    edges: Mapping[str, Sequence[float]] | None = None,
    beyond: int | None = None,
    per_user: str | Path | None = None,
) -> dict[str, Any]:
    """Metrics of a run's best epoch on a held-out part.

    Args:
      workdir: the run's folder.
      options: changes to its config, such as "--config.data.path=moved.csv" or
        "--config.eval.metrics=('hr@5',)"; the monitored metric is there besides.
      frame: a table of interactions in memory, if that is what it was trained on.
      part: "test" or "valid"; all of its rows.
      with_sampled: the unreliable metrics with 100 negatives too.
      intervals: 95% confidence intervals over users too.
      slices: groups of rows of nearly equal size to look at by themselves, by the
        length of the history and by the popularity of the target; None for none.
      edges: of given slices: by "history_length" or "target_popularity", increasing.
      beyond: length of the lists for coverage, Gini, novelty, mean popularity and
        diversity, see `beyond`; None for none of these.
      per_user: a .csv or .parquet file for `HeldOut.frame`.

    Returns:
      By the way of ranking ("filtered": among unseen items; "unfiltered": among all;
      "popularity": as the run is judged, by training counts; "sampled_uniform" and
      "sampled_popular"), metrics by name, fractions in [0, 1]. Where asked for:
      "beyond" and "beyond_popularity", the metrics of lists by name; "intervals", for
      each of these and metric "mean", "low" and "high"; "slices", see `slices.means`.

    Raises:
      InputError: no such run or part, or a wrong option.
    """
    wrong = (edges or {}).keys() - VALUES.keys()
    if wrong:
        raise InputError(
            f"edges must be by {' or '.join(VALUES)}: got {', '.join(wrong)}."
        )
    if per_user is not None:
        output.check(per_user, flag="--per-user")
    experiment, params = runs.load(workdir, options, frame=frame)
    held_out = HeldOut(experiment, params, part=part, beyond_k=beyond)
    rank_by = held_out.ranks_by(with_sampled=with_sampled)
    values = {name: held_out.values(rank_N) for name, rank_N in rank_by.items()}
    result: dict[str, Any] = {
        name: evaluator.means(
            rank_N, held_out.names, num_items=held_out.split.dataset.num_items
        )
        for name, rank_N in rank_by.items()
    }
    if beyond is not None:
        for name, of_lists in held_out.list_values.items():
            key = "beyond" if name == "model" else f"beyond_{name}"
            means = {name: float(np.nanmean(x_N)) for name, x_N in of_lists.items()}
            result[key] = held_out.catalogue_values[name] | means
            values[key] = of_lists
    if intervals:
        result["intervals"] = {
            key: {name: held_out.interval(value_N) for name, value_N in of.items()}
            for key, of in values.items()
        }
    if slices is not None or edges:
        result["slices"] = held_out.sliced(4 if slices is None else slices, edges=edges)
    if per_user is not None:
        output.write([held_out.frame()], per_user)
    return result


def table(result: Mapping[str, Any], *, width: int | None = None) -> str:
    """Rows of metrics for a person.

    Args:
      result: from `evaluate`.
      width: characters of a line, if columns that do not fit are to go below.
    """
    result = dict(result)
    slices = result.pop("slices", [])
    intervals = result.pop("intervals", {})
    beyond = {key: result.pop(key) for key in [*result] if key.startswith("beyond")}
    lines = _block("", result, intervals, width)
    if any(row.startswith("sampled") for row in result):
        lines.append(
            "sampled_*: among 100 drawn items; too high, and unreliable for comparing "
            "models"
        )
    if beyond:
        lines += ["", *_block("", beyond, intervals, width)]
    for by in dict.fromkeys(row["by"] for row in slices):
        rows = [row for row in slices if row["by"] == by]
        cells = {_label(row): row["metrics"] for row in rows}
        means = {
            label: {name: of["mean"] for name, of in metrics.items()}
            for label, metrics in cells.items()
        }
        lines += ["", *_block(f"by {by.replace('_', ' ')}", means, cells, width)]
    return "\n".join(lines)


def _label(row: Mapping[str, Any]) -> str:
    """Such as "5 to < 20  (1,234 rows)"."""
    low, high = row["from"], row["below"]
    if low is None or high is None:
        bounds = (
            "all"
            if low == high
            else f">= {low:,.10g}"
            if high is None
            else f"< {high:,.10g}"
        )
    else:
        bounds = f"{low:,.10g} to < {high:,.10g}"
    return f"{bounds}  ({row['rows']:,} rows)"


def _block(
    title: str,
    rows: Mapping[str, Mapping[str, float]],
    intervals: Mapping[str, Mapping[str, Mapping[str, float]]],
    width: int | None,
) -> list[str]:
    """A line a row, a column a metric, with its interval where there is one.

    Columns past the width are in a block of their own, below, with the rows' names.
    """
    names = list(dict.fromkeys(name for values in rows.values() for name in values))
    cells = [[title, *names]]
    for row, values in rows.items():
        cells.append([row])
        for name in names:
            text = f"{values[name]:.4f}" if name in values else "-"
            of = intervals.get(row, {}).get(name)
            cells[-1].append(
                text + (f" [{of['low']:.4f}, {of['high']:.4f}]" if of else "")
            )
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    blocks, used = [[]], widths[0]
    for c in range(1, len(widths)):
        used += 2 + widths[c]
        if blocks[-1] and width is not None and used > width:
            blocks.append([])
            used = widths[0] + 2 + widths[c]
        blocks[-1].append(c)
    lines = []
    for block in blocks:
        lines += [""] * bool(lines)
        for line in cells:
            values = (f"  {line[c]:>{widths[c]}}" for c in block)
            lines.append(f"{line[0]:<{widths[0]}}{''.join(values)}")
    return lines


def numbers(text: str, *, flag: str) -> tuple[float, ...]:
    """The numbers of "1,10,100".

    >>> numbers("1,2.5", flag="--length-edges")
    (1.0, 2.5)

    Raises:
      InputError: they are none.
    """
    try:
        found = tuple(float(word) for word in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(map(math.isfinite, found)):
        raise InputError(
            f"{flag} must be numbers separated by commas, such as 5,20: got {text!r}."
        )
    return found


def main(argv: Sequence[str]) -> None:
    """The command."""
    parser = command_parser("python -m jaxrec.evaluate", "Rank a trained run again.")
    parser.add_argument("--workdir", required=True, help="the run's folder")
    parser.add_argument("--part", default="test", help="test (the default) or valid")
    parser.add_argument(
        "--sampled", action="store_true", help="the unreliable sampled metrics too"
    )
    parser.add_argument(
        "--intervals", action="store_true", help="95%% confidence intervals over users"
    )
    parser.add_argument(
        "--slices",
        type=int,
        nargs="?",
        const=4,
        metavar="N",
        help="metrics by history length and popularity of the target, in N groups (4)",
    )
    for name, flag in _EDGES.items():
        parser.add_argument(
            flag,
            dest=name,
            metavar="X,Y",
            help=f"given edges of the slices by {name.replace('_', ' ')}",
        )
    parser.add_argument(
        "--beyond",
        type=int,
        nargs="?",
        const=10,
        metavar="K",
        help="coverage, novelty, popularity bias, diversity of lists of K items (10)",
    )
    parser.add_argument(
        "--per-user", help="a .csv or .parquet file with a row for each held-out row"
    )
    parser.add_argument("--output", help="a .json file for the numbers")
    flags, options = parse_command(parser, argv)
    if flags.output:
        output.check_place(flags.output)
    edges = {
        name: numbers(text, flag=flag)
        for name, flag in _EDGES.items()
        if (text := getattr(flags, name))
    }
    result = evaluate(
        flags.workdir,
        options,
        part=flags.part,
        with_sampled=flags.sampled,
        intervals=flags.intervals,
        slices=flags.slices,
        edges=edges,
        beyond=flags.beyond,
        per_user=flags.per_user,
    )
    if flags.output:
        record.write_json(flags.output, result)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    print(table(result, width=width))


if __name__ == "__main__":
    sys.exit(run_command(main))
