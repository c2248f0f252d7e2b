"""Trains an experiment, epoch by epoch, to its early stop; and the command for it.

    python -m jaxrec.train --config configs/ml1m_sasrec_ce.py

A run lives in its workdir: config.json, metrics.jsonl (a line an epoch), checkpoints/,
and, at the end, result.json and ranks.npz (the rank of every held-out row).
"""

import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from jaxrec import (
    config,
    data,
    evaluator,
    experiment,
    ledger,
    models,
    popularity,
    record,
    slices,
)
from jaxrec import workdir as workdirs
from jaxrec.checkpoint import Checkpoints
from jaxrec.command import command_parser, parse_command, run_command
from jaxrec.experiment import Experiment
from jaxrec.loop import Run, interruptible
from jaxrec.metrics import parse
from jaxrec.ranking import Ranks
from jaxrec.recommend import Recommender
from jaxrec.writers import (
    Console,
    JsonLines,
    TensorBoard,
    WeightsAndBiases,
    Writer,
    duration,
)


class Result(dict):
    """What result.json holds, shown by its metrics: all of it is a page."""

    def __repr__(self) -> str:
        if not {"test", "dataset", "method", "seed"} <= self.keys():
            return super().__repr__()
        means = ", ".join(f"{name} {mean:.4f}" for name, mean in self["test"].items())
        return (
            f"{self['dataset']}, {self['method']}, seed {self['seed']}: test {means}\n"
            f"keys: {', '.join(self)}"
        )


def train(
    settings: Mapping,
    workdir: str | Path | None = None,
    *,
    frame: Any = None,
    resume: bool = False,
    log: Callable[[str], None] | None = print,
) -> "Result":
    """Trains to the early stop, restores the best epoch and ranks the test part.

    Args:
      settings: a config: its sections are arguments of `datasets.load`, an encoder, an
        objective, an optimiser, `experiment.Training` and `experiment.Evaluation`.
      workdir: the run's folder; by default runs/<data>-<method>-seed<seed>.
      frame: a table of interactions in memory, in place of data.name or data.path.
      resume: go on with the run in workdir, to the bits it would have had (on a CPU,
        and with the same steps_per_dispatch).
      log: takes lines of text; None for none.

    Returns:
      What result.json holds, which shows itself by its metrics.

    Raises:
      InputError: a wrong option or value, or a workdir that holds another run.
      FloatingPointError: the loss was not finite; the message names the epoch.
      KeyboardInterrupt: stopped by Ctrl-C or SIGTERM, after saving.
    """
    began = time.monotonic()
    log = log or (lambda line: None)
    built = experiment.build(settings, frame)
    folder = Path(workdir or workdirs.default(built))
    standing = workdirs.standing(folder, built, resume=resume)
    if standing == workdirs.FINISHED:
        log(f"{folder} is finished; nothing is left to do")
        return Result(record.read_json(folder / "result.json"))
    with interruptible() as interrupted, ExitStack() as stack:
        stack.enter_context(workdirs.held(folder))
        log(describe(built, folder))
        run = Run(built, began)
        # What cannot run fails in here, before anything is written.
        run.compile_epoch()
        run.compile_validation()
        if standing == workdirs.NEW:
            run.start()
        workdirs.begin(folder, built)
        run.restore(stack.enter_context(Checkpoints(folder)))
        if run.progress.epoch or run.progress.steps_done:
            log(f"resumed  after epoch {run.progress.epoch}, step {run.state.step}")
        writers = open_writers(run, folder, log)
        for writer in writers:
            stack.callback(writer.close)
        params = run.fit(writers, interrupted)
    return Result(conclude(run, params, folder, log))


