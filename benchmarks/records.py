"""Committed records of runs: a result, its epochs, and the rank of every held-out row.

A record is three files in results/reproduce/<dataset>/, all that a table, a test or a
figure needs: <method>-seed<k>.json (the run's result.json), .metrics.jsonl (a line an
epoch) and .ranks.npz (the run's ranks.npz in the smallest integers that hold it).
"""

import json
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks import options
from jaxrec import outcomes, record
from jaxrec.errors import InputError
from jaxrec.outcomes import Outcome

RESULTS = Path(__file__).parent / "results" / "reproduce"


class Record(NamedTuple):
    """One run.

    outcome: its result, and the rank of every test row.
    epochs: the lines of its metrics.jsonl, first epoch first.
    """

    outcome: Outcome
    epochs: list[dict]

    @property
    def result(self) -> dict:
        """What its result.json holds."""
        return self.outcome.result


def path_of(folder: Path, method: str, seed: int) -> Path:
    """The .json of a record; the other two files are named after it."""
    return folder / f"{method}-seed{seed}.json"


def save(workdir: Path, path: Path) -> None:
    """Makes a record of a finished run; its .json comes last and makes it whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(workdir / "metrics.jsonl", path.with_suffix(".metrics.jsonl"))
    with np.load(workdir / "ranks.npz") as ranks:
        save_ranks(path.with_suffix(".ranks.npz"), dict(ranks))
    result = record.read_json(workdir / "result.json")
    # Where the run was kept is no matter of the record.
    command = options.without(result["command"], "--runs")
    record.write_json(path, result | {"command": command})


def save_ranks(path: Path, ranks: dict[str, np.ndarray]) -> None:
    """Writes ranks.npz's arrays, each as int16 where that holds all, else int32.

    An .npz that np.load reads like any other; bzip2 makes it a third smaller than
    np.savez_compressed does.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as file:
        for name, x_N in ranks.items():
            dtype = np.int16 if x_N.max(initial=0) < 2**15 else np.int32
            # A fixed date: equal arrays, equal bytes.
            member = zipfile.ZipInfo(f"{name}.npy")
            member.compress_type = zipfile.ZIP_BZIP2
            with file.open(member, "w") as stream:
                np.lib.format.write_array(stream, x_N.astype(dtype), allow_pickle=False)


def read(path: Path) -> Record:
    """The record whose .json is given.

    Raises:
      InputError: a file is missing or damaged, the ranks do not give the metrics of
        the result, or the .json is not named after its run.
    """
    outcome = outcomes.read(path)
    named = path_of(path.parent, outcome.result["method"], outcome.result["seed"])
    if path != named:
        raise InputError(f"{path} is a record of {outcome.name}: name it {named.name}.")
    epochs = path.with_suffix(".metrics.jsonl")
    if not epochs.exists():
        raise InputError(
            f"{path} is not a whole record: {epochs.name} is missing. Copy it from the "
            "run's folder, or remove the record and make it again."
        )
    lines = epochs.read_text().splitlines()
    return Record(outcome, [json.loads(line) for line in lines])


def read_all(folder: Path) -> dict[str, dict[int, Record]]:
    """Every record of a data set, by method and seed.

    Raises:
      InputError: as `read`, or two records are not of one split and protocol.
    """
    found: dict[str, dict[int, Record]] = {}
    every = [read(path) for path in sorted(folder.glob("*-seed*.json"))]
    for one in every:
        if one is not every[0]:
            outcomes.check_comparable(every[0].outcome, one.outcome)
        found.setdefault(one.result["method"], {})[one.result["seed"]] = one
    return found


def values(runs: Mapping[int, Record], name: str) -> np.ndarray:
    """A metric of each test user in each run, float64 [R, U], runs by their seed."""
    return np.stack(
        [outcomes.metric_values(runs[seed].outcome, name) for seed in sorted(runs)]
    )


def user_means(runs: Mapping[int, Record], name: str) -> np.ndarray:
    """A metric of each test user, the mean over runs: float64 [U]."""
    # Sorted, so that equal values in another order have an equal mean.
    return np.sort(values(runs, name), axis=0).mean(axis=0)


def seconds_to_best(one: Record) -> float:
    """Seconds in training steps up to the end of the best epoch."""
    best = one.result["best_epoch"]
    return sum(line["train_s"] for line in one.epochs if line["epoch"] <= best)


def fastest_epoch(one: Record) -> float:
    """Seconds in the training steps of an epoch, the fastest of the run."""
    return min(line["train_s"] for line in one.epochs)
