"""Runs side by side: metrics with intervals, every two tested over the same users.

python -m jaxrec.compare runs/ml-1m-sasrec_ce-seed0 runs/ml-1m-bert4rec-seed0
"""

import itertools
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxrec import outcomes, output, record, significance
from jaxrec.command import command_parser, parse_command, run_command
from jaxrec.errors import InputError
from jaxrec.outcomes import Outcome

# Options that runs of one method may have other values of: they do not change what it
# is. Data and split are compared by their hashes.
FREE = {
    "model": (),
    "loss": (),
    "optim": (),
    "train": (
        "seed",
        "checkpoint_every_s",
        "steps_per_dispatch",
        "tensorboard",
        "wandb",
        "compile_cache",
        "show_users",
    ),
    "eval": ("batch_size", "metrics"),
}


class Group(NamedTuple):
    """A row of the table: one run, or the runs of one method."""

    name: str
    outcomes: tuple[Outcome, ...]


def compare(
    workdirs: Sequence[str | Path],
    *,
    part: str = "test",
    metrics: Sequence[str] = ("ndcg@10", "hr@10"),
    unfiltered: bool = False,
    ties: str = "pessimistic",
    group: bool = False,
    level: float = 0.95,
    num_samples: int = 10_000,
    seed: int = 0,
) -> dict[str, Any]:
    """Metrics of runs with intervals, and a paired test of every two of them.

    The user is the unit: intervals are percentile bootstraps over users, p-values come
    from random sign flips of users' differences. Holm's method corrects them over the
    pairs, for each metric by itself. All of it speaks of other users, not of other
    seeds: `group` averages over the seeds that were run.

    Args:
      workdirs: what `outcomes.read` takes, two at least.
      part: "test" or "valid".
      metrics: names such as "ndcg@10".
      unfiltered: rank among all items; otherwise as the runs were judged themselves,
        by default among the items that a user has not had.
      ties: see `outcomes.metric_values`.
      group: average a user's values over the runs of a method, then compare methods.
      level: of the intervals; a verdict needs a corrected p of 1 - level at most.
      num_samples: of each bootstrap and each test.
      seed: of both.

    Returns:
      Plain values. "runs": "name", "paths", "seeds", "tied" (share of targets that
      have the score of another item) and "metrics": by name, "mean", "low", "high",
      "standard_error" and "of_each_run" (its mean). "pairs": "metric", "a", "b",
      "difference" (a - b), "low", "high", "p", "p_holm", "effect" and "verdict". And
      what they are of: "dataset", "part", "ranks", "num_users" and the rest.

    Raises:
      InputError: what cannot be compared; see `outcomes.read` and `check_comparable`.
    """
    runs = [outcomes.read(workdir, part) for workdir in workdirs]
    for one, other in itertools.combinations(runs, 2):
        outcomes.check_comparable(one, other)
    groups = by_method(runs) if group else singles(runs)
    if len(groups) < 2:
        raise InputError(
            "a comparison needs at least two runs, or two methods with --group (in "
            f"Python group=True): got {', '.join(map(str, workdirs)) or 'none'}. Name "
            "another."
        )
    filtered = runs[0].is_filtered and not unfiltered
    metrics = tuple(dict.fromkeys(metrics))
    chance = {"num_samples": num_samples, "seed": seed}
    rows = [
        {
            "name": one.name,
            "paths": [str(run.path) for run in one.outcomes],
            "seeds": [run.result["seed"] for run in one.outcomes],
            "tied": float(np.mean([run.share_tied for run in one.outcomes])),
            "metrics": {},
        }
        for one in groups
    ]
    rows_U = runs[0].rows_U  # of all: runs have the same held-out rows

    def of_ratio(value_U: np.ndarray) -> np.ndarray:
        return significance.of_ratio(value_U * rows_U.mean(), rows_U)

    pairs = []
    for metric in metrics:
        value_GU = []
        for one, row in zip(groups, rows, strict=True):
            value_RU = np.stack(
                [
                    outcomes.metric_values(run, metric, filtered=filtered, ties=ties)
                    for run in one.outcomes
                ]
            )
            # Sorted, so that equal values in another order have an equal mean.
            value_U = np.sort(value_RU, axis=0).mean(axis=0)
            spread_U = of_ratio(value_U)
            interval = significance.bootstrap_interval(spread_U, level=level, **chance)
            row["metrics"][metric] = {
                **interval._asdict(),
                "standard_error": significance.standard_error(spread_U),
                "of_each_run": value_RU.mean(axis=1).tolist(),
            }
            value_GU.append((one.name, value_U))
        pairs += paired_tests(metric, value_GU, of_ratio, level=level, **chance)
    return {
        "dataset": runs[0].result["dataset"],
        "data_sha256": runs[0].result["data"]["sha256"],
        "split_sha256": runs[0].result["split_sha256"],
        "protocol": {key: runs[0].result["protocol"][key] for key in outcomes.PROTOCOL},
        "part": part,
        "ranks": "filtered" if filtered else "unfiltered",
        "ties": ties,
        "num_users": runs[0].num_users,
        "level": level,
        **chance,
        "runs": rows,
        "pairs": pairs,
    }


