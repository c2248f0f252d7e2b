"""Steps of this library: the programs, plans and dispatches of its training loop."""

import argparse
import itertools
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.drivers import protocol
from jaxrec import __version__, config, experiment, loop, record


class Dispatch(NamedTuple):
    """Steps of one call of the device, and a step's share of having planned them."""

    user_SB: np.ndarray
    slot_SB: np.ndarray
    num_rows: int
    planning_s: float


def dispatches(run: loop.Run) -> Iterator[Dispatch]:
    """Those of a training run, epoch after epoch."""
    for epoch in itertools.count():
        began = time.perf_counter()
        plan = run.plan(epoch)
        planning_s = (time.perf_counter() - began) / len(plan.user_SB)
        num_rows = max(run.num_rows, plan.num_rows)
        first = 0
        for size in run.dispatch_sizes(plan):
            part = slice(first, first + size)
            first += size
            yield Dispatch(plan.user_SB[part], plan.slot_SB[part], num_rows, planning_s)


def settings_of(task: argparse.Namespace) -> dict[str, Any] | None:
    """The config of a task; None if it asks for what its loss has not."""
    settings = config.read(f"configs/{task.dataset.replace('-', '')}_{task.method}.py")
    dtypes = {"dtype": task.dtype, "score_dtype": task.score_dtype}
    if {*dtypes.values()} != {"float32"}:
        if task.method == "sasrec_bce":
            return None
        settings["loss"] |= dtypes
    settings["data"] = {"name": task.dataset, "path": str(task.data)}
    return settings


def main() -> None:
    task = protocol.parse()
    settings = settings_of(task)
    if settings is None:
        return protocol.decline("BCE has no matmuls that loss.dtype is about")
    run = loop.Run(experiment.build(settings), time.monotonic())
    run.compile_epoch()

    shared = (run.experiment.log, run.train_end_U, run.experiment.items)
    state, step_seconds = run.state, []
    num_steps, num_tokens, measured_s = 0, 0.0, 0.0
    for number, one in enumerate(dispatches(run)):
        program = run.compile(one.user_SB.shape, one.num_rows)
        began = time.perf_counter()
        state, (_, weight) = program(state, *shared, one.user_SB, one.slot_SB)
        jax.block_until_ready((state, weight))
        seconds = time.perf_counter() - began
        if number == 0:  # the warm-up
            continue
        step_seconds.append(seconds / len(one.user_SB) + one.planning_s)
        num_steps += len(one.user_SB)
        num_tokens += float(weight)
        measured_s += seconds
        if num_steps >= task.steps and measured_s >= task.seconds:
            break
    protocol.report(
        version=__version__,
        versions=record.versions(),
        steps_per_epoch=len(run.plan(0).user_SB),
        step_seconds=step_seconds,
        tokens_per_step=num_tokens / num_steps,
        compile_s=run.progress.compile_s,
        settings=[
            "short windows are encoded several to a row; up to "
            f"{run.dispatch_sizes(run.plan(0))[0]} steps are one dispatch, and what is "
            "timed is their mean",
            "neither PAD nor MASK is a class of its softmax; in RecTools and the "
            "paper's code they are",
            "bfloat16 is of the softmax alone: loss.dtype=bfloat16, and for scores "
            "loss.score_dtype=bfloat16",
        ],
    )


if __name__ == "__main__":
    main()
