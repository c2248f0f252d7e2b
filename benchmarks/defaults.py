"""Do the choices of configs/own_data.py hold on logs of other shapes?

    python -m benchmarks.defaults --logs tiny,short,long,few_items,beauty

Each log is trained as configs/own_data.py would train it, and then with one option
changed at a time: half and twice the window, the width and the batch, the other loss,
other dropout, learning rates and depths, and the full softmax without the items of the
window, which are never to be recommended. What counts is NDCG@10 on the validation part
at the epoch that early stopping keeps; the test part is not looked at. Popularity, and
counting which item follows which, are what all of it must beat to be of use.

Runs are kept in --runs and are gone on with by the same command; each log has a record
of its own. Options such as --config.loss.share=16 hold for all runs of the command.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measure
from benchmarks.options import folder
from jaxrec import (
    config,
    datasets,
    evaluator,
    experiment,
    outcomes,
    popularity,
    significance,
    synthetic,
    train,
)
from jaxrec.command import command_parser, parse_command, run_command
from jaxrec.data import Dataset, Split
from jaxrec.errors import InputError

CONFIG = "configs/own_data.py"
METRIC, K = "ndcg@10", 10
QUESTION = "do the choices that own_data.py makes hold on logs of other shapes"
NOTES = (
    "ndcg@10: on the validation part, at the epoch that is kept. difference: to what "
    "own_data.py chose, paired over the validation rows, with its standard error. One "
    "run each, seed 0: the seed alone moves a run by about one standard error.",
    "train_s: seconds in training steps, on a machine that others used too.",
    "Dropout 0.1 was the choice when these runs were made, hence the option of the "
    "command; that small logs now get 0.3 came out of them.",
)


# Logs as a shop, a news page, a music service or a long tail have them, as far as sizes
# go: arguments of synthetic.interactions. Of the long tail most items are never taken.
LAWS: dict[str, dict[str, Any]] = {
    "tiny": {
        "num_users": 300,
        "num_items": 200,
        "mean_length": 12.0,
        "max_length": 60,
    },
    "few_items": {
        "num_users": 3000,
        "num_items": 60,
        "mean_length": 12.0,
        "max_length": 30,
        "num_topics": 4,
        "num_successors": 4,
    },
    "short": {
        "num_users": 20_000,
        "num_items": 4000,
        "mean_length": 4.5,
        "min_length": 3,
        "max_length": 20,
    },
    "long": {
        "num_users": 1000,
        "num_items": 4000,
        "mean_length": 150.0,
        "min_length": 20,
        "max_length": 600,
    },
    "long_tail": {
        "num_users": 10_000,
        "num_items": 110_000,
        "mean_length": 12.0,
        "num_topics": 12,
        "zipf_exponent": 1.3,
    },
}
PUBLIC = ("beauty", "ml-1m")

# Of a config that is complete, what to put in place of one of its options.
Change = Callable[[Mapping], dict[str, dict[str, Any]]]


def scaled(section: str, option: str, factor: float) -> Change:
    """The option times the factor."""

    def change(chosen: Mapping) -> dict[str, dict[str, Any]]:
        return {section: {option: round(chosen[section][option] * factor)}}

    return change


def fixed(section: str, option: str, value: Any) -> Change:
    """The option as given."""
    return lambda chosen: {section: {option: value}}


def other_loss(num_items: int) -> Change:
    """The full softmax, or the sampled one with what a small catalogue allows."""

    def change(chosen: Mapping) -> dict[str, dict[str, Any]]:
        if chosen["loss"]["name"] != "ce":
            return {"loss": {"name": "ce"}}
        sampled = {"name": "sampled_ce", "num_negatives": min(3000, num_items // 4)}
        return {"loss": sampled}

    return change


def changes(num_items: int) -> dict[str, Change]:
    """What is changed, one at a time, by the name of its row."""
    return {
        "half the window": scaled("train", "max_length", 1 / 2),
        "twice the window": scaled("train", "max_length", 2),
        "half the width": scaled("model", "width", 1 / 2),
        "twice the width": scaled("model", "width", 2),
        "half the batch": scaled("train", "batch_size", 1 / 2),
        "twice the batch": scaled("train", "batch_size", 2),
        "the other loss": other_loss(num_items),
        "the window's items excluded": lambda chosen: {
            "loss": {"name": "ce", "exclude_window": True}
        },
        "dropout 0.3": fixed("model", "dropout", 0.3),
        "learning rate 3e-4": fixed("optim", "learning_rate", 3e-4),
        "learning rate 3e-3": fixed("optim", "learning_rate", 3e-3),
        "one layer": fixed("model", "num_layers", 1),
    }


def changed(settings: Mapping, new: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The settings with other options; a loss that changes takes no option along.

    >>> changed({"method": "m", "train": {"a": 1, "b": 2}}, {"train": {"a": 3}})
    {'method': 'm', 'train': {'a': 3, 'b': 2}}
    """
    result = {k: dict(v) if isinstance(v, Mapping) else v for k, v in settings.items()}
    for section, options in new.items():
        kept = {} if section == "loss" else result[section]
        result[section] = {**kept, **options}
    return result


def read(log: str) -> tuple[dict[str, Any], Any]:
    """The section `data` of a log, and the table in memory where it is made up."""
    if log in PUBLIC:
        return {"name": log}, None
    if log not in LAWS:
        near = config.suggestion(log, (*LAWS, *PUBLIC), what="logs")
        raise InputError(f"there is no log {log!r}{near}.")
    return {}, table(synthetic.interactions(**LAWS[log]))


def table(dataset: Dataset) -> Any:
    """A log as the DataFrame that a user would have."""
    import pandas as pd

    user_I = np.repeat(dataset.user_ids, dataset.lengths)
    item_I = dataset.item_ids[dataset.items - 1]
    return pd.DataFrame(
        {"user": user_I, "item": item_I, "timestamp": dataset.timestamps}
    )