def singles(runs: Iterable[Outcome]) -> list[Group]:
    """Each run by itself; by its path where method and seed do not tell it apart."""
    runs = list(runs)
    names = [run.name for run in runs]
    return [
        Group(name if names.count(name) == 1 else str(run.path), (run,))
        for name, run in zip(names, runs, strict=True)
    ]


def by_method(runs: Iterable[Outcome]) -> list[Group]:
    """The runs of each method together, in the order of their first.

    Raises:
      InputError: runs of one method have the same seed, or other options.
    """
    groups: dict[str, list[Outcome]] = {}
    for run in runs:
        groups.setdefault(run.result["method"], []).append(run)
    for method, members in groups.items():
        for one, other in itertools.combinations(members, 2):
            check_same_method(method, one, other)
    return [Group(method, tuple(members)) for method, members in groups.items()]


def check_same_method(method: str, one: Outcome, other: Outcome) -> None:
    """Raises InputError unless the two are the same experiment with another seed."""
    where = f"{one.path} and {other.path} are both of method {method!r}"
    if one.result["seed"] == other.result["seed"]:
        raise InputError(
            f"to group runs needs another seed for each of a method: {where} with seed "
            f"{one.result['seed']}. Give one of them, or do not group."
        )
    for section, free in FREE.items():
        a, b = (run.result.get("config", {}).get(section, {}) for run in (one, other))
        # An option that one of them does not know came with a later version.
        for key in [key for key in a if key in b and key not in free]:
            if a[key] != b[key]:
                raise InputError(
                    "to group runs needs those of a method to differ by seed alone: "
                    f"{where}, but {section}.{key} is {a[key]!r} and {b[key]!r}. "
                    "Train one under another method name, or do not group."
                )


