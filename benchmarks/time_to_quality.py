"""How long until a run is as good as it gets, and nearly so?

    python -m benchmarks.time_to_quality --dataset ml-1m

From the committed records of runs (results/reproduce/): the first epoch whose
validation NDCG@10 reaches 95% and 100% of the run's best, and BERT4Rec's best, one aim
for all; and the time until then: as the clock had it, and at the method's pace.
Validation after every epoch is in both; compiling in the first alone.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import measure, options, page, records
from benchmarks.published import PUBLISHED
from benchmarks.records import Record
from benchmarks.variants import title
from jaxrec.command import run_command
from jaxrec.errors import InputError

QUESTION = "how long until validation NDCG@10 is 95% and 100% of a run's best"
COMMON = "bert4rec"  # the method whose best is an aim for all
METRIC = "valid/ndcg@10"
SHARES = (0.95, 1.0)
NOTES = (
    "wall: as the clock had it, from the start of the command: reading the data, "
    "compiling, training and validation, and whatever else the machine did meanwhile.",
    "paced: the epochs until then, each as long as it and its validation take where "
    "the methods are measured in turn (`python -m benchmarks.pace`), without "
    "compiling: add compile_s for a first run. Rows can be compared by this; by the "
    "clock they cannot, for the machine had other work and the commits differ.",
    "to bert4rec's best: to the best of BERT4Rec's runs here; empty for a run that was "
    "never as good.",
    "paper: the training time that the paper's table gives, on a GPU that it does not "
    "name: of all epochs, with validation, to the stop.",
)


class Pace(NamedTuple):
    """Of the methods in turn: the device, and by method the seconds of an epoch and
    its validation."""

    device: str
    seconds: Mapping[str, float]


def best(one: Record) -> float:
    """The best validation metric of a run."""
    return max(line[METRIC] for line in one.epochs)


def epochs_to(one: Record, value: float) -> int | None:
    """The first epoch whose validation metric is so good; None if none is."""
    reached = (line["epoch"] for line in one.epochs if line[METRIC] >= value)
    return next(reached, None)


def wall_seconds(one: Record, epoch: int) -> float:
    """Seconds by the clock to the end of an epoch and its validation."""
    return next(line["total_s"] for line in one.epochs if line["epoch"] == epoch)


def row(
    dataset: str, one: Record, epoch_s: float | None, common: float | None = None
) -> dict[str, Any]:
    """What a run took.

    Args:
      epoch_s: seconds of an epoch and its validation; None where nobody has measured
        them.
      common: a value of the metric that all are to reach; None if there is none.
    """
    result = one.result
    method = result["method"]
    found: dict[str, Any] = {
        "dataset": dataset,
        "method": title(method),
        "seed": result["seed"],
        "best_ndcg@10": measure.shown(best(one)),
        "compile_s": measure.shown(result["seconds"]["compile"]),
    }
    aims = {f"{share:.0%}": share * best(one) for share in SHARES}
    if common is not None:
        aims[f"{COMMON}'s_best"] = common
    for name, value in aims.items():
        epoch = epochs_to(one, value)
        found[f"epochs_to_{name}"] = epoch
        if epoch is None:
            continue
        if epoch_s is not None:
            found[f"paced_s_to_{name}"] = measure.shown(epoch * epoch_s)
        found[f"wall_s_to_{name}"] = measure.shown(wall_seconds(one, epoch))
    published = PUBLISHED.get(dataset, {}).get(method)
    if published is not None:
        found |= {"paper_s": published.train_s, "paper_epoch": published.best_epoch}
    return found


def rows_by_device(
    dataset: str,
    runs: Mapping[str, Mapping[int, Record]],
    paces: Mapping[str, Pace],
) -> dict[str, list[dict[str, Any]]]:
    """Rows of the runs of each device, the quickest method first.

    Args:
      paces: for each device.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    common = max(map(best, runs.get(COMMON, {}).values()), default=None)
    for of_method in runs.values():
        for seed in sorted(of_method):
            one = of_method[seed]
            device = one.result["device"]
            epoch_s = paces[device].seconds.get(one.result["method"])
            found.setdefault(device, []).append(row(dataset, one, epoch_s, common))
    for rows in found.values():
        rows.sort(key=lambda each: each.get("paced_s_to_100%", float("inf")))
    return found


def measured_pace(dataset: str, device: str, results: Path = measure.RESULTS) -> Pace:
    """From the latest record that has validation, of the device if it has one.

    That of another is as good for comparing methods: how many epochs a run took is not
    its device's. But not in bfloat16, which may be faster on one and slower on another.
    """
    folder = results / "pace"
    found = page.latest(folder) if folder.is_dir() else []
    found = [
        one.found
        for one in found
        if one.subject == dataset and all("valid_s" in row for row in one.found["rows"])
    ]
    if not found:
        return Pace("none", {})
    last = max(found, key=lambda one: (one["device"] == device, one["date"]))
    seconds = {
        row["method"]: row["seconds_per_epoch"] + row["valid_s"]
        for row in last["rows"]
        if last["device"] == device or "bfloat16" not in row["method"]
    }
    return Pace(last["device"], seconds)


def pace_notes(at: Pace, device: str) -> list[str]:
    """Where the pace of the device's runs is from.

    >>> pace_notes(Pace("abacus", {}), "abacus"), pace_notes(Pace("abacus", {"m": 1.0}),
    ...                                                      "abacus")
    ([], ['The pace was measured on abacus.'])
    """
    if not at.seconds:
        return []
    note = f"The pace was measured on {at.device}."
    if at.device != device:
        note += " Of methods in bfloat16 it is left out: that is another there."
    return [note]


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
    all_runs = [one for of_method in runs.values() for one in of_method.values()]
    devices = {one.result["device"] for one in all_runs}
    paces = {device: measured_pace(dataset, device) for device in devices}
    for device, rows in rows_by_device(dataset, runs, paces).items():
        measure.tell(rows)
        notes = [*NOTES, *pace_notes(paces[device], device)]
        paths.append(
            measure.save(
                "time_to_quality",
                QUESTION,
                rows,
                subject=dataset,
                notes=notes,
                output=output,
                device=device,
            )
        )
    return paths


def main(argv: Sequence[str]) -> None:
    """The command."""
    parser = options.parser("time_to_quality", __doc__)
    parser.add_argument("--dataset", default="ml-1m", choices=[*PUBLISHED])
    options.add_output(parser, measure.RESULTS)
    flags = parser.parse_args(argv)
    run(flags.dataset, output=flags.output)


if __name__ == "__main__":
    sys.exit(run_command(main))