def counted_ndcg(split: Split, k: int) -> float:
    """NDCG@k on the validation part of counting which item follows which.

    The score of an item is how often it has followed the last one of the history in
    the training part; ties count against the target, items had already do not compete.
    """
    dataset, num_items = split.dataset, split.dataset.num_items
    is_train_I = split.is_train_I
    is_pair_I = is_train_I[1:] & is_train_I[:-1]
    is_pair_I[dataset.offsets[1:-1] - 1] = False  # from one user to the next
    before_P = dataset.items[:-1][is_pair_I].astype(np.int64)
    pair_P = before_P * (num_items + 1) + dataset.items[1:][is_pair_I]
    pair_P, count_P = np.unique(pair_P, return_counts=True)
    total = 0.0
    for user, end, target in zip(*split.valid, strict=True):
        history = dataset.items[dataset.offsets[user] : end]
        first = int(history[-1]) * (num_items + 1)
        low, high = np.searchsorted(pair_P, (first, first + num_items + 1))
        item_F, count_F = pair_P[low:high] - first, count_P[low:high]
        is_new_F = ~np.isin(item_F, history)
        of_target = count_F[(item_F == target) & is_new_F].sum()
        rank = int((count_F[is_new_F] >= of_target).sum())
        if of_target and rank <= k:
            total += 1 / np.log2(rank + 1)
    return total / len(split.valid.user)


def floors(split: Split) -> list[dict[str, Any]]:
    """The rows of what needs no training."""
    popular = popularity.ranks(split, split.valid)
    ndcg = {
        "popularity": evaluator.means(
            popular.filtered, (METRIC,), num_items=split.dataset.num_items
        )[METRIC],
        "counting what follows": counted_ndcg(split, K),
    }
    return [{"changed": name, METRIC: measure.shown(ndcg[name])} for name in ndcg]


def row(name: str, folder: Path, chosen: Path) -> dict[str, Any]:
    """A run beside the one of the choices."""
    one = outcomes.read(folder, "valid")
    value_U = outcomes.metric_values(one, METRIC)
    difference_U = value_U - outcomes.metric_values(
        outcomes.read(chosen, "valid"), METRIC
    )
    error = significance.standard_error(difference_U)
    sections = one.result["config"]
    return {
        "changed": name,
        "window": sections["train"]["max_length"],
        "width": sections["model"]["width"],
        "batch": sections["train"]["batch_size"],
        "loss": sections["loss"]["name"],
        METRIC: measure.shown(value_U.mean()),
        "difference": round(float(difference_U.mean()), 4),
        "standard_error": round(error, 4),
        "best_epoch": one.result["best_epoch"],
        "train_s": measure.shown(one.result["seconds"]["train"]),
    }


def run(
    log: str,
    *,
    runs: Path,
    only: Sequence[str] = (),
    options: Sequence[str] = (),
    output: Path = measure.RESULTS,
) -> Path:
    """Trains what is not trained yet, and writes the record of a log.

    Args:
      runs: the folder of the runs' workdirs.
      only: names of `changes`; all if empty.
      options: in place of the config's, for all of the runs.
    """
    data, frame = read(log)
    base = config.override(
        config.read(CONFIG),
        options,
        experiment.targets(),
        supplied=experiment.SUPPLIED,
        source=CONFIG,
    )
    base = {**base, "data": {**base["data"], **data}}
    split = datasets.load(**base["data"], frame=frame)
    chosen = runs / f"{log}-chosen"
    rows = floors(split)
    result = fit(base, chosen, frame)
    rows.append(row("nothing", chosen, chosen))
    for name, change in changes(split.dataset.num_items).items():
        if only and name not in only:
            continue
        folder = runs / f"{log}-{name.replace(' ', '_')}"
        fit(changed(base, change(result["config"])), folder, frame)
        rows.append(row(name, folder, chosen))
        measure.tell(rows[-1:])
    return measure.save(
        "defaults",
        QUESTION,
        rows,
        subject=log,
        notes=(sizes(split), *NOTES),
        output=output,
    )


def sizes(split: Split) -> str:
    """The log, for a reader."""
    log = split.dataset
    return (
        f"The log: {log.num_users:,} users, {log.num_items:,} items, "
        f"{log.num_interactions:,} interactions, in the median "
        f"{np.median(log.lengths):g} of a user."
    )


def fit(settings: Mapping, folder: Path, frame: Any) -> dict[str, Any]:
    """The result of a run, which goes on where it was stopped."""
    settings = changed(settings, {"train": {"show_users": 0, "compile_cache": True}})
    is_begun = (folder / "config.json").exists()
    return train.train(settings, folder, frame=frame, resume=is_begun)


def main(argv: Sequence[str]) -> None:
    """The command."""
    parser = command_parser("python -m benchmarks.defaults", QUESTION)
    parser.add_argument("--logs", default="tiny", help=", ".join((*LAWS, *PUBLIC)))
    parser.add_argument("--only", default="", help="; ".join(changes(1)))
    parser.add_argument("--runs", type=Path, default=Path("runs/defaults"))
    parser.add_argument("--output", type=folder, default=measure.RESULTS)
    flags, options = parse_command(parser, argv)
    only = [name for name in flags.only.split(";") if name]
    if unknown := [name for name in only if name not in changes(1)]:
        known = "; ".join(changes(1))
        raise InputError(f"no change {unknown[0]!r}; --only takes {known}.")
    for log in flags.logs.split(","):
        run(log, runs=flags.runs, only=only, options=options, output=flags.output)


if __name__ == "__main__":
    sys.exit(run_command(main))
