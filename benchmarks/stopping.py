"""What does it change that the paper's code draws other validation users every epoch?

    python -m benchmarks.stopping --dataset beauty

Here up to 10,000 users are drawn once, so that the noise of the draw is the same in
every epoch; the paper's code draws them anew, and early stopping sees a noise of its
own in each. From the committed records of runs (results/reproduce/): the noise of a
draw, from the validation metric of every user, is added to the run's curve, many times
over, and the rule of early stopping is applied to each.

A mean over n of U users, drawn without replacement, has the standard error

    s / sqrt(n) * sqrt((U - n) / (U - 1)),

and s is taken to grow with the square root of the metric, as it does where most users
have 0.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measure, records
from benchmarks.published import PUBLISHED
from benchmarks.records import Record
from benchmarks.variants import title
from jaxrec import outcomes
from jaxrec.command import run_command
from jaxrec.errors import InputError

QUESTION = "what does it change to draw the validation users anew every epoch"
METRIC = "ndcg@10"
NOTES = (
    "ours: the run of the record. redrawn: the median and the 5th and 95th percentile "
    "of simulated runs that differ in the draws of validation users alone.",
    "redrawn_share: the mean over the simulated runs of the curve at the epoch they "
    "keep, over the curve's best; what redrawing costs in quality.",
    "at_the_papers_epoch: the curve at the epoch that the paper reports as its best, "
    "or before, whichever is higher, over the curve's best.",
    "A simulated run that our record ends before it would stop is taken to keep the "
    "best of what there is.",
)


def standard_error(value_U: np.ndarray, num_drawn: int) -> float:
    """Of the mean over users drawn without replacement, float64 [U] values of all.

    >>> standard_error(np.array([0.0, 1.0]), 2), standard_error(np.array([0.0, 1.0]), 1)
    (0.0, 0.5)
    """
    num_users = len(value_U)
    left = (num_users - num_drawn) / (num_users - 1)
    return float(value_U.std() / np.sqrt(num_drawn) * np.sqrt(left))


def kept_epochs(curve_RE: np.ndarray, patience: int) -> np.ndarray:
    """The epoch, from 1, that early stopping keeps of each of R curves.

    Training ends once `patience` epochs in a row have brought no new best.

    >>> kept_epochs(np.array([[1.0, 3, 2, 2, 9], [1, 3, 2, 4, 2]]), 2).tolist()
    [2, 4]
    """
    num_curves, num_epochs = curve_RE.shape
    best_R = np.full(num_curves, -np.inf)
    kept_R = np.zeros(num_curves, int)
    for epoch in range(1, num_epochs + 1):
        # A curve that has stopped stays so: its best epoch never moves again.
        is_going_R = epoch - kept_R <= patience
        is_better_R = is_going_R & (curve_RE[:, epoch - 1] > best_R)
        best_R = np.where(is_better_R, curve_RE[:, epoch - 1], best_R)
        kept_R = np.where(is_better_R, epoch, kept_R)
    return kept_R


def row(dataset: str, one: Record, valid: np.ndarray, num_runs: int) -> dict[str, Any]:
    """What redrawing would have done to a run.

    Args:
      valid: float64, the validation metric of every user, at the best epoch.
    """
    result = one.result
    num_drawn = result["protocol"]["valid_rows"]
    curve_E = np.array([line[f"valid/{METRIC}"] for line in one.epochs])
    at_best = standard_error(valid, num_drawn)
    error_E = at_best * np.sqrt(curve_E / curve_E.max())
    rng = np.random.default_rng(0)
    noise_RE = error_E * rng.standard_normal((num_runs, len(curve_E)))
    kept_R = kept_epochs(curve_E + noise_RE, result["config"]["train"]["patience"])
    low, median, high = np.percentile(kept_R, (5, 50, 95))
    found: dict[str, Any] = {
        "dataset": dataset,
        "method": title(result["method"]),
        "seed": result["seed"],
        "validation_users": num_drawn,
        "of_users": len(valid),
        "standard_error": measure.shown(at_best),
        "our_epoch": result["best_epoch"],
        "redrawn_epoch": int(median),
        "redrawn_epoch_range": [int(low), int(high)],
        "redrawn_share": measure.shown(curve_E[kept_R - 1].mean() / curve_E.max()),
    }
    published = PUBLISHED.get(dataset, {}).get(result["method"])
    if published is not None:
        until = curve_E[: published.best_epoch].max()
        found |= {
            "papers_epoch": published.best_epoch,
            "redrawn_stop_by_then": measure.shown(
                float((kept_R <= published.best_epoch).mean())
            ),
            "at_the_papers_epoch": measure.shown(until / curve_E.max()),
        }
    return found


def run(
    dataset: str,
    *,
    num_runs: int = 10_000,
    folder: Path = records.RESULTS,
    output: Path = measure.RESULTS,
) -> Path:
    """Writes a record with a row for each run of a data set."""
    runs = records.read_all(folder / dataset)
    if not runs:
        raise InputError(
            f"{folder / dataset} has no records of runs. Make some: python -m "
            f"benchmarks.reproduce --dataset {dataset}."
        )
    rows = []
    for method, of_method in sorted(runs.items()):
        for seed, one in sorted(of_method.items()):
            path = records.path_of(folder / dataset, method, seed)
            valid = outcomes.metric_values(outcomes.read(path, "valid"), METRIC)
            rows.append(row(dataset, one, valid, num_runs))
    measure.tell(rows)
    return measure.save(
        "stopping", QUESTION, rows, subject=dataset, notes=NOTES, output=output
    )


def main(argv: Sequence[str]) -> None:
    """The command."""
    parser = argparse.ArgumentParser("python -m benchmarks.stopping")
    parser.add_argument("--dataset", default="beauty", help=", ".join(PUBLISHED))
    parser.add_argument("--runs", type=int, default=10_000, help="simulated, of each")
    parser.add_argument("--output", type=Path, default=measure.RESULTS)
    flags = parser.parse_args(argv)
    run(flags.dataset, num_runs=flags.runs, output=flags.output)


if __name__ == "__main__":
    sys.exit(run_command(main))
