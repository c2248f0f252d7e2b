"""How long does a run of the paper's take to its early stop, and how good does it get?

Runs on ML-1M, trained to their early stop, one after another. A run lives in
.cache/gpu/ under its device, commit, method and seed; one that is stopped saves itself
and goes on when the suite does. Its record (see `records`) goes to
results/gpu/<device>/ml-1m/, with the paper's table of all that are there.
"""

import shutil
import statistics
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import fidelity, markdown, measure, records, shapes, time_to_quality
from benchmarks.gpu_suite.part import Flags, Row, Task
from benchmarks.shapes import SHAPES, TINY
from jaxrec import record
from jaxrec.train import train

# On one H200: seconds of all epochs without compiling, milliseconds of a step.
RUN_BAR_S, RUN_AIM_S, STEP_BAR_MS = 10.0, 3.0, 0.30
SMALL = {"train": {"max_epochs": 2, "batch_size": 30}}
RUNS = Path(__file__).parents[2] / ".cache" / "gpu"
NOTES = (
    "run_s is all epochs to the early stop, training and validation, without "
    "compiling: the first validation, which compiles, is counted as the median one. "
    "total_s is from the start of the run to the test's ranks, by the clock.",
    "step_ms is of the median epoch, planned and fed as in any training.",
    *time_to_quality.NOTES,
)


def tasks(method: str, flags: Flags) -> Iterator[Task]:
    """A run for each seed."""
    for seed in flags.seeds:
        yield Task(f"seed {seed}", partial(rows, method, seed, flags))


def rows(method: str, seed: int, flags: Flags) -> list[Row]:
    """Trains, or goes on, and records.

    Raises:
      KeyboardInterrupt: it was stopped, and has saved itself.
    """
    shape = TINY if flags.is_tiny else SHAPES["ml-1m"]
    frame = small_log() if flags.is_tiny else None
    chosen = shapes.settings(shape, method, **(SMALL if flags.is_tiny else {}))
    if flags.is_tiny and "num_negatives" in chosen["loss"]:
        chosen["loss"] = {**chosen["loss"], "num_negatives": 5}
    chosen["train"] = {**chosen["train"], "seed": seed}
    device = measure.file_name(record.device())
    # Not of another commit, whose run would be taken for this one's.
    commit = (flags.commit or "unknown")[:12]
    workdir = RUNS / f"{device}-{commit}" / f"{shape.name}-{method}-seed{seed}"
    folder = flags.folder / device / shape.name
    path = records.path_of(folder, method, seed)
    has_ended = (workdir / "result.json").exists()
    if flags.again and has_ended:
        shutil.rmtree(workdir)
    has_saved = any((workdir / "checkpoints").glob("[0-9]*"))
    train(chosen, workdir, frame=frame, resume=has_saved)
    records.save(workdir, path)
    write_table(folder)
    return [row(records.read(path))]


def small_log() -> Any:
    """A log of a few users as a frame."""
    import pandas as pd

    log = shapes.made_log(TINY)
    user_I = log.user_ids.repeat(log.lengths)
    return pd.DataFrame(
        {"user": user_I, "item": log.items, "timestamp": range(len(user_I))}
    )


def row(one: records.Record) -> Row:
    """What a run took and gave, beside the paper's where it has such a row."""
    result, epochs = one.result, one.epochs
    epoch_s = records.fastest_epoch(one)
    quality = time_to_quality.row(result["dataset"], one, epoch_s)
    train_s = [line["train_s"] for line in epochs]
    run_s = sum(train_s) + sum(validations([line["valid_s"] for line in epochs]))
    step_ms = 1e3 * statistics.median(train_s) / epochs[0]["step"]
    found = {
        **{key: quality.pop(key) for key in ("dataset", "method", "seed")},
        "hr@10": round(result["test"]["hr@10"], 4),
        "ndcg@10": round(result["test"]["ndcg@10"], 4),
        "best_epoch": result["best_epoch"],
        "epochs": result["epochs"],
        "run_s": measure.shown(run_s),
        "step_ms": measure.shown(step_ms),
        "total_s": measure.shown(result["seconds"]["total"]),
        **quality,
    }
    if result["dataset"] == "ml-1m" and result["method"] == "sasrec_ce":
        found |= {"run_bar_s": RUN_BAR_S, "run_bar_met": run_s <= RUN_BAR_S}
        found |= {"run_aim_s": RUN_AIM_S, "run_aim_met": run_s <= RUN_AIM_S}
        found |= {"step_bar_ms": STEP_BAR_MS, "step_bar_met": step_ms <= STEP_BAR_MS}
    return found


def validations(valid_s: Sequence[float]) -> list[float]:
    """Seconds of each epoch's validation, the first as if it had not compiled.

    >>> validations([9.0, 1.0, 3.0, 2.0])
    [2.0, 1.0, 3.0, 2.0]
    """
    first, *rest = valid_s
    return [min(first, statistics.median(rest)) if rest else first, *rest]


def write_table(folder: Path) -> None:
    """table.json and table.md of the device's records, as `reproduce` makes them."""
    found = records.read_all(folder)
    # The machine is ours alone, and so is the commit: the runs tell the pace.
    paces: dict[str, dict[str, float]] = {}
    for method, runs in found.items():
        for one in runs.values():
            of_device = paces.setdefault(one.result["device"], {})
            epoch_s = records.fastest_epoch(one)
            of_device[method] = min(epoch_s, of_device.get(method, epoch_s))
    table = fidelity.make_table("ml-1m", found, paces)
    table["command"] = "python -m benchmarks.gpu"
    record.write_json(folder / "table.json", table)
    head = "# ml-1m: the paper's table, made again on one GPU\n\n"
    (folder / "table.md").write_text(head + markdown.render(table))
