"""What benchmarks.peers asks of a driver, and the line that a driver answers with.

Standard library alone: a driver runs in the environment of the system it measures.

    python -m benchmarks.drivers.<system> --dataset ml-1m --data ml-1m.txt
        --method sasrec_ce --max-length 200 --width 64 --steps 6 --seconds 10

It trains for a warm-up and then for as many steps and seconds at the least, and prints
one line of JSON: `report`'s arguments, or {"not_run": why} if the system cannot.
"""

import argparse
import json
import os
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

METHODS = ("sasrec_ce", "sasrec_sampled_ce", "sasrec_bce", "bert4rec")
DTYPES = ("float32", "bfloat16")
# The paper's values, for every system. An inner width is BERT4Rec's alone.
BATCH_SIZE, NUM_LAYERS, DROPOUT, LEARNING_RATE = 128, 2, 0.1, 1e-3
NUM_HEADS = {"sasrec": 1, "bert4rec": 2}
NUM_NEGATIVES = {"sasrec_sampled_ce": 3000, "sasrec_bce": 1}
MASK_PROBABILITY = 0.2
# A heap that keeps memory grows until it has had batches of every size.
WARM_UP_STEPS, WARM_UP_SECONDS = 2, 10.0


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The task: what to train, on which file, for how long.

    `repo` is a checkout of the system's source. Options of some systems: `workers`,
    processes that load data beside the one that trains; `bucket_size`, windows of
    like length that are encoded together, 0 for all of a batch. `dtype` is what
    matmuls multiply, as the system's mixed precision has it; parameters are float32.
    `score_dtype` is the same of our softmax's scores alone. `matmul` is what becomes of
    float32 factors in a matmul; `compile`: the training step goes through
    torch.compile.
    """
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--method", choices=METHODS, required=True)
    parser.add_argument("--max-length", type=int, required=True)
    parser.add_argument("--width", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--bucket-size", type=int, default=0)
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0])
    parser.add_argument("--score-dtype", choices=DTYPES, default=DTYPES[0])
    parser.add_argument("--matmul", choices=DTYPES, default=DTYPES[0])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--repo", type=Path)
    return parser.parse_args(argv)


def report(
    *,
    version: str,
    versions: dict[str, str],
    steps_per_epoch: float,
    step_seconds: Sequence[float],
    tokens_per_step: float,
    compile_s: float,
    settings: Sequence[str],
) -> None:
    """Prints the line.

    Args:
      version: of the system.
      versions: of the packages that it computes with.
      steps_per_epoch: a short last batch counts as the part of a batch that it is, or
        as a whole one where it costs as much.
      step_seconds: from the end of a step to the end of the next, its data included;
        where several are one dispatch, one number for each dispatch, a step's share.
      tokens_per_step: positions with a target, the mean over the steps.
      compile_s: seconds of compiling, which no step includes.
      settings: what a reader needs to judge whether the comparison is fair.
    """
    line = {
        "version": version,
        "versions": versions,
        "steps_per_epoch": steps_per_epoch,
        "step_seconds": [round(x, 5) for x in step_seconds],
        "tokens_per_step": round(tokens_per_step, 1),
        "compile_s": round(compile_s, 2),
        "peak_mb": peak_mb(),
        "threads": num_cores(),
        "settings": list(settings),
    }
    print(json.dumps(line), flush=True)


def decline(reason: str) -> None:
    """Prints the line of a system that cannot do the task."""
    print(json.dumps({"not_run": reason}), flush=True)


def num_cores() -> int:
    """Cores that this process may use; every system computes with as many threads."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def peak_mb() -> int:
    """The most memory in MiB that this process had resident; its children's not."""
    try:
        # Unlike getrusage's, this does not start from the peak of the parent.
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) // 2**10
    except (OSError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak // (2**20 if sys.platform == "darwin" else 2**10)


def memory_bytes() -> int:
    """Of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def versions(*packages: str) -> dict[str, str]:
    """Of Python and those packages."""
    import importlib.metadata
    import platform

    found = {name: importlib.metadata.version(name) for name in packages}
    return {"python": platform.python_version(), **found}


def read_columns(path: Path) -> Any:
    """A data file as the paper's code reads it: a frame of user_id and item_id."""
    import pandas as pd

    return pd.read_csv(path, sep=" ", header=None, names=["user_id", "item_id"])
