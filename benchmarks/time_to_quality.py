"""How long until a run is as good as it gets, and nearly so?

    python -m benchmarks.time_to_quality --dataset ml-1m

From the committed records of runs (results/reproduce/): the first epoch whose
validation NDCG@10 reaches 95% and 100% of the run's best, and the time until then, as
the clock had it and, since others may have used the machine, at the pace of the run's
fastest epoch. Validation after every epoch is in both; compiling in the first alone.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import measure, records
from benchmarks.published import PUBLISHED
from benchmarks.records import Record
from benchmarks.variants import title
from jaxrec.command import run_command
from jaxrec.errors import InputError

QUESTION = "how long until validation NDCG@10 is 95% and 100% of a run's best"
METRIC = "valid/ndcg@10"
SHARES = (0.95, 1.0)
NOTES = (
    "wall: as the clock had it, from the start of the command: reading the data, "
    "compiling, training and validation, and whatever else the machine did meanwhile.",
    "quiet: the epochs until then at the pace of the run's fastest epoch, training and "
    "validation, without compiling; add compile_s for a first run.",
    "paper: the training time that the paper's table gives, on a GPU that it does not "
    "name; to the best epoch or to the stop is not said.",
)


def epochs_to(one: Record, share: float) -> int:
    """The first epoch that reaches a share of the best validation metric."""
    best = max(line[METRIC] for line in one.epochs)
    reached = (line["epoch"] for line in one.epochs if line[METRIC] >= share * best)
    return next(iter(reached))


def wall_seconds(one: Record, epoch: int) -> float:
    """Seconds by the clock to the end of an epoch and its validation."""
    return next(line["total_s"] for line in one.epochs if line["epoch"] == epoch)


def quiet_seconds(one: Record, epoch: int) -> float:
    """Seconds of so many epochs and validations, each at its fastest."""
    train_s = min(line["train_s"] for line in one.epochs)
    return epoch * (train_s + min(line["valid_s"] for line in one.epochs))


def row(dataset: str, one: Record) -> dict[str, Any]:
    """What a run took."""
    result = one.result
    method = result["method"]
    found: dict[str, Any] = {
        "dataset": dataset,
        "method": title(method),
        "seed": result["seed"],
        "best_ndcg@10": measure.shown(max(line[METRIC] for line in one.epochs)),
        "compile_s": measure.shown(result["seconds"]["compile"]),
    }
    for share in SHARES:
        epoch, name = epochs_to(one, share), f"{share:.0%}"
        found[f"epochs_to_{name}"] = epoch
        found[f"quiet_s_to_{name}"] = measure.shown(quiet_seconds(one, epoch))
        found[f"wall_s_to_{name}"] = measure.shown(wall_seconds(one, epoch))
    published = PUBLISHED.get(dataset, {}).get(method)
    if published is not None:
        found |= {"paper_s": published.train_s, "paper_epoch": published.best_epoch}
    return found


def rows_by_device(
    dataset: str, runs: Mapping[str, Mapping[int, Record]]
) -> dict[str, list[dict[str, Any]]]:
    """Rows of the runs of each device, the quickest method first."""
    found: dict[str, list[dict[str, Any]]] = {}
    for of_method in runs.values():
        for seed in sorted(of_method):
            one = of_method[seed]
            found.setdefault(one.result["device"], []).append(row(dataset, one))
    for rows in found.values():
        rows.sort(key=lambda each: each["quiet_s_to_100%"])
    return found


def run(
    dataset: str,
    *,
    folder: Path = records.RESULTS,
    output: Path = measure.RESULTS,
) -> list[Path]:
    """Writes a record for each device that the data set was trained on."""
    runs = records.read_all(folder / dataset)
    if not runs:
        raise InputError(
            f"{folder / dataset} has no records of runs. Make some: python -m "
            f"benchmarks.reproduce --dataset {dataset}."
        )
    paths = []
    for device, rows in rows_by_device(dataset, runs).items():
        measure.tell(rows)
        paths.append(
            measure.save(
                "time_to_quality",
                QUESTION,
                rows,
                subject=dataset,
                notes=NOTES,
                output=output,
                device=device,
            )
        )
    return paths


def main(argv: Sequence[str]) -> None:
    """The command."""
    parser = argparse.ArgumentParser("python -m benchmarks.time_to_quality")
    parser.add_argument("--dataset", default="ml-1m", help=", ".join(PUBLISHED))
    parser.add_argument("--output", type=Path, default=measure.RESULTS)
    flags = parser.parse_args(argv)
    run(flags.dataset, output=flags.output)


if __name__ == "__main__":
    sys.exit(run_command(main))