def paired_tests(
    metric: str,
    value_GU: Sequence[tuple[str, np.ndarray]],
    of_ratio: Callable[[np.ndarray], np.ndarray],
    *,
    level: float,
    num_samples: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Every two of the named values per user: difference, interval, test, verdict.

    The signs of the test are those of a user's sums; interval and effect are of what
    `of_ratio` makes of them.
    """
    chance = {"num_samples": num_samples, "seed": seed}
    pairs = []
    for (a, a_U), (b, b_U) in itertools.combinations(value_GU, 2):
        spread_2U = of_ratio(a_U), of_ratio(b_U)
        interval = significance.paired_bootstrap(*spread_2U, level=level, **chance)
        pairs.append(
            {
                "metric": metric,
                "a": a,
                "b": b,
                "difference": interval.mean,
                "low": interval.low,
                "high": interval.high,
                "p": significance.permutation_test(a_U, b_U, **chance),
                "effect": significance.effect(*spread_2U),
            }
        )
    p_K = significance.holm([pair["p"] for pair in pairs])
    for pair, p_holm in zip(pairs, p_K.tolist(), strict=True):
        better = pair["a"] if pair["difference"] > 0 else pair["b"]
        is_shown = p_holm <= 1 - level
        pair["p_holm"] = p_holm
        pair["verdict"] = f"{better} is better" if is_shown else "no difference shown"
    return pairs


def table(result: Mapping[str, Any]) -> str:
    """A row a run and a row a pair, for a person."""
    metrics = list(result["runs"][0]["metrics"])
    percent = f"{100 * result['level']:g}"
    rule = {
        "pessimistic": "count against the target",
        "optimistic": "count for the target",
        "mean": "are broken at random, on average",
    }[result["ties"]]
    runs = [["", *(f"{metric} [{percent}%]" for metric in metrics), "tied"]]
    for row in result["runs"]:
        count = len(row["paths"])
        name = row["name"] if count == 1 else f"{row['name']} ({count} runs)"
        cells = [_interval(row["metrics"][metric], "mean") for metric in metrics]
        runs.append([name, *cells, f"{row['tied']:.1%}"])
    head = [f"difference [{percent}%]", "p (Holm)", "effect", "better"]
    pairs = []
    for metric in metrics:
        pairs += [["", "", "", "", ""]] * bool(pairs) + [[metric, *head]]
        pairs += [_pair_cells(x) for x in result["pairs"] if x["metric"] == metric]
    return "\n".join(
        [
            f"{result['dataset']}, {result['part']}: {result['ranks']} ranks, "
            f"{result['num_users']:,} users; ties {rule}",
            "",
            *_aligned(runs),
            "",
            *_aligned(pairs),
        ]
    )


def _pair_cells(pair: Mapping[str, Any]) -> list[str]:
    """One row: which is better in a word, for long names make lines that break."""
    better = "first" if pair["difference"] > 0 else "second"
    return [
        f"{pair['a']} - {pair['b']}",
        _interval(pair, "difference", "+"),
        f"{pair['p_holm']:.2g}",
        f"{pair['effect']:+.2f}",
        better if pair["verdict"].endswith("is better") else "not shown",
    ]


def _interval(values: Mapping[str, float], middle: str, sign: str = "") -> str:
    middle, low, high = (f"{values[key]:{sign}.4f}" for key in (middle, "low", "high"))
    return f"{middle} [{low}, {high}]"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of columns as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in rows
    ]


def main(argv: Sequence[str]) -> None:
    """The command."""
    parser = command_parser("python -m jaxrec.compare", "Compare finished runs.")
    parser.epilog = (
        "intervals and tests are over users, not over seeds; p-values are corrected\n"
        "over the pairs of a metric (Holm); effect: mean / sd of users' differences"
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="run",
        help="a workdir, or a record <name>.json beside <name>.ranks.npz",
    )
    parser.add_argument("--part", default="test", help="test (the default) or valid")
    parser.add_argument(
        "--metrics", default="ndcg@10,hr@10", help="such as ndcg@10,hr@10 (the default)"
    )
    parser.add_argument(
        "--unfiltered", action="store_true", help="rank among all items, seen ones too"
    )
    parser.add_argument(
        "--ties",
        default="pessimistic",
        help=f"{', '.join(outcomes.TIES)}: where a target stands among equal scores",
    )
    parser.add_argument(
        "--group", action="store_true", help="average over the seeds of a method first"
    )
    parser.add_argument("--output", help="a .json file for the numbers")
    flags, options = parse_command(parser, argv)
    if options:
        raise InputError(f"{parser.prog} reads no config: drop {options[0]}.")
    if flags.output:
        output.check_place(flags.output)
    result = compare(
        flags.runs,
        part=flags.part,
        metrics=[name.strip() for name in flags.metrics.split(",")],
        unfiltered=flags.unfiltered,
        ties=flags.ties,
        group=flags.group,
    )
    if flags.output:
        made = {"date": record.date(), "command": record.command()}
        made |= {"versions": record.versions(), "commit": record.commit()}
        record.write_json(flags.output, {**result, **made})
    print(table(result))


if __name__ == "__main__":
    # Nothing here needs an accelerator, which may be busy with training.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    sys.exit(run_command(main))
