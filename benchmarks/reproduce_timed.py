"""How long does a run of the paper's take to its early stop, and how good does it get?

    python -m benchmarks.reproduce_timed --method sasrec_ce --seed 0

One run on ML-1M, which can be stopped with Ctrl-C and goes on when the command is given
again; it lives in .cache/reproduce_timed/. Its record for the paper's table (see
benchmarks.reproduce) goes to <output>/reproduce/ml-1m/, its times to a record here.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import measure, records, shapes
from benchmarks.published import PUBLISHED
from benchmarks.shapes import METHODS, SHAPES
from jaxrec import record
from jaxrec.command import run_command
from jaxrec.train import train

QUESTION = "how long does a run on ML-1M take to its early stop"
# On one H200: seconds of training and validation without compiling, and of a step.
RUN_BAR_S, STEP_BAR_MS = 10.0, 0.30
RUNS = Path(__file__).parents[1] / ".cache" / "reproduce_timed"
NOTES = (
    "run_s is all epochs to the early stop, training and validation, as the clock had "
    "it, without reading the data and compiling; step_ms is of the fastest epoch.",
)


def tiny_log() -> tuple[Any, dict[str, Any]]:
    """A small log as a frame, and changes that make a run on it short."""
    import pandas as pd

    shape = SHAPES["ml-1m"]._replace(num_users=40, num_items=30)
    log = shapes.made_log(shape._replace(lengths=((0, 5), (1, 12))))
    user_I = log.user_ids.repeat(log.lengths)
    frame = pd.DataFrame(
        {"user": user_I, "item": log.items, "timestamp": range(len(user_I))}
    )
    changes = {
        "model": {"width": 8, "num_layers": 1},
        "train": {"max_epochs": 2, "batch_size": 20, "max_length": 8},
    }
    return frame, changes


def row(
    result: dict[str, Any], epochs: list[dict[str, Any]], num_steps: int
) -> dict[str, Any]:
    """What a run took and gave.

    Args:
      epochs: the lines of its metrics.jsonl.
      num_steps: of an epoch.
    """
    method = result["method"]
    train_s = [line["train_s"] for line in epochs]
    valid_s = [line["valid_s"] for line in epochs]
    run_s = sum(train_s) + sum(valid_s)
    step_ms = 1e3 * min(train_s) / num_steps
    found: dict[str, Any] = {
        "dataset": result["dataset"],
        "method": method,
        "seed": result["seed"],
        "hr@10": round(result["test"]["hr@10"], 4),
        "ndcg@10": round(result["test"]["ndcg@10"], 4),
    }
    published = PUBLISHED.get(result["dataset"], {}).get(method)
    if published is not None:
        found |= {"paper_hr@10": published.hr, "paper_ndcg@10": published.ndcg}
    found |= {
        "best_epoch": result["best_epoch"],
        "epochs": result["epochs"],
        "compile_s": measure.shown(result["seconds"]["compile"]),
        "train_s": measure.shown(sum(train_s)),
        "valid_s": measure.shown(sum(valid_s)),
        "run_s": measure.shown(run_s),
        "step_ms": measure.shown(step_ms),
    }
    if published is not None and method == "sasrec_ce" and not measure.on_cpu():
        found |= {"run_bar_s": RUN_BAR_S, "run_bar_met": run_s <= RUN_BAR_S}
        found |= {"step_bar_ms": STEP_BAR_MS, "step_bar_met": step_ms <= STEP_BAR_MS}
    return found


def run(
    method: str,
    seed: int,
    *,
    is_tiny: bool = False,
    workdir: Path | None = None,
    output: Path = measure.RESULTS,
) -> Path:
    """Trains, or goes on, and writes both records.

    Raises:
      KeyboardInterrupt: it was stopped, and has saved itself.
    """
    shape = SHAPES["ml-1m"]
    frame, changes = tiny_log() if is_tiny else (None, {})
    chosen = shapes.settings(shape, method, **changes)
    chosen["train"] = {**chosen["train"], "seed": seed}
    name = "tiny" if is_tiny else shape.name
    chosen["data"] = {"name": name}
    if workdir is None:
        device = measure.file_name(record.device())
        workdir = RUNS / f"{device}-{name}-{method}-seed{seed}"
    result = train(chosen, workdir, frame=frame, resume=workdir.exists())
    path = records.path_of(output / "reproduce" / name, method, seed)
    records.save(workdir, path)
    epochs = records.read(path).epochs
    num_steps = epochs[0]["step"]
    rows = [row(result, epochs, num_steps)]
    measure.tell(rows)
    return measure.save(
        "reproduce_timed",
        QUESTION,
        rows,
        subject=f"{method}-seed{seed}",
        notes=NOTES,
        output=output,
    )


def main(argv: Sequence[str]) -> None:
    """The command."""
    parser = argparse.ArgumentParser("python -m benchmarks.reproduce_timed")
    parser.add_argument("--method", default="sasrec_ce", choices=[*METHODS])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=measure.RESULTS)
    flags = parser.parse_args(argv)
    run(flags.method, flags.seed, output=flags.output)


if __name__ == "__main__":
    sys.exit(run_command(main))