def describe(built: Experiment, workdir: Path) -> str:
    """What is about to run, for a person."""
    stats = data.statistics(built.split)
    sections = built.config
    window, asked = built.recipe.max_length, built.training.max_length
    held = f"{window} (the longest history; {asked} asked for)"
    counts = {key: stats[key] for key in stats if key.startswith("rows_")}
    counted = "".join(f"; {key} {count:,}" for key, count in counts.items() if count)
    return "\n".join(
        [
            f"data     {stats['name']}: {stats['users']:,} users, {stats['items']:,} "
            f"items, {stats['interactions']:,} interactions; a user has "
            f"{stats['length_median']:g} in the median, {stats['length_min']} to "
            f"{stats['length_max']}",
            f"model    {sections['model']['name']}, window "
            f"{window if window == asked else held}; loss "
            f"{sections['loss']['name']}; {sections['optim']['name']}; seed "
            f"{built.training.seed}",
            f"device   {record.device()}",
            f"split    {sections['data']['split']}, sha256 "
            f"{built.split.sha256()[:12]}, of data {stats['sha256'][:12]}{counted}",
            f"tested   {tested(stats)}",
            *(f"chosen   {name}: {why}" for name, why in built.chosen.items()),
            *(f"broken   {line}" for line in ledger.lines(stats.get("broken", {}))),
            *(f"remark   {line}" for line in remarks(built)),
            f"workdir  {workdir}",
        ]
    )


def tested(stats: Mapping[str, Any]) -> str:
    """The test rows, and which of them training tells little or too much about.

    Args:
      stats: of `data.statistics`.
    """
    rows = stats["test_rows"]
    parts = [f"{rows:,} rows of {stats['test_users']:,} users"]
    for key, what in (
        ("test_targets_not_in_train", "of items that are not trained on"),
        ("test_rows_of_users_without_training", "of users that are not trained on"),
    ):
        if stats[key]:
            parts.append(f"{stats[key]:,} {what}")
    if share := stats.get("test_share_older_than_training"):
        parts.append(f"{share:.0%} older than some of the training part")
    return "; ".join(parts)


def remarks(built: Experiment) -> list[str]:
    """What a person should know of the log, and of the metrics on it, a line each."""
    num_items = built.split.dataset.num_items
    full = [name for name in built.evaluation.reported if parse(name)[1] >= num_items]
    found = [*data.statistics(built.split).get("remarks", [])]
    if full:
        found.append(
            f"{', '.join(full)}: the log has {num_items:,} items, and a list of as "
            "many leaves none out"
        )
    return found


def open_writers(run: Run, workdir: Path, log: Callable[[str], None]) -> list[Writer]:
    """A console, metrics.jsonl, and TensorBoard and W&B where they are asked for."""
    built, epoch = run.experiment, run.progress.epoch
    training, monitor = built.training, built.evaluation.monitor
    writers: list[Writer] = [
        Console(monitor, training.max_epochs, epoch, log),
        JsonLines(workdir / "metrics.jsonl", keep=epoch),
    ]
    if training.tensorboard:
        writers.append(TensorBoard(workdir / "tensorboard"))
    if training.wandb:
        writers.append(WeightsAndBiases(workdir, built.config))
    return writers


def conclude(run: Run, params, workdir: Path, log: Callable[[str], None]) -> dict:
    """Ranks both held-out parts by the best parameters; writes and shows the result."""
    built, split = run.experiment, run.experiment.split
    ranks = {
        part: built.evaluator.ranks(params, built.evaluator.cut(getattr(split, part)))
        for part in ("valid", "test")
    }
    floor = popularity.ranks(split, split.test)
    run.progress.total_s = time.monotonic() - run.began
    result = make_result(run, ranks, floor)
    save_ranks(workdir / "ranks.npz", split, ranks)
    record.write_json(workdir / "result.json", result)
    log(summary(result))
    if built.training.show_users:
        log(showcase(built, params, built.training.show_users))
    return result


def showcase(built: Experiment, params: Any, num_users: int) -> str:
    """What the first few users had last, and what they would be shown next."""
    dataset = built.split.dataset
    users = dataset.user_ids[:num_users].tolist()
    k = min(5, dataset.num_items)
    recommended = Recommender(built, params).recommend(users, k=k)
    lines = []
    for u, user in enumerate(users):
        history = dataset.items[dataset.offsets[u] : dataset.offsets[u + 1]]
        shown = recommended["item"][recommended["user"] == user]
        lines += [
            f"{user}  had last        {_listed(dataset.item_ids[history[-5:] - 1])}",
            f"{'':{len(str(user))}}  would be shown  {_listed(shown)}",
        ]
    return "\n".join(lines)


