"""Ranks a trained run again: full metrics, and sampled ones beside them; the command.

python -m jaxrec.evaluate --workdir runs/ml-1m-sasrec_ce-seed0
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxrec import evaluator, record, runs, sampled
from jaxrec.command import command_parser, parse_command, run_command
from jaxrec.errors import InputError

PARTS = ("valid", "test")


def evaluate(
    workdir: str | Path,
    options: Sequence[str] = (),
    *,
    frame: Any = None,
    part: str = "test",
    with_sampled: bool = False,
) -> dict[str, dict[str, float]]:
    """Metrics of a run's best epoch on a held-out part.

    Args:
      workdir: the run's folder.
      options: changes to its config, such as "--config.data.path=moved.csv" or
        "--config.eval.metrics=('hr@5',)".
      frame: a table of interactions in memory, if that is what it was trained on.
      part: "test" or "valid"; all of its rows.
      with_sampled: the unreliable metrics with 100 negatives too.

    Returns:
      By the way of ranking ("filtered": among unseen items; "unfiltered": among all;
      "popularity": filtered, by training counts; "sampled_uniform" and
      "sampled_popular"), metrics by name, fractions in [0, 1].

    Raises:
      InputError: no such run or part, or a wrong option.
    """
    if part not in PARTS:
        raise InputError(f"part must be one of {', '.join(PARTS)}: got {part!r}.")
    experiment, params = runs.load(workdir, options, frame=frame)
    holdout = getattr(experiment.split, part)
    names = experiment.evaluation.metrics
    drawn = {}
    if with_sampled:
        for law in sampled.LAWS:
            rank_N = sampled.sampled_ranks(experiment, params, holdout, law=law)
            drawn[f"sampled_{law}"] = evaluator.means(rank_N, names)
    ranks = experiment.evaluator.ranks(params, experiment.evaluator.cut(holdout))
    floor = evaluator.popularity_ranks(experiment.split, holdout)
    return {
        "filtered": evaluator.summary(ranks, names, True),
        "unfiltered": evaluator.summary(ranks, names, False),
        "popularity": evaluator.summary(floor, names, True),
        **drawn,
    }


def table(result: Mapping[str, Mapping[str, float]]) -> str:
    """Rows of metrics for a person."""
    names = list(next(iter(result.values())))
    lines = [" " * 18 + "".join(f"{name:>10}" for name in names)]
    for row, values in result.items():
        cells = "".join(f"{values[name]:>10.4f}" for name in names)
        lines.append(f"{row:<18}{cells}")
    if any(row.startswith("sampled") for row in result):
        lines.append(
            "sampled_*: among 100 drawn items; too high, and unreliable for comparing "
            "models"
        )
    return "\n".join(lines)


def main(argv: Sequence[str]) -> None:
    """The command."""
    parser = command_parser("python -m jaxrec.evaluate", "Rank a trained run again.")
    parser.add_argument("--workdir", required=True, help="the run's folder")
    parser.add_argument("--part", default="test", help="test (the default) or valid")
    parser.add_argument(
        "--sampled", action="store_true", help="the unreliable sampled metrics too"
    )
    parser.add_argument("--output", help="a .json file for the numbers")
    flags, options = parse_command(parser, argv)
    if flags.output and not Path(flags.output).absolute().parent.is_dir():
        raise InputError(f"--output {flags.output}: there is no such folder.")
    result = evaluate(
        flags.workdir, options, part=flags.part, with_sampled=flags.sampled
    )
    if flags.output:
        record.write_json(flags.output, result)
    print(table(result))


if __name__ == "__main__":
    sys.exit(run_command(main))