def _listed(items: Iterable[Any]) -> str:
    return ", ".join(map(str, items)) or "(nothing: every item was had)"


def make_result(run: Run, ranks: Mapping[str, Ranks], floor: Ranks) -> dict:
    """What result.json holds: the metrics, and all it takes to believe them."""
    built, progress = run.experiment, run.progress
    evaluation, split = built.evaluation, built.split

    def means(of: Ranks, filter_seen: bool = evaluation.filter_seen) -> dict:
        return evaluator.summary(
            of,
            evaluation.reported,
            filter_seen=filter_seen,
            num_items=split.dataset.num_items,
        )

    return {
        "dataset": split.dataset.name,
        "method": built.config["method"],
        "seed": built.training.seed,
        "test": means(ranks["test"]),
        "test_unfiltered": means(ranks["test"], False),
        "test_popularity": means(floor),
        "valid": means(ranks["valid"]),
        "best_epoch": progress.best_epoch,
        "epochs": progress.epoch,
        "num_params": models.num_parameters(run.state.params),
        "data": data.statistics(split),
        "split_sha256": split.sha256(),
        "protocol": {
            "split": built.config["data"]["split"],
            "filter_seen": evaluation.filter_seen,
            "history_filtered": "whole",
            "target_in_history": "miss" if evaluation.filter_seen else "ranked",
            "candidates": "every item of the log",
            "ties": "count against the target",
            "window": built.recipe.max_length,
            "valid_rows": int((run.valid.order_N >= 0).sum()),
            "test_targets_tied": int((ranks["test"].ties > 0).sum()),
            "test_targets_in_history": int(
                (ranks["test"].filtered > split.dataset.num_items).sum()
            ),
        },
        "seconds": {
            "compile": round(progress.compile_s, 3),
            "train": round(progress.train_s, 3),
            "total": round(progress.total_s, 3),
        },
        "date": record.date(),
        "command": record.command(),
        "device": record.device(),
        "versions": record.versions(),
        "commit": record.commit(),
        "config": built.config,
        "chosen": dict(built.chosen),
    }


def save_ranks(path: Path, split, ranks: Mapping[str, Ranks]) -> None:
    """The rank of every held-out row, which its user and history length name."""
    arrays = {}
    for part, of in ranks.items():
        holdout = getattr(split, part)
        arrays[f"{part}_user"] = holdout.user
        arrays[f"{part}_history_length"] = slices.history_length(split, holdout)
        for name in Ranks._fields:
            arrays[f"{part}_{name}"] = getattr(of, name)
    np.savez_compressed(path, **arrays)


def summary(result: Mapping) -> str:
    """The result for a person: the test metrics beside those of popularity."""
    names = list(result["test"])
    rows = {
        "test": result["test"],
        "valid": result["valid"],
        "popularity": result["test_popularity"],
    }
    seconds = result["seconds"]
    lines = [
        f"best     epoch {result['best_epoch']} of {result['epochs']}; "
        f"{result['num_params']:,} parameters; {duration(seconds['total'])}, of them "
        f"{duration(seconds['train'])} training and {duration(seconds['compile'])} "
        "compiling",
        " " * 12 + "".join(f"{name:>10}" for name in names),
    ]
    for row, values in rows.items():
        cells = "".join(f"{values[name]:>10.4f}" for name in names)
        lines.append(f"{row:<12}{cells}")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> None:
    """The command."""
    parser = command_parser("python -m jaxrec.train", "Train to the early stop.")
    parser.add_argument("--config", required=True, help="a file such as configs/*.py")
    parser.add_argument(
        "--workdir",
        help="the run's folder; runs/<data>-<method>-seed<seed> if not given",
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on with the run in the workdir"
    )
    flags, options = parse_command(parser, argv)
    settings = config.override(
        config.read(flags.config),
        options,
        experiment.targets(),
        supplied=experiment.SUPPLIED,
        source=flags.config,
    )
    train(settings, flags.workdir, resume=flags.resume)


if __name__ == "__main__":
    sys.exit(run_command(main))
